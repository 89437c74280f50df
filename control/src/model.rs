//! What the shared tables should hold, as a plain ordered map: the compiler's output, the publisher's
//! input, and the oracle of the tests.

use fairway_tables::{
    Endpoint, Group, Ip, Masquerade, Neighbour, NeighbourKey, NextHop, Port, PortId, Prefix, Service,
    ServiceKey, Settings, Targets, Tunnel,
};
use std::collections::BTreeMap;

/// Key of one entry, over all tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// The node's settings.
    Settings,
    /// Whose sources are translated.
    Masquerade,
    /// A port.
    Port(PortId),
    /// A neighbour on a port.
    Neighbour(NeighbourKey),
    /// The tunnel to a remote node.
    Tunnel(Ip),
    /// A pod's address on this node.
    Endpoint(Ip),
    /// A service port.
    Service(ServiceKey),
    /// A route.
    Route(Prefix),
}

/// Value of one entry; its variant always is its key's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// The node's settings.
    Settings(Settings),
    /// Whose sources are translated.
    Masquerade(Box<Masquerade>),
    /// A port.
    Port(Port),
    /// A neighbour on a port.
    Neighbour(Neighbour),
    /// The tunnel to a remote node.
    Tunnel(Tunnel),
    /// A pod's address on this node.
    Endpoint(Endpoint),
    /// A service port and what it leads to; backends sorted, without repeats.
    Service(Service, Targets),
    /// A route with one next hop.
    Route(NextHop),
    /// A route with several next hops.
    Paths(Box<Group>),
}

/// Everything that the tables should hold.
pub type Model = BTreeMap<Key, Value>;

/// A change of one entry: its new value, or `None` to delete it.
pub type Change = (Key, Option<Value>);

/// The changes that turn `from` into `to`; nothing for entries that are equal.
pub fn diff(from: &Model, to: &Model) -> Vec<Change> {
    let gone = from.keys().filter(|k| !to.contains_key(k)).map(|k| (*k, None));
    let set = to.iter().filter(|(k, v)| from.get(k) != Some(v)).map(|(k, v)| (*k, Some(v.clone())));
    gone.chain(set).collect()
}

/// Applies changes to a model.
pub fn apply(model: &mut Model, changes: &[Change]) {
    for (key, value) in changes {
        match value {
            Some(value) => model.insert(*key, value.clone()),
            None => model.remove(key),
        };
    }
}
