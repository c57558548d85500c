//! Which batches each shard holds, as far as this gateway knows.
//!
//! A push names what has been acknowledged, by shard; a reply names what the shards hold: the
//! highest batch and which of the 63 before it. A shard that lacks one that was acknowledged has
//! been restored from a backup, and takes nothing until this gateway knows. Always holds: no batch
//! is sent while one is under way that is 32 numbers older, so what is older than 64 was committed
//! before the highest one was sent. Pure.

use model::varint;
use std::collections::BTreeMap;
use wire::proto::ShardEcho;

/// Batches that a shard remembers one by one.
pub(super) const REMEMBERED: usize = 64;
/// Batches under way at once, at most; far fewer than a shard remembers.
pub(crate) const UNDER_WAY_MAX: usize = 32;

/// Batches that a shard holds: the highest, and which of the 63 before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// The highest number; 0 without any.
    pub highest: u64,
    /// Bit i: `highest - i` is there.
    pub recent: u64,
}

/// By name of shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shards(BTreeMap<String, Held>);

impl Shards {
    /// What has been acknowledged.
    pub(super) fn expected(&self) -> Vec<ShardEcho> {
        self.0.iter().map(|(shard, held)| held.echo(shard.clone())).collect()
    }

    /// These shards have committed a batch.
    pub(super) fn acknowledged(&mut self, batch: u64, echoes: &[ShardEcho]) {
        for echo in echoes {
            self.0.entry(echo.shard.clone()).or_default().add(batch);
        }
    }

    /// The lowest batch that each of these shards lacks, of those that lack any.
    pub(super) fn lacking(&self, echoes: &[ShardEcho]) -> Vec<(String, u64)> {
        let lacks =
            |echo: &ShardEcho| Some((echo.shard.clone(), self.0.get(&echo.shard)?.lowest_not_in(Held::of(echo))?));
        echoes.iter().filter_map(lacks).collect()
    }

    /// Shards that have acknowledged something and are no more; what they had may be nowhere else.
    pub(super) fn gone(&self, members: &[String]) -> Vec<(String, u64)> {
        let gone = self.0.keys().filter(|shard| !members.is_empty() && !members.contains(shard));
        gone.map(|shard| (shard.clone(), 1)).collect()
    }

    /// Nothing is expected of shards that are no more.
    pub(super) fn forget(&mut self, gone: &[(String, u64)]) {
        self.0.retain(|shard, _| !gone.iter().any(|(name, _)| name == shard));
    }

    /// No more is expected of shards that lack something than what they hold.
    pub(super) fn adopt(&mut self, echoes: &[ShardEcho], lacking: &[(String, u64)]) {
        for echo in echoes.iter().filter(|echo| lacking.iter().any(|(shard, _)| *shard == echo.shard)) {
            self.0.insert(echo.shard.clone(), Held::of(echo));
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.0.len() as u64);
        for (shard, held) in &self.0 {
            varint::put(out, shard.len() as u64);
            out.extend(shard.as_bytes());
            varint::put(out, held.highest);
            varint::put(out, held.recent);
        }
    }

    pub(super) fn read(rest: &mut &[u8]) -> Option<Self> {
        let mut shards = BTreeMap::new();
        for _ in 0..varint::take(rest)? {
            let shard = varint::take_str(rest)?.to_owned();
            shards.insert(shard, Held { highest: varint::take(rest)?, recent: varint::take(rest)? });
        }
        Some(Shards(shards))
    }
}

impl Held {
    /// As it was told.
    pub fn of(echo: &ShardEcho) -> Self {
        Held { highest: echo.highest, recent: echo.recent }
    }

    /// As it is told.
    pub fn echo(self, shard: String) -> ShardEcho {
        ShardEcho { shard, highest: self.highest, recent: self.recent }
    }

    fn has(self, batch: u64) -> bool {
        match self.highest.checked_sub(batch) {
            Some(back) if back < 64 => self.recent >> back & 1 == 1,
            Some(_) => true,
            None => false,
        }
    }

    /// One more.
    pub fn add(&mut self, batch: u64) {
        if batch > self.highest {
            let by = batch - self.highest;
            self.recent = if by < 64 { self.recent << by } else { 0 };
            self.highest = batch;
        }
        let back = self.highest - batch;
        if back < 64 {
            self.recent |= 1 << back;
        }
    }

    /// The lowest batch that is here and not there; of those older than remembered, the oldest
    /// that may be missing.
    pub fn lowest_not_in(self, other: Held) -> Option<u64> {
        let mine = (0..64)
            .map_while(|back| self.highest.checked_sub(back))
            .filter(|&b| b > 0 && self.recent >> (self.highest - b) & 1 == 1);
        let lowest = mine.filter(|&batch| !other.has(batch)).min()?;
        // Behind its highest there may be more missing than these bits tell.
        Some(if other.highest < lowest { other.highest.saturating_sub(UNDER_WAY_MAX as u64) + 1 } else { lowest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(highest: u64, recent: u64) -> Vec<ShardEcho> {
        vec![ShardEcho { shard: "a".into(), highest, recent }]
    }

    #[test]
    fn a_shard_that_goes_on_lacks_nothing() {
        let mut shards = Shards::default();
        assert!(shards.lacking(&echo(0, 0)).is_empty());
        // Batch 3 overtakes 2.
        for (batch, highest, recent) in [(1, 1, 0b1), (3, 3, 0b101), (2, 3, 0b111)] {
            shards.acknowledged(batch, &echo(highest, recent));
            assert!(shards.lacking(&echo(highest, recent)).is_empty());
        }
        // Committed, but the reply was lost: more than expected is no harm.
        assert!(shards.lacking(&echo(9, 0b1_1100_0001)).is_empty());
        assert_eq!(shards.expected(), echo(3, 0b111));
        // After a restart numbers leap.
        shards.acknowledged(1_000, &echo(1_000, 1));
        assert!(shards.lacking(&echo(1_000, 1)).is_empty());
        let mut bytes = Vec::new();
        shards.put(&mut bytes);
        assert_eq!(Shards::read(&mut &bytes[..]), Some(shards));
    }

    #[test]
    fn a_restored_shard_is_noticed_once() {
        let mut shards = Shards::default();
        (1..=100).for_each(|batch| shards.acknowledged(batch, &echo(0, 0)));
        let lacking = shards.lacking(&echo(60, u64::MAX));
        assert_eq!(lacking, [("a".into(), 29)]);
        shards.adopt(&echo(60, u64::MAX), &lacking);
        assert!(shards.lacking(&echo(60, u64::MAX)).is_empty());
    }

    #[test]
    fn a_backup_between_two_commits_is_noticed() {
        let mut shards = Shards::default();
        shards.acknowledged(12, &echo(12, 0b101));
        shards.acknowledged(11, &echo(12, 0b111));
        assert_eq!(shards.lacking(&echo(12, 0b101)), [("a".into(), 11)]);
    }
}
