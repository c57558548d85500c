//! Where devices come to lie: the real slots and the real placement.
//!
//! Arrives: how many gateways and devices, how many shards. Leaves: how even it is, what moves,
//! and how many shards a gateway touches. Pure.

use super::fleet::name;
use model::identity::{SLOTS, slot};
use placement::{PlacementError, Shard, Table};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The slots of all devices.
#[derive(Debug)]
pub(super) struct Placed {
    devices: u32,
    slots: Vec<u16>,
}

/// How even so many shards are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Evenness {
    /// Devices of the fullest shard beside the average.
    pub(super) peak: f64,
    /// Slots that one more shard moves.
    pub(super) moved: usize,
    /// Slots that it has to own, so that all own the same.
    pub(super) least: usize,
}

fn weights(shards: u32) -> BTreeMap<Shard, u32> {
    (0..shards).map(|n| (format!("shard-{n:05}"), 1)).collect()
}

/// The shard of each slot, by number.
fn owners(shards: u32) -> Result<Vec<u32>, PlacementError> {
    let numbers: BTreeMap<Shard, u32> = weights(shards).into_keys().zip(0..).collect();
    Ok(Table::new(&weights(shards))?.slots().iter().map(|slot| numbers[&slot.owner]).collect())
}

impl Placed {
    pub(super) fn new(gateways: u32, devices: u32) -> Self {
        let mut slots = Vec::with_capacity(gateways as usize * devices as usize);
        let mut id = String::new();
        for gateway in (0..gateways).map(name) {
            for device in 0..devices {
                id.clear();
                let _ = write!(id, "sensor-{device:05}");
                slots.push(slot(&gateway, &id));
            }
        }
        Placed { devices, slots }
    }

    pub(super) fn evenness(&self, shards: u32) -> Result<Evenness, PlacementError> {
        let owners = owners(shards)?;
        let mut counts = vec![0_u64; shards as usize];
        self.slots.iter().for_each(|&slot| counts[owners[usize::from(slot)] as usize] += 1);
        let fullest = counts.iter().max().copied().unwrap_or(0) as f64;
        let moved = Table::new(&weights(shards))?.plan(&weights(shards + 1))?.len();
        let average = self.slots.len() as f64 / f64::from(shards);
        Ok(Evenness { peak: fullest / average, moved, least: usize::from(SLOTS) / (shards as usize + 1) })
    }

    /// How many of the shards a gateway has devices in, as a share of all, on average: the share of
    /// gateways that one shard of them holds up.
    pub(super) fn touching(&self, shards: u32) -> Result<f64, PlacementError> {
        let owners = owners(shards)?;
        let (mut seen, mut touched, mut gateways) = (vec![usize::MAX; shards as usize], 0_u64, 0);
        for (gateway, slots) in self.slots.chunks(self.devices as usize).enumerate() {
            for &slot in slots {
                let owner = owners[usize::from(slot)] as usize;
                touched += u64::from(seen[owner] != gateway);
                seen[owner] = gateway;
            }
            gateways += 1;
        }
        Ok(touched as f64 / f64::from(shards) / f64::from(gateways))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_lie_evenly_and_one_more_shard_moves_its_share() {
        let placed = Placed::new(100, 1_000);
        let Evenness { peak, moved, least } = placed.evenness(7).unwrap();
        assert!((1.0..1.05).contains(&peak), "{peak}");
        assert_eq!((moved, least), (2_048, 2_048));
    }

    #[test]
    fn a_gateway_touches_nearly_every_shard() {
        let placed = Placed::new(20, 1_000);
        assert_eq!(placed.touching(8), Ok(1.0));
        let (of_many, expected) = (placed.touching(1_000).unwrap(), 1.0 - (1.0 - 1e-3_f64).powi(1_000));
        assert!((of_many - expected).abs() < 0.02, "{of_many} instead of {expected}");
    }
}
