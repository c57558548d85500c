//! Who gets what: subscriptions and fan-out.
//!
//! Arrives: subscriptions, and publications whose commit is on disk. Leaves: messages in the
//! outboxes of subscribers. Always holds: devices wait, subscribers do not make them wait; a
//! client gets a message once, at the highest QoS of its matching filters; what is unsubscribed
//! leaves nothing behind; topics that start with `$` match no leading wildcard (section 4.7.2).
//! Deliberately absent: sockets.

use super::connection::Connection;
use super::retained::Publication;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// One filter of one client.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    /// Whose.
    pub to: Arc<Connection>,
    /// The highest QoS to deliver.
    pub qos: u8,
    /// Not what the client itself publishes.
    pub no_local: bool,
    /// Keep the retain flag as published.
    pub retain_as_published: bool,
    /// MQTT 5 subscription identifier.
    pub id: Option<u32>,
}

/// A delivery: a message's way to one client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delivery {
    /// 0 or 1.
    pub qos: u8,
    /// The retain flag to send.
    pub retain: bool,
    /// Identifiers of the subscriptions that matched.
    pub ids: SmallVec<[u32; 2]>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node, RandomState>,
    any: Option<Box<Node>>,
    /// Subscribers of the filter that ends here, by connection.
    here: HashMap<u64, Subscription, RandomState>,
    /// Subscribers of the filter that goes on with `#`.
    below: HashMap<u64, Subscription, RandomState>,
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Router {
    root: RwLock<Node>,
    subscriptions: AtomicUsize,
}

impl Router {
    /// True if anybody subscribes to anything: messages need not be copied otherwise.
    pub(crate) fn has_subscribers(&self) -> bool {
        self.subscription_count() > 0
    }

    /// How many subscriptions there are.
    pub(crate) fn subscription_count(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// Adds or replaces a subscription; true if it is new.
    pub(crate) fn subscribe(&self, filter: &str, subscription: Subscription) -> bool {
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
        let client = subscription.to.id;
        let new = slot(&mut root, filter).insert(client, subscription).is_none();
        if new {
            self.subscriptions.fetch_add(1, Ordering::Relaxed);
        }
        new
    }

    /// Removes a subscription; true if there was one.
    pub(crate) fn unsubscribe(&self, filter: &str, client: u64) -> bool {
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
        let levels: Vec<&str> = filter.split('/').collect();
        let found = remove(&mut root, &levels, client);
        if found {
            self.subscriptions.fetch_sub(1, Ordering::Relaxed);
        }
        found
    }

    /// Puts a message into the outboxes of all who want it. Connections whose outbox was empty are added to `touched`, to be flushed together.
    pub(crate) fn publish(&self, publication: &Arc<Publication>, touched: &mut Vec<Arc<Connection>>) {
        if !self.has_subscribers() {
            return;
        }
        let mut found = Found::default();
        {
            let root = self.root.read().unwrap_or_else(PoisonError::into_inner);
            let levels: SmallVec<[&str; 8]> = publication.topic.split('/').collect();
            let dollar = publication.topic.starts_with('$');
            find(&root, &levels, dollar, &mut |subscription| found.note(subscription, publication));
        }
        for (to, delivery) in found.all {
            if to.send_publication(publication, &delivery) {
                touched.push(to);
            }
        }
    }
}

/// Who wants a message, each once.
#[derive(Default)]
struct Found {
    all: SmallVec<[(Arc<Connection>, Delivery); 8]>,
    /// Places by connection, once there are many.
    places: HashMap<u64, usize, RandomState>,
}

/// So many are looked through one by one.
const FEW: usize = 16;

impl Found {
    fn note(&mut self, subscription: &Subscription, publication: &Publication) {
        let to = &subscription.to;
        if subscription.no_local && publication.from == to.id {
            return;
        }
        let at = self.place(to);
        let delivery = &mut self.all[at].1;
        delivery.qos = delivery.qos.max(subscription.qos.min(publication.qos));
        delivery.retain |= subscription.retain_as_published && publication.retain;
        delivery.ids.extend(subscription.id);
    }

    fn place(&mut self, to: &Arc<Connection>) -> usize {
        let known = if self.all.len() <= FEW {
            self.all.iter().position(|(known, _)| known.id == to.id)
        } else {
            if self.places.is_empty() {
                self.places.extend(self.all.iter().enumerate().map(|(at, (known, _))| (known.id, at)));
            }
            self.places.get(&to.id).copied()
        };
        known.unwrap_or_else(|| {
            let at = self.all.len();
            self.all.push((Arc::clone(to), Delivery::default()));
            if !self.places.is_empty() {
                self.places.insert(to.id, at);
            }
            at
        })
    }
}

type Subscribers = HashMap<u64, Subscription, RandomState>;

fn slot<'a>(root: &'a mut Node, filter: &str) -> &'a mut Subscribers {
    let mut node = root;
    for level in filter.split('/') {
        match level {
            "#" => return &mut node.below,
            "+" => node = node.any.get_or_insert_default(),
            name => node = node.children.entry(name.into()).or_default(),
        }
    }
    &mut node.here
}

fn remove(node: &mut Node, levels: &[&str], client: u64) -> bool {
    match levels {
        [] => node.here.remove(&client).is_some(),
        ["#", ..] => node.below.remove(&client).is_some(),
        ["+", rest @ ..] => {
            let Some(any) = &mut node.any else { return false };
            let found = remove(any, rest, client);
            if any.is_empty() {
                node.any = None;
            }
            found
        }
        [name, rest @ ..] => {
            let Some(child) = node.children.get_mut(*name) else { return false };
            let found = remove(child, rest, client);
            if child.is_empty() {
                node.children.remove(*name);
            }
            found
        }
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any.is_none() && self.here.is_empty() && self.below.is_empty()
    }
}

/// Calls `each` with every subscription whose filter matches; `dollar` at the first level only.
fn find(node: &Node, levels: &[&str], dollar: bool, each: &mut impl FnMut(&Subscription)) {
    if !dollar {
        node.below.values().for_each(&mut *each);
    }
    match levels {
        [] => node.here.values().for_each(each),
        [name, rest @ ..] => {
            if let Some(any) = node.any.as_ref().filter(|_| !dollar) {
                find(any, rest, false, each);
            }
            if let Some(child) = node.children.get(*name) {
                find(child, rest, false, each);
            }
        }
    }
}

/// True if `filter` matches `topic`.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (name, Some(got)) if name == got => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter() -> impl Strategy<Value = String> {
        prop_oneof![Just("#".to_owned()), "(a|b|\\+|\\$s)(/(a|b|\\+|)){0,3}(/#)?"]
    }

    fn found(router: &Router, topic: &str) -> Vec<u64> {
        let root = router.root.read().unwrap();
        let levels: Vec<&str> = topic.split('/').collect();
        let mut ids = Vec::new();
        find(&root, &levels, topic.starts_with('$'), &mut |s| ids.push(s.to.id));
        ids.sort_unstable();
        ids
    }

    #[test]
    fn filters_match_as_section_4_7_shows() {
        for (filter, topic, want) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/broker", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/broker", true),
        ] {
            assert_eq!(matches(filter, topic), want, "{filter} {topic}");
        }
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_matching_one_by_one_finds_and_unsubscribing_leaves_nothing(
            filters in prop::collection::btree_set(filter(), 1..12),
            topic in "(a|b|\\$s)(/(a|b|)){0,3}",
        ) {
            let router = Router::default();
            let filters: Vec<String> = filters.into_iter().collect();
            for (i, filter) in filters.iter().enumerate() {
                let to = Arc::new(Connection::for_test(i as u64));
                let subscription = Subscription { to, qos: 0, no_local: false, retain_as_published: false, id: None };
                prop_assert!(router.subscribe(filter, subscription));
            }
            let want: Vec<u64> =
                (0..filters.len()).filter(|&i| matches(&filters[i], &topic)).map(|i| i as u64).collect();
            prop_assert_eq!(found(&router, &topic), want);
            for (i, filter) in filters.iter().enumerate() {
                prop_assert!(router.unsubscribe(filter, i as u64));
                prop_assert!(!router.unsubscribe(filter, i as u64));
            }
            prop_assert!(router.root.read().unwrap().is_empty());
            prop_assert!(!router.has_subscribers());
        }
    }
}
