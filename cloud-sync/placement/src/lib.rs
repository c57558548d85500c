//! Which shard owns which slot.
//!
//! Consistent hashing over fixed slots: a device's slot never changes ([`model::identity::slot`]),
//! and an explicit table says which shard owns each of the 16,384 slots, at which epoch.
//! Arrives: shards with weights. Leaves: the moves that bring the table to weighted balance.
//! Always holds: shares follow the weights by largest remainder; no plan moves more slots than
//! the new shares demand; the same table and weights give the same plan everywhere. Pure.

use model::identity::SLOTS;
use std::collections::BTreeMap;

/// A shard's name.
pub type Shard = String;

/// How often a slot has changed hands.
pub type Epoch = u64;

/// Why a table or plan cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Every slot needs an owner.
    #[error("there is no shard with a weight above 0: add one")]
    NoShards,
}

/// One slot's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Who owns it.
    pub owner: Shard,
    /// How often it has changed hands; who acts on an older epoch is fenced off.
    pub epoch: Epoch,
}

/// A slot that changes hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub slot: u16,
    /// From whom.
    pub from: Shard,
    /// To whom.
    pub to: Shard,
}

/// The owner of every slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    slots: Vec<Slot>,
}

impl Table {
    /// A first table over shards with weights.
    pub fn new(weights: &BTreeMap<Shard, u32>) -> Result<Self, PlacementError> {
        let mut slots = Vec::with_capacity(usize::from(SLOTS));
        for (shard, share) in shares(weights, &BTreeMap::new())? {
            slots.extend((0..share).map(|_| Slot { owner: shard.clone(), epoch: 1 }));
        }
        Ok(Table { slots })
    }

    /// A table as it was; `None` if that are not all slots.
    pub fn of_slots(slots: Vec<Slot>) -> Option<Self> {
        (slots.len() == usize::from(SLOTS)).then_some(Table { slots })
    }

    /// All slots, in their order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// A slot, to be changed.
    pub fn slot_mut(&mut self, slot: u16) -> &mut Slot {
        &mut self.slots[usize::from(slot)]
    }

    /// The slot's owner and epoch.
    pub fn slot(&self, slot: u16) -> &Slot {
        &self.slots[usize::from(slot)]
    }

    /// How many slots each shard owns.
    pub fn counts(&self) -> BTreeMap<Shard, usize> {
        let mut counts = BTreeMap::new();
        for slot in &self.slots {
            *counts.entry(slot.owner.clone()).or_default() += 1;
        }
        counts
    }

    /// The fewest moves that bring the table to these weights. A shard that is to be drained
    /// has weight 0 or is left out.
    pub fn plan(&self, weights: &BTreeMap<Shard, u32>) -> Result<Vec<Move>, PlacementError> {
        let counts = self.counts();
        let shares = shares(weights, &counts)?;
        let have = |shard: &Shard| counts.get(shard).copied().unwrap_or(0);
        let mut wanted = shares.iter().flat_map(|(shard, &share)| {
            let missing = share.saturating_sub(have(shard));
            std::iter::repeat_n(shard, missing)
        });
        let mut keep = shares.clone();
        let mut moves = Vec::new();
        for (slot, Slot { owner, .. }) in self.slots.iter().enumerate() {
            match keep.get_mut(owner) {
                Some(left) if *left > 0 => *left -= 1,
                _ => {
                    let to = wanted.next().expect("shares add up to all slots").clone();
                    moves.push(Move { slot: slot as u16, from: owner.clone(), to });
                }
            }
        }
        Ok(moves)
    }

    /// Carries a move out: the new owner, one epoch later.
    pub fn apply(&mut self, change: &Move) {
        let slot = &mut self.slots[usize::from(change.slot)];
        slot.owner.clone_from(&change.to);
        slot.epoch += 1;
    }
}

/// How many slots each shard is to own: by largest remainder, ties to who has more now, so
/// that rounding moves nothing needlessly, then by name.
fn shares(
    weights: &BTreeMap<Shard, u32>,
    counts: &BTreeMap<Shard, usize>,
) -> Result<BTreeMap<Shard, usize>, PlacementError> {
    let total: u64 = weights.values().map(|&weight| u64::from(weight)).sum();
    if total == 0 {
        return Err(PlacementError::NoShards);
    }
    let exact = |weight: u32| u64::from(SLOTS) * u64::from(weight);
    let mut shares: BTreeMap<Shard, usize> =
        weights.iter().map(|(shard, &weight)| (shard.clone(), (exact(weight) / total) as usize)).collect();
    let left = usize::from(SLOTS) - shares.values().sum::<usize>();
    let mut by_remainder: Vec<&Shard> = weights.keys().collect();
    by_remainder.sort_by_key(|shard| {
        let remainder = exact(weights[*shard]) % total;
        let has = counts.get(*shard).copied().unwrap_or(0);
        (std::cmp::Reverse(remainder), std::cmp::Reverse(has), *shard)
    });
    for shard in by_remainder.into_iter().take(left) {
        *shares.get_mut(shard).expect("a share for every weight") += 1;
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weights(list: &[(u8, u32)]) -> BTreeMap<Shard, u32> {
        list.iter().map(|(name, weight)| (format!("shard-{name}"), *weight)).collect()
    }

    #[test]
    fn two_equal_shards_own_half_each() {
        let table = Table::new(&weights(&[(0, 1), (1, 1)])).unwrap();
        assert!(table.counts().values().all(|&n| n == 8_192));
        assert_eq!(Table::new(&weights(&[(0, 0)])), Err(PlacementError::NoShards));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Adds, drains and new weights in any order: balance within one slot of the exact
        /// share, no more moves than the shares demand, and the same plan every time.
        #[test]
        fn any_change_ends_balanced_with_the_fewest_moves(
            steps in prop::collection::vec(prop::collection::btree_map(0..12_u8, 0..5_u32, 1..12), 1..6),
        ) {
            let mut table: Option<Table> = None;
            for step in steps {
                let weights = weights(&step.into_iter().collect::<Vec<_>>());
                let total: u32 = weights.values().sum();
                let Some(current) = &mut table else {
                    table = Table::new(&weights).ok();
                    continue;
                };
                if total == 0 {
                    prop_assert_eq!(current.plan(&weights), Err(PlacementError::NoShards));
                    continue;
                }
                let before = current.counts();
                let moves = current.plan(&weights).unwrap();
                prop_assert_eq!(&moves, &current.plan(&weights).unwrap());
                moves.iter().for_each(|change| current.apply(change));
                let after = current.counts();
                for (shard, &weight) in &weights {
                    let exact = f64::from(SLOTS) * f64::from(weight) / f64::from(total);
                    let has = after.get(shard).copied().unwrap_or(0) as f64;
                    prop_assert!((has - exact).abs() < 1.0, "{} has {} of {}", shard, has, exact);
                }
                let gained: usize = after.iter().map(|(shard, n)| n.saturating_sub(before.get(shard).copied().unwrap_or(0))).sum();
                prop_assert_eq!(moves.len(), gained);
                prop_assert!(moves.iter().all(|change| change.from != change.to));
            }
        }
    }
}
