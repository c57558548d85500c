//! A map that is older than its shards, or lost, is made anew from what they know.
//!
//! Arrives: the map, if there is one, and the fences of all shards. Leaves: a map in which every slot that the
//! shards know better belongs to whoever has it. Always holds: where the map is as young as the shards it stays
//! as it is; epochs rise, so that nothing that believes in another map can write. Pure.

use super::map::{Leftover, Map, Member, Placing};
use super::settle::is_ahead;
use super::shard::{Fence, Identity, State};
use model::Micros;
use model::identity::SLOTS;
use placement::{Slot, Table};
use std::collections::{BTreeMap, BTreeSet};

/// A shard as it describes itself.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// How it is reached.
    pub(super) member: Member,
    /// Whose it is.
    pub(super) identity: Identity,
    /// Its slots.
    pub(super) fences: Vec<Fence>,
}

/// A map made anew.
#[derive(Debug)]
pub(super) struct Rebuilt {
    /// The map.
    pub(super) map: Map,
    /// The slots that it says something else of.
    pub(super) slots: BTreeSet<u16>,
}

impl Rebuilt {
    /// What a shard has to be told of the slots that it knows.
    pub(super) fn fences(&self, found: &Found) -> Vec<Fence> {
        let known = found.fences.iter().filter(|fence| self.slots.contains(&fence.slot));
        let told = |fence: &Fence| {
            let Slot { owner, epoch } = self.map.table.slot(fence.slot);
            let state = if *owner == found.identity.shard { State::Open } else { State::Closed };
            Fence { slot: fence.slot, epoch: *epoch, state }
        };
        known.map(told).collect()
    }
}

/// The map that shards tell of; `placing` is only asked for where there is no map. With `none_missing` slots that no
/// shard has stay with whom the map gives them.
///
/// # Errors
/// What is missing, in words.
pub(super) fn rebuild(
    map: Option<&Map>,
    found: &[Found],
    placing: Placing,
    none_missing: bool,
    now_us: Micros,
) -> Result<Rebuilt, String> {
    let clouds: BTreeSet<&str> = found.iter().map(|shard| &*shard.identity.cloud).collect();
    let clouds: Vec<&str> = clouds.into_iter().collect();
    let [cloud] = clouds[..] else {
        return Err(format!(
            "the shards belong to {} clouds ({}): name only those of one",
            clouds.len(),
            clouds.join(", ")
        ));
    };
    let mut names = BTreeSet::new();
    if let Some(twice) = found.iter().find(|shard| !names.insert(&shard.identity.shard)) {
        return Err(format!("two places hold shard {}: name only the one that counts", twice.identity.shard));
    }
    let mut of_slots: BTreeMap<u16, Vec<(&str, Fence)>> = BTreeMap::new();
    for shard in found {
        for fence in &shard.fences {
            of_slots.entry(fence.slot).or_default().push((&shard.identity.shard, *fence));
        }
    }
    let (mut owners, mut changed, mut orphans, mut left) = (Vec::new(), BTreeSet::new(), 0, Vec::new());
    for slot in 0..SLOTS {
        let known = of_slots.get(&slot).map_or(&[][..], Vec::as_slice);
        let highest = known.iter().map(|(_, fence)| fence.epoch).max().unwrap_or(0);
        let before = map.map(|map| map.table.slot(slot));
        if let (Some(map), Some(of)) = (map, before)
            && !known.iter().any(|(shard, fence)| is_ahead(map, shard, fence))
        {
            owners.push(of.clone());
            continue;
        }
        let given = before.map(|of| of.owner.clone());
        let Some(owner) = owner(known, given.as_deref()).or_else(|| given.filter(|_| none_missing)) else {
            orphans += 1;
            continue;
        };
        changed.insert(slot);
        let epoch = highest.max(before.map_or(0, |of| of.epoch)) + 1;
        let others = known.iter().filter(|(shard, _)| *shard != owner);
        left.extend(others.map(|(shard, _)| Leftover { slot, shard: (*shard).into(), epoch, after_us: now_us }));
        owners.push(Slot { owner, epoch });
    }
    if orphans > 0 {
        return Err(format!(
            "nobody has {orphans} of {SLOTS} slots: name all shards of the cloud in cloud.shards, as NAME=URL; there are {}{}",
            names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", "),
            if map.is_some() { "; if these are all, say so with `--none-missing`" } else { "" }
        ));
    }
    let table = Table::of_slots(owners).ok_or("not all slots have an owner")?;
    let mut new = match map {
        Some(map) => Map { table, ..map.clone() },
        None => Map {
            cloud: cloud.to_owned(),
            placing,
            shards: BTreeMap::new(),
            table,
            transits: BTreeMap::new(),
            leftovers: Vec::new(),
            rebalancing: false,
            retired: Vec::new(),
        },
    };
    if new.cloud != cloud {
        return Err(format!(
            "the shards are cloud {cloud}'s, and the map is cloud {}'s: put the right map back, or, if this one was founded \
             when the right one was lost, remove it and try again",
            new.cloud
        ));
    }
    for shard in found {
        // All of them without a map; those that were added after one that was put back.
        new.shards.entry(shard.identity.shard.clone()).or_insert_with(|| shard.member.clone());
        new.retired.retain(|name| *name != shard.identity.shard);
    }
    new.transits.retain(|slot, _| !changed.contains(slot));
    new.leftovers.retain(|left| !changed.contains(&left.slot));
    new.leftovers.extend(left);
    Ok(Rebuilt { map: new, slots: changed })
}

/// Who has all of a slot: the one that reads it, of two the one that the map gives it to, or, behind a former owner that
/// has closed it, the one that has got all of it.
fn owner(known: &[(&str, Fence)], given: Option<&str>) -> Option<String> {
    let youngest = |states: &[State]| {
        let among = known.iter().filter(|(_, fence)| states.contains(&fence.state));
        among.max_by_key(|(shard, fence)| (fence.epoch, given == Some(shard))).map(|(shard, _)| (*shard).to_owned())
    };
    youngest(&[State::Open, State::Fenced]).or_else(|| youngest(&[State::Arrived]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use placement::Epoch;

    fn found(name: &str, fences: impl IntoIterator<Item = Fence>) -> Found {
        Found {
            member: Member { url: format!("sqlite:{name}.db"), weight: 1 },
            identity: Identity { cloud: "c".into(), shard: name.into() },
            fences: fences.into_iter().collect(),
        }
    }

    fn fence(slot: u16, epoch: Epoch, state: State) -> Fence {
        Fence { slot, epoch, state }
    }

    fn all(epoch: Epoch, state: State) -> impl Iterator<Item = Fence> {
        (0..SLOTS).map(move |slot| fence(slot, epoch, state))
    }

    #[test]
    fn a_lost_map_is_made_of_the_shards_fences() {
        let a = all(1, State::Open).map(|f| if f.slot < 9 { fence(f.slot, 3, State::Closed) } else { f });
        // In slot 8 the last step of a move is missing.
        let b = (0..9).map(|slot| if slot == 8 { fence(8, 2, State::Arrived) } else { fence(slot, 3, State::Open) });
        let shards = [found("a", a), found("b", b)];
        let map = rebuild(None, &shards, Placing::GatewayAndDevice, false, 5).unwrap().map;
        assert_eq!(map.table.counts(), BTreeMap::from([("a".into(), usize::from(SLOTS) - 9), ("b".into(), 9)]));
        assert_eq!((map.table.slot(0).epoch, map.table.slot(9).epoch), (4, 2), "above all that is known");
        assert_eq!(map.cloud, "c");
        let told = rebuild(None, &shards, Placing::GatewayAndDevice, false, 5).unwrap().fences(&shards[1]);
        assert_eq!((told.len(), told[8]), (9, fence(8, 4, State::Open)));
        let again = rebuild(Some(&map), &shards, Placing::GatewayAndDevice, false, 5).unwrap();
        assert_eq!((again.slots.len(), again.map), (0, map), "a map that is young enough stays");
    }

    #[test]
    fn an_older_map_takes_over_what_has_moved_since() {
        let weights = BTreeMap::from([("a".to_owned(), Member { url: "sqlite:a.db".into(), weight: 1 })]);
        let mut map = Map::new(weights).unwrap();
        map.cloud = "c".into();
        map.transits.insert(5, super::super::map::Transit { slot: 5, to: "b".into() });
        let a = all(1, State::Open).map(|f| if f.slot == 7 { fence(7, 3, State::Closed) } else { f });
        let a = a.map(|f| if f.slot == 5 { fence(5, 2, State::Closed) } else { f });
        let shards = [found("a", a), found("b", [fence(7, 3, State::Open), fence(5, 1, State::Arrived)])];
        let rebuilt = rebuild(Some(&map), &shards, Placing::GatewayAndDevice, false, 5).unwrap();
        assert_eq!((rebuilt.slots.len(), &*rebuilt.map.table.slot(7).owner), (1, "b"));
        assert!(rebuilt.map.transits.contains_key(&5), "the mover knows how that ends");
    }

    #[test]
    fn a_map_from_before_a_shard_was_added_is_not_enough_without_it() {
        let weights = BTreeMap::from([("a".to_owned(), Member { url: "sqlite:a.db".into(), weight: 1 })]);
        let mut map = Map::new(weights).unwrap();
        map.cloud = "c".into();
        let a = found("a", all(1, State::Open).map(|f| if f.slot < 7 { fence(f.slot, 3, State::Closed) } else { f }));
        let error = rebuild(Some(&map), std::slice::from_ref(&a), Placing::GatewayAndDevice, false, 5).unwrap_err();
        assert!(error.contains("nobody has 7 of 16384 slots"), "{error}");
        let b = found("b", (0..7).map(|slot| fence(slot, 3, State::Open)));
        let rebuilt = rebuild(Some(&map), &[a, b], Placing::GatewayAndDevice, false, 5).unwrap();
        assert_eq!((&*rebuilt.map.table.slot(6).owner, rebuilt.map.shards.len()), ("b", 2));
    }

    #[test]
    fn a_shard_of_another_time_is_brought_back() {
        let member = |name: &str| (name.to_owned(), Member { url: format!("sqlite:{name}.db"), weight: 1 });
        let mut map = Map::new(BTreeMap::from([member("a"), member("b")])).unwrap();
        map.cloud = "c".into();
        let own = |name: &str| {
            let slots = map.slots_of(name).into_iter();
            slots.map(|(slot, epoch)| fence(slot, epoch, State::Open)).collect::<Vec<_>>()
        };
        let (mut a, mut b) = (own("a"), own("b"));
        let [closed, twice, nobodys] = [a[0].slot, a[1].slot, a[2].slot];
        // Closed at the epoch of the map; open at two; closed by the only one that knows it.
        (a[0].state, a[2]) = (State::Closed, fence(nobodys, 3, State::Closed));
        b.extend([fence(closed, 2, State::Open), fence(twice, 1, State::Open)]);
        let shards = [found("a", a), found("b", b)];
        let ask = |none_missing| rebuild(Some(&map), &shards, Placing::GatewayAndDevice, none_missing, 5);
        let error = ask(false).unwrap_err();
        assert!(error.contains("nobody has 1 of 16384 slots") && error.ends_with("`--none-missing`"), "{error}");
        let rebuilt = ask(true).unwrap();
        let of = |slot| (&*rebuilt.map.table.slot(slot).owner, rebuilt.map.table.slot(slot).epoch);
        assert_eq!([of(closed), of(twice), of(nobodys)], [("b", 3), ("a", 2), ("a", 4)]);
        let told = |shard: &Found| rebuilt.fences(shard).iter().map(|f| f.state).collect::<Vec<_>>();
        assert_eq!(told(&shards[0]), [State::Closed, State::Open, State::Open]);
        assert_eq!(told(&shards[1]), [State::Open, State::Closed]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let half = all(1, State::Open).filter(|fence| fence.slot % 2 == 0);
        let error = rebuild(None, &[found("a", half)], Placing::GatewayAndDevice, false, 5).unwrap_err();
        assert!(error.contains("8192 of 16384 slots"), "{error}");
        let mut other = found("b", []);
        other.identity.cloud = "d".into();
        let error =
            rebuild(None, &[found("a", all(1, State::Open)), other], Placing::GatewayAndDevice, false, 5).unwrap_err();
        assert!(error.contains("2 clouds"), "{error}");
    }
}
