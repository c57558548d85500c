//! Who owns which slot: the document that all daemons share.
//!
//! Always holds: it changes only by compare-and-set on its version, so two daemons never think
//! that both have changed it; a slot's epoch rises with every change of its owners.

use super::shard::Identity;
use model::Micros;
use model::identity::{SLOTS, slot, slot_of_device};
use placement::{Epoch, PlacementError, Shard, Slot, Table};
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
pub(crate) struct Transit {
    /// Which.
    pub slot: u16,
    /// Where to.
    pub to: Shard,
}

/// What a former owner still has of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leftover {
    /// Which.
    pub slot: u16,
    /// Where.
    pub shard: Shard,
    /// It was closed there at this epoch.
    pub epoch: Epoch,
    /// It may be deleted then.
    pub after_us: Micros,
}

/// What decides a device's slot; fixed when a cloud is founded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Placing {
    /// Its gateway and its id.
    GatewayAndDevice,
    /// Its id alone, in clouds that were founded by version 0.1.
    Device,
}

impl Placing {
    /// The slot of a gateway's device.
    pub(crate) fn slot(self, gateway: &str, device: &str) -> u16 {
        match self {
            Placing::GatewayAndDevice => slot(gateway, device),
            Placing::Device => slot_of_device(device),
        }
    }

    /// The slot that a gateway itself is at.
    pub(crate) fn slot_of_gateway(self, gateway: &str) -> u16 {
        match self {
            Placing::GatewayAndDevice => slot(gateway, ""),
            Placing::Device => slot_of_device(gateway),
        }
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// The cloud's id, random, of its founding; its shards know it too.
    pub cloud: String,
    /// What decides a device's slot.
    pub placing: Placing,
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

/// The document's version: one that is higher, or has another shape, is left alone.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Document {
    /// Missing in the first version, which calls the owners `slots`, so that a daemon of that version leaves this alone.
    #[serde(default = "first_format")]
    format: u32,
    /// Empty until a daemon of this version has written the map.
    #[serde(default)]
    cloud: String,
    #[serde(default = "Document::placing")]
    placing: Placing,
    shards: BTreeMap<Shard, Member>,
    /// Slots in a row with the same owner and epoch: how many, who, which.
    #[serde(alias = "slots")]
    owners: Vec<(usize, Shard, Epoch)>,
    transits: Vec<Transit>,
    leftovers: Vec<Leftover>,
    rebalancing: bool,
    #[serde(default)]
    retired: Vec<Shard>,
}

fn first_format() -> u32 {
    1
}

impl Document {
    fn placing() -> Placing {
        Placing::Device
    }
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
    pub(crate) fn new(shards: BTreeMap<Shard, Member>) -> Result<Self, PlacementError> {
        let table = Table::new(&weights(&shards))?;
        Ok(Map {
            cloud: format!("{:016x}", rand::random::<u64>()),
            placing: Placing::GatewayAndDevice,
            shards,
            table,
            transits: BTreeMap::new(),
            leftovers: Vec::new(),
            rebalancing: false,
            retired: Vec::new(),
        })
    }

    /// Who a shard has to be.
    pub(crate) fn identity(&self, shard: &str) -> Identity {
        Identity { cloud: self.cloud.clone(), shard: shard.to_owned() }
    }

    /// All shards that gateways need not be told of: those that there are, and those that were empty when they went.
    pub(crate) fn members(&self) -> Vec<Shard> {
        self.shards.keys().chain(&self.retired).cloned().collect()
    }

    /// Shares of the shards.
    pub(crate) fn weights(&self) -> BTreeMap<Shard, u32> {
        weights(&self.shards)
    }

    /// The slots of a shard, with their epochs.
    pub(crate) fn slots_of(&self, shard: &str) -> Vec<(u16, Epoch)> {
        let owned = |(slot, of): (usize, &Slot)| (of.owner == shard).then_some((slot as u16, of.epoch));
        self.table.slots().iter().enumerate().filter_map(owned).collect()
    }

    /// As text.
    pub(crate) fn to_text(&self) -> String {
        let mut owners: Vec<(usize, Shard, Epoch)> = Vec::new();
        for slot in self.table.slots() {
            match owners.last_mut() {
                Some((many, owner, epoch)) if *owner == slot.owner && *epoch == slot.epoch => *many += 1,
                _ => owners.push((1, slot.owner.clone(), slot.epoch)),
            }
        }
        let document = Document {
            format: FORMAT,
            cloud: self.cloud.clone(),
            placing: self.placing,
            shards: self.shards.clone(),
            owners,
            transits: self.transits.values().cloned().collect(),
            leftovers: self.leftovers.clone(),
            rebalancing: self.rebalancing,
            retired: self.retired.clone(),
        };
        serde_json::to_string(&document).expect("a document of names and numbers is JSON")
    }

    /// From text.
    pub(crate) fn of_text(text: &str) -> Result<Self, MapError> {
        let document: Document = serde_json::from_str(text).map_err(|e| MapError::Document(e.to_string()))?;
        if document.format > FORMAT {
            return Err(MapError::Document(format!("its format is {}, this build knows {FORMAT}", document.format)));
        }
        let run = |(many, owner, epoch): (usize, Shard, Epoch)| {
            std::iter::repeat_n(Slot { owner, epoch }, many.min(usize::from(SLOTS) + 1))
        };
        let slots: Vec<Slot> = document.owners.into_iter().flat_map(run).collect();
        let many = slots.len();
        Ok(Map {
            cloud: document.cloud,
            placing: document.placing,
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
        assert!(
            Map::of_text(&Map::new((0..3).map(member).collect()).unwrap().to_text().replace(":2,", ":3,")).is_err()
        );
    }

    #[test]
    fn a_cloud_that_was_founded_by_the_first_version_keeps_its_slots() {
        let text = r#"{"shards":{"s0":{"url":"sqlite:s0.db","weight":1}},"slots":[[16384,"s0",1]],"transits":[],
            "leftovers":[],"rebalancing":false}"#;
        let map = Map::of_text(text).unwrap();
        assert_eq!((map.placing, map.placing.slot("any", "dev-1")), (Placing::Device, 6_255));
        assert_eq!(Map::of_text(&map.to_text()), Ok(map), "also when it has been written again");
    }
}
