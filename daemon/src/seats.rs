//! Connections at once, and no address with more than its share of them.
//!
//! Arrives: addresses. Leaves: a [`Seat`] for each that may come in, held as long as it stays. Always holds:
//! an address has at most as many as are free, so that there is always room for another; an IPv6 network of 64
//! bits counts as one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many any address may have, whatever is free.
const FEW: usize = 16;

/// All seats.
#[derive(Debug)]
pub struct Seats {
    taken: Mutex<Taken>,
    most: usize,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A seat, free again when it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    /// So many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Seats { taken: Mutex::default(), most })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for whoever comes from there, if there is one.
    pub fn take(self: &Arc<Self>, from: IpAddr) -> Option<Seat> {
        let address = of_network(from);
        let mut taken = self.taken();
        let free = self.most.saturating_sub(taken.total);
        let own = taken.by_address.get(&address).copied().unwrap_or_default();
        if free == 0 || (own >= FEW && own >= free) {
            return None;
        }
        taken.total += 1;
        *taken.by_address.entry(address).or_default() += 1;
        Some(Seat { seats: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        taken.total -= 1;
        if let Some(own) = taken.by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: IPv4's own, of IPv6 the network of 64 bits (RFC 4291: hosts have the other half).
fn of_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

/// A client that gives no name, by its address.
pub fn address_name(address: IpAddr) -> String {
    match of_network(address) {
        IpAddr::V4(address) => format!("address {address}"),
        IpAddr::V6(network) => format!("addresses {network}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_seats_for_others() {
        let seats = Seats::new(100);
        let take = |address: &str| seats.take(address.parse().unwrap());
        let hog: Vec<Seat> = std::iter::from_fn(|| take("10.0.0.1")).collect();
        assert_eq!(hog.len(), 50);
        let hosts: Vec<Seat> = (0..40).filter_map(|host| take(&format!("2001:db8::{host}"))).collect();
        assert_eq!(hosts.len(), 25);
        assert!(take("10.0.0.2").is_some());
        drop(hog);
        assert!(take("10.0.0.1").is_some());
    }
}
