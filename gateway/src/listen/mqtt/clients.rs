//! Who is connected, and what is remembered of those who come back.
//!
//! Always holds: one connection serves a client at a time: a second one closes the first
//! (section 3.1.4) and waits until it has left everything behind, its will and its QoS 2
//! identifiers; identifiers of clients that are away are bounded, the longest away is
//! forgotten first.

use super::connection::Connection;
use super::packet::reason;
use crate::listen::lock;
use daemon::auth::{Auth, User};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{Mutex as Chair, OwnedMutexGuard};

/// QoS 2 identifiers that are stored and not released, with a hash of their message.
pub(super) type Identifiers = HashMap<u16, u64>;

/// Clients by id.
#[derive(Debug)]
pub(crate) struct Clients {
    seats: Mutex<Seats>,
    away_max: usize,
}

#[derive(Debug, Default)]
struct Seats {
    by_client: HashMap<Arc<str>, Seat>,
    away: usize,
    departures: u64,
}

#[derive(Debug, Default)]
struct Seat {
    /// The latest connection of the client.
    current: Option<Arc<Connection>>,
    /// Whose client it is, as long as somebody is connected or its identifiers are kept.
    user: Option<Owner>,
    /// Held by the connection that serves the client.
    chair: Arc<Chair<()>>,
    /// Of a client that is away.
    inbound: Identifiers,
    left: u64,
}

/// A user, and what his credentials were when he came in.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// His name.
    pub(super) name: Arc<str>,
    /// What the users file said of him.
    pub(super) stored: Option<User>,
}

/// Why a client is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotServed {
    /// Its connection was closed meanwhile.
    Closed,
    /// Another user's client is called like that.
    Taken,
}

/// A client that waits for its turn: should nobody wait for it any more, it leaves nothing behind.
struct Entering<'a> {
    clients: &'a Clients,
    client: &'a Arc<str>,
    connection: &'a Arc<Connection>,
    is_done: bool,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.clients.leave(self.client, self.connection, None);
        }
    }
}

/// The right to serve a client.
pub(super) type Seated = OwnedMutexGuard<()>;

impl Clients {
    /// Clients that are away but have identifiers in the store; at most `away_max` are kept.
    pub(crate) fn restore(inbound: HashMap<Arc<str>, HashMap<u16, u64>>, away_max: usize) -> Self {
        let away = inbound.len();
        let seat = |inbound| Seat { inbound, ..Seat::default() };
        let by_client = inbound.into_iter().map(|(client, inbound)| (client, seat(inbound))).collect();
        Clients { seats: Mutex::new(Seats { by_client, away, departures: 0 }), away_max }
    }

    /// A client has connected; a connection that it has already is closed and waited for.
    /// A client belongs to the user who came with it.
    pub(super) async fn enter(
        &self,
        client: &Arc<str>,
        user: Option<Owner>,
        connection: &Arc<Connection>,
    ) -> Result<(Seated, Identifiers), NotServed> {
        let (chair, old) = {
            let mut seats = lock(&self.seats);
            let seat = seats.by_client.entry(Arc::clone(client)).or_default();
            let name = |user: &Option<Owner>| user.as_ref().map(|user| Arc::clone(&user.name));
            if seat.current.is_some() && name(&seat.user) != name(&user) {
                return Err(NotServed::Taken);
            }
            seat.user = user;
            (Arc::clone(&seat.chair), seat.current.replace(Arc::clone(connection)))
        };
        if let Some(old) = old {
            old.close(reason::TAKEN_OVER);
        }
        let mut entering = Entering { clients: self, client, connection, is_done: false };
        let seated = chair.lock_owned();
        tokio::pin!(seated);
        let seated = loop {
            let woken = connection.woken();
            if connection.closing().is_some() {
                return Err(NotServed::Closed);
            }
            tokio::select! {
                seated = seated.as_mut() => break seated,
                () = woken => {}
            }
        };
        let mut seats = lock(&self.seats);
        let inbound = seats.by_client.get_mut(client).map(|seat| std::mem::take(&mut seat.inbound)).unwrap_or_default();
        seats.away -= usize::from(!inbound.is_empty());
        drop(seats);
        entering.is_done = true;
        Ok((seated, inbound))
    }

    /// Ends the connections of users who are gone, or whose credentials are others now.
    pub(crate) fn end_strangers(&self, auth: &Auth) {
        for seat in lock(&self.seats).by_client.values() {
            let (Some(user), Some(connection)) = (&seat.user, &seat.current) else { continue };
            if auth.stored(&user.name) != user.stored {
                connection.close(reason::NOT_AUTHORIZED);
            }
        }
    }

    /// A connection is over; `seated` if it served the client, whose identifiers are kept.
    /// Returns a client that is to be forgotten because too many are away.
    pub(super) fn leave(
        &self,
        client: &Arc<str>,
        connection: &Connection,
        seated: Option<(Seated, Identifiers)>,
    ) -> Option<Arc<str>> {
        let mut seats = lock(&self.seats);
        let Seats { by_client, away, departures } = &mut *seats;
        let seat = by_client.get_mut(client)?;
        if seat.current.as_ref().is_some_and(|current| current.id == connection.id) {
            seat.current = None;
        }
        if let Some((seated, inbound)) = seated {
            drop(seated);
            *departures += 1;
            *away += usize::from(!inbound.is_empty());
            seat.left = *departures;
            seat.inbound = inbound;
        }
        let unused = seat.current.is_none() && seat.inbound.is_empty() && Arc::strong_count(&seat.chair) == 1;
        if unused {
            by_client.remove(client);
        }
        if *away <= self.away_max {
            return None;
        }
        let gone = |(_, seat): &(&Arc<str>, &Seat)| seat.current.is_none() && !seat.inbound.is_empty();
        let longest =
            by_client.iter().filter(gone).min_by_key(|(_, seat)| seat.left).map(|(client, _)| client.clone())?;
        by_client.remove(&longest);
        *away -= 1;
        Some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[tokio::test]
    async fn a_second_connection_waits_for_what_the_first_leaves_behind() {
        let clients = Arc::new(Clients::restore(HashMap::new(), 10));
        let (first, second) = (Arc::new(Connection::for_test(1)), Arc::new(Connection::for_test(2)));
        let (seated, _) = clients.enter(&name("a"), None, &first).await.unwrap();
        let waiting = tokio::spawn({
            let (clients, second) = (Arc::clone(&clients), Arc::clone(&second));
            async move { clients.enter(&name("a"), None, &second).await.unwrap().1 }
        });
        while first.closing().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(first.closing(), Some(reason::TAKEN_OVER));
        assert!(!waiting.is_finished());
        clients.leave(&name("a"), &first, Some((seated, Identifiers::from([(7, 70)]))));
        assert_eq!(waiting.await.unwrap(), Identifiers::from([(7, 70)]));
    }

    #[tokio::test]
    async fn a_client_belongs_to_the_user_who_came_with_it() {
        let clients = Clients::restore(HashMap::new(), 10);
        let owner = |text: &str| Some(Owner { name: name(text), stored: None });
        let (first, second) = (Arc::new(Connection::for_test(1)), Arc::new(Connection::for_test(2)));
        let _seated = clients.enter(&name("a"), owner("ann"), &first).await.unwrap();
        assert_eq!(clients.enter(&name("a"), owner("bob"), &second).await.unwrap_err(), NotServed::Taken);
        assert_eq!(first.closing(), None);
        clients.end_strangers(&Auth::new(daemon::auth::Users::default()));
        assert_eq!(first.closing(), None, "nothing has changed for her");
        let mut users = daemon::auth::Users::default();
        users.set_password("ann", b"new").unwrap();
        clients.end_strangers(&Auth::new(users));
        assert_eq!(first.closing(), Some(reason::NOT_AUTHORIZED));
    }

    #[tokio::test]
    async fn one_that_is_closed_while_it_waits_gives_up() {
        let clients = Clients::restore(HashMap::new(), 10);
        let (first, second) = (Arc::new(Connection::for_test(1)), Arc::new(Connection::for_test(2)));
        let (seated, _) = clients.enter(&name("a"), None, &first).await.unwrap();
        second.close(reason::KEEP_ALIVE);
        assert!(clients.enter(&name("a"), None, &second).await.is_err());
        clients.leave(&name("a"), &second, None);
        clients.leave(&name("a"), &first, Some((seated, Identifiers::new())));
        assert!(lock(&clients.seats).by_client.is_empty());
    }

    #[tokio::test]
    async fn the_longest_away_is_forgotten_first() {
        let clients = Clients::restore(HashMap::new(), 2);
        let mut forgotten = Vec::new();
        for (id, client) in [(1, "a"), (2, "b"), (3, "c")] {
            let connection = Arc::new(Connection::for_test(id));
            let (seated, _) = clients.enter(&name(client), None, &connection).await.unwrap();
            forgotten.extend(clients.leave(&name(client), &connection, Some((seated, Identifiers::from([(1, 1)])))));
        }
        assert_eq!(forgotten, [name("a")]);
    }
}
