//! Bodies in blocks (RFC 7959).
//!
//! Arrives: blocks of a request. Leaves: whole bodies, or what to answer. Always holds: a body
//! is what was sent, never with a hole: a gap is 4.08 and the client begins again; memory is
//! bounded, and beyond the bound the oldest unfinished body is forgotten.

use super::{read_uint, uint};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an unfinished body is kept.
const PATIENCE: Duration = Duration::from_secs(247);

/// The value of a Block1 or Block2 option (section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) number: u32,
    pub(super) more: bool,
    /// The size exponent: blocks have `2^(szx + 4)` bytes.
    pub(super) szx: u8,
}

impl Block {
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        let n = read_uint(value, 3)?;
        let szx = (n & 7) as u8;
        (szx < 7).then_some(Block { number: n >> 4, more: n & 8 != 0, szx })
    }

    pub(super) fn write(self) -> Vec<u8> {
        uint(self.number << 4 | u32::from(self.more) << 3 | u32::from(self.szx))
    }

    pub(super) fn size(self) -> usize {
        1 << (self.szx + 4)
    }

    /// The same place in blocks of at most so many bytes, but of 16 at least.
    pub(super) fn within(self, bytes: usize) -> Self {
        let mut block = self;
        while block.szx > 0 && block.size() > bytes {
            block = Block { number: block.number << 1, szx: block.szx - 1, ..block };
        }
        block
    }

    pub(super) fn offset(self) -> usize {
        self.number as usize * self.size()
    }
}

/// What a block comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// 2.31: send the next.
    Continue,
    /// The body is whole.
    Whole(Vec<u8>),
    /// 4.08: blocks are missing.
    Gap,
    /// 4.13: too large.
    TooLarge,
    /// 4.00: not as long as it says.
    BadLength,
}

/// Whose body, and to which resource.
pub(super) type Key = (SocketAddr, u64);

/// What keeping a body takes besides its bytes.
const ENTRY_BYTES: usize = 160;

#[derive(Debug)]
struct Unfinished {
    body: Vec<u8>,
    /// Its place in the order of last use.
    place: u64,
}

/// Bodies that are still being assembled.
#[derive(Debug)]
pub(super) struct Assembly {
    unfinished: HashMap<Key, Unfinished>,
    /// By last use, the longest ago first.
    order: BTreeMap<u64, (Key, Instant)>,
    uses: u64,
    /// Of bodies and of what keeping one takes besides.
    bytes: usize,
    bytes_max: usize,
    body_max: usize,
}

impl Assembly {
    pub(super) fn new(bytes_max: usize, body_max: usize) -> Self {
        Assembly { unfinished: HashMap::new(), order: BTreeMap::new(), uses: 0, bytes: 0, bytes_max, body_max }
    }

    /// Takes a block.
    pub(super) fn take(&mut self, key: Key, block: Block, payload: &[u8], now: Instant) -> Taken {
        if block.more && payload.len() != block.size() || payload.len() > block.size() {
            return Taken::BadLength;
        }
        if block.number == 0 {
            self.remove(&key);
        }
        let have = self.unfinished.get(&key).map_or(0, |unfinished| unfinished.body.len());
        let (begin, end) = (block.offset(), block.offset() + payload.len());
        if begin > have {
            self.remove(&key);
            return Taken::Gap;
        }
        if end > self.body_max {
            self.remove(&key);
            return Taken::TooLarge;
        }
        if begin == have {
            self.append(key, payload, now);
        } else if end > have {
            // Neither the next block nor one that is known: its size has changed midway.
            self.remove(&key);
            return Taken::Gap;
        }
        if block.more { Taken::Continue } else { Taken::Whole(self.remove(&key)) }
    }

    fn append(&mut self, key: Key, payload: &[u8], now: Instant) {
        self.uses += 1;
        let place = self.uses;
        let unfinished = self.unfinished.entry(key).or_insert_with(|| {
            self.bytes += ENTRY_BYTES;
            Unfinished { body: Vec::new(), place }
        });
        self.order.remove(&unfinished.place);
        self.order.insert(place, (key, now));
        unfinished.place = place;
        unfinished.body.extend_from_slice(payload);
        self.bytes += payload.len();
        self.make_room(now);
    }

    /// Forgets what nobody goes on with, and beyond the bound the longest untouched.
    fn make_room(&mut self, now: Instant) {
        while let Some((_, (key, touched))) = self.order.first_key_value() {
            let alone = self.order.len() == 1;
            if now.saturating_duration_since(*touched) <= PATIENCE && (alone || self.bytes <= self.bytes_max) {
                return;
            }
            let key = *key;
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Vec<u8> {
        let Some(unfinished) = self.unfinished.remove(key) else { return Vec::new() };
        self.order.remove(&unfinished.place);
        self.bytes -= unfinished.body.len() + ENTRY_BYTES;
        unfinished.body
    }
}

/// The part of a representation that Block2 asks for; `None` beyond its end.
pub(super) fn slice(body: &[u8], asked: Block) -> Option<(&[u8], Block)> {
    let begin = asked.offset();
    if begin >= body.len() && begin > 0 {
        return None;
    }
    let end = (begin + asked.size()).min(body.len());
    Some((&body[begin..end], Block { more: end < body.len(), ..asked }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u64) -> Key {
        (SocketAddr::from(([127, 0, 0, 1], 5000)), n)
    }

    fn block(number: u32, more: bool) -> Block {
        Block { number, more, szx: 0 }
    }

    #[test]
    fn a_gap_is_never_filled_with_anything() {
        let (mut assembly, now) = (Assembly::new(1_000, 1_000), Instant::now());
        assert_eq!(assembly.take(key(1), block(0, true), &[1; 16], now), Taken::Continue);
        assert_eq!(assembly.take(key(1), block(2, false), &[3; 5], now), Taken::Gap);
        assert_eq!(assembly.take(key(1), block(1, false), &[2; 5], now), Taken::Gap, "the client begins again");
        assert_eq!(assembly.take(key(1), block(0, true), &[1; 16], now), Taken::Continue);
        assert_eq!(assembly.take(key(1), block(0, true), &[1; 16], now), Taken::Continue, "a repetition");
        let whole = [vec![1; 16], vec![2; 5]].concat();
        assert_eq!(assembly.take(key(1), block(1, false), &[2; 5], now), Taken::Whole(whole));
        assert_eq!(assembly.bytes, 0);
    }

    #[test]
    fn lengths_and_sizes_are_checked() {
        let (mut assembly, now) = (Assembly::new(64, 40), Instant::now());
        assert_eq!(assembly.take(key(1), block(0, true), &[1; 15], now), Taken::BadLength);
        assert_eq!(assembly.take(key(1), block(0, false), &[1; 17], now), Taken::BadLength);
        assert_eq!(assembly.take(key(1), block(0, true), &[1; 16], now), Taken::Continue);
        assert_eq!(assembly.take(key(1), block(1, true), &[1; 16], now), Taken::Continue);
        assert_eq!(assembly.take(key(1), block(2, true), &[1; 16], now), Taken::TooLarge);
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest() {
        let (mut assembly, now) = (Assembly::new(3 * (16 + ENTRY_BYTES), 40), Instant::now());
        for n in 0..4 {
            let at = now + Duration::from_secs(n);
            assert_eq!(assembly.take(key(n), block(0, true), &[1; 16], at), Taken::Continue);
        }
        assert_eq!(assembly.bytes, 3 * (16 + ENTRY_BYTES));
        assert_eq!(assembly.take(key(0), block(1, true), &[1; 16], now), Taken::Gap);
    }

    proptest! {
        #[test]
        fn any_body_in_any_block_size_arrives_whole(body in prop::collection::vec(any::<u8>(), 1..400), szx in 0..4_u8) {
            let (mut assembly, now) = (Assembly::new(1_000, 1_000), Instant::now());
            let size = 1 << (szx + 4);
            let parts: Vec<&[u8]> = body.chunks(size).collect();
            for (number, part) in parts.iter().enumerate() {
                let block = Block { number: number as u32, more: number + 1 < parts.len(), szx };
                prop_assert_eq!(Block::read(&block.write()), Some(block));
                let want = if block.more { Taken::Continue } else { Taken::Whole(body.clone()) };
                prop_assert_eq!(assembly.take(key(1), block, part, now), want);
                let (slice, answered) = slice(&body, block).unwrap();
                prop_assert_eq!((slice, answered.more), (*part, block.more));
            }
        }
    }
}
