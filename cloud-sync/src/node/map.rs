//! Who owns which slot: the document that all daemons share.
//!
//! Always holds: it changes only by compare-and-set on its version, so two daemons never think
//! that both have changed it; a slot's epoch rises with every change of its owners.

use crate::placement::{Epoch, PlacementError, Shard, Slot, Table};
use model::Micros;
use model::identity::SLOTS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A shard as the map knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `sqlite:FILE`, relative to the data directory, or `postgres://...`.
    pub url: String,
    /// Its share of the slots among those of all; 0 drains it.
    pub weight: u32,
}

/// A slot on its way: the owner has it, and another gets a copy and every write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transit {
    /// Which.
    pub slot: u16,
    /// Where to.
    pub to: Shard,
}

/// What a former owner still has of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Which.
    pub slot: u16,
    /// Where.
    pub shard: Shard,
    /// It was closed there at this epoch.
    pub epoch: Epoch,
    /// It may be deleted then.
    pub after_us: Micros,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// All shards, by name.
    pub shards: BTreeMap<Shard, Member>,
    /// The owners.
    pub table: Table,
    /// Slots on their way, by slot.
    pub transits: BTreeMap<u16, Transit>,
    /// What is to be deleted.
    pub leftovers: Vec<Leftover>,
    /// Why slots are on their way, or shall be: the target of the last rebalance is being carried out.
    pub rebalancing: bool,
    /// Shards that were removed when they were empty: what gateways know of them is elsewhere.
    pub retired: Vec<Shard>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    shards: BTreeMap<Shard, Member>,
    /// Slots in a row with the same owner and epoch: how many, who, which.
    slots: Vec<(usize, Shard, Epoch)>,
    transits: Vec<Transit>,
    leftovers: Vec<Leftover>,
    rebalancing: bool,
    #[serde(default)]
    retired: Vec<Shard>,
}

/// Why a text is no map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not the document.
    #[error("the map cannot be read: {0}; was it written by a newer tidegate-cloud?")]
    Document(String),
    /// Not all slots.
    #[error("the map has {0} slots instead of {SLOTS}")]
    Slots(usize),
}

impl Map {
    /// A first map: slots are spread over shards by their weights.
    pub fn new(shards: BTreeMap<Shard, Member>) -> Result<Self, PlacementError> {
        let table = Table::new(&weights(&shards))?;
        Ok(Map {
            shards,
            table,
            transits: BTreeMap::new(),
            leftovers: Vec::new(),
            rebalancing: false,
            retired: Vec::new(),
        })
    }

    /// All shards that gateways need not be told of: those that there are, and those that were empty when they went.
    pub fn members(&self) -> Vec<Shard> {
        self.shards.keys().chain(&self.retired).cloned().collect()
    }

    /// Shares of the shards.
    pub fn weights(&self) -> BTreeMap<Shard, u32> {
        weights(&self.shards)
    }

    /// The slots of a shard, with their epochs.
    pub fn slots_of(&self, shard: &str) -> Vec<(u16, Epoch)> {
        let owned = |(slot, of): (usize, &Slot)| (of.owner == shard).then_some((slot as u16, of.epoch));
        self.table.slots().iter().enumerate().filter_map(owned).collect()
    }

    /// As text.
    pub fn to_text(&self) -> String {
        let mut slots: Vec<(usize, Shard, Epoch)> = Vec::new();
        for slot in self.table.slots() {
            match slots.last_mut() {
                Some((many, owner, epoch)) if *owner == slot.owner && *epoch == slot.epoch => *many += 1,
                _ => slots.push((1, slot.owner.clone(), slot.epoch)),
            }
        }
        let document = Document {
            shards: self.shards.clone(),
            slots,
            transits: self.transits.values().cloned().collect(),
            leftovers: self.leftovers.clone(),
            rebalancing: self.rebalancing,
            retired: self.retired.clone(),
        };
        serde_json::to_string(&document).expect("a document of names and numbers is JSON")
    }

    /// From text.
    pub fn of_text(text: &str) -> Result<Self, MapError> {
        let document: Document = serde_json::from_str(text).map_err(|e| MapError::Document(e.to_string()))?;
        let run = |(many, owner, epoch): (usize, Shard, Epoch)| {
            std::iter::repeat_n(Slot { owner, epoch }, many.min(usize::from(SLOTS) + 1))
        };
        let slots: Vec<Slot> = document.slots.into_iter().flat_map(run).collect();
        let many = slots.len();
        Ok(Map {
            shards: document.shards,
            table: Table::of_slots(slots).ok_or(MapError::Slots(many))?,
            transits: document.transits.into_iter().map(|transit| (transit.slot, transit)).collect(),
            leftovers: document.leftovers,
            rebalancing: document.rebalancing,
            retired: document.retired,
        })
    }
}

fn weights(shards: &BTreeMap<Shard, Member>) -> BTreeMap<Shard, u32> {
    shards.iter().map(|(name, member)| (name.clone(), member.weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_comes_back_from_its_text() {
        let member = |n: u32| (format!("s{n}"), Member { url: format!("sqlite:s{n}.db"), weight: n + 1 });
        let mut map = Map::new((0..3).map(member).collect()).unwrap();
        let plan = map.table.plan(&BTreeMap::from([("s0".into(), 1), ("s2".into(), 1)])).unwrap();
        plan.iter().take(500).for_each(|change| map.table.apply(change));
        map.transits.insert(7, Transit { slot: 7, to: "s2".into() });
        map.leftovers.push(Leftover { slot: 9, shard: "s1".into(), epoch: 3, after_us: 5 });
        assert_eq!(Map::of_text(&map.to_text()), Ok(map));
        assert!(Map::of_text("{}").is_err());
    }
}
