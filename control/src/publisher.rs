//! Writes the shared tables: always by difference to what they hold, so that a restart or a repeated event writes
//! nothing. What the tables refuse (they are full, or a reader is behind) is left out, reported and tried again;
//! nothing else suffers.

use crate::model::{Key, Model, Value, diff};
use crate::room::Room;
use fairway_tables::{
    ApplyError, Ip, Mac, Masquerade, Op, PortId, Settings, TableUsage, View, Vxlan, Writer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What a publication did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Entries set.
    pub set: usize,
    /// Entries deleted.
    pub deleted: usize,
    /// Entries that the tables refused.
    pub refused: usize,
}

/// When a publication last changed something, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct LastChange {
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// Entries set and deleted.
    pub entries: usize,
}

/// See the module's head.
pub struct Publisher {
    writer: Writer,
    published: Model,
    refused: BTreeMap<Key, ApplyError>,
    /// How many entries each table refused so far; one that is tried again in vain counts once.
    refused_total: BTreeMap<&'static str, u64>,
    /// Generation when all that is refused was last tried again.
    tried_at: u64,
    /// What an earlier run left and nothing asks for now, kept until [`Publisher::drop_leftovers`].
    leftovers: BTreeSet<Key>,
    last_change: Option<LastChange>,
    room: Room,
}

impl Publisher {
    /// Takes over the tables as they are. They may grow until their file has `max_bytes`.
    pub fn new(writer: Writer, max_bytes: u64) -> Publisher {
        let published = read(writer.view());
        let leftovers = published.keys().copied().collect();
        Publisher {
            writer,
            published,
            refused: BTreeMap::new(),
            refused_total: BTreeMap::new(),
            tried_at: 0,
            leftovers,
            last_change: None,
            room: Room::new(max_bytes),
        }
    }

    /// What the tables hold.
    pub fn published(&self) -> &Model {
        &self.published
    }

    /// The tables themselves.
    pub fn view(&self) -> View<'_> {
        self.writer.view()
    }

    /// How full each table is.
    pub fn usage(&self) -> Vec<TableUsage> {
        self.writer.usage()
    }

    /// Which tables can grow, and why others cannot.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Whether a table can become larger.
    pub fn can_grow(&self, table: &str) -> bool {
        self.room.can_grow(&self.writer, table)
    }

    /// What is to be said of tables that cannot grow and are nearly full.
    pub fn warnings(&self) -> Vec<String> {
        self.room.nearly_full(&self.writer).iter().map(|usage| self.room.warning(usage)).collect()
    }

    /// How many entries a table refused since the start.
    pub fn refused_total(&self, table: &str) -> u64 {
        self.refused_total.get(table).copied().unwrap_or_default()
    }

    /// What the tables refused, and why.
    pub fn refused(&self) -> &BTreeMap<Key, ApplyError> {
        &self.refused
    }

    /// Whether something was refused that only waits for a reader, and so is worth a try soon.
    pub fn waits_for_reader(&self) -> bool {
        self.refused.values().any(|e| matches!(e, ApplyError::WaitingForReader { .. }))
    }

    /// When something last changed.
    pub fn last_change(&self) -> Option<LastChange> {
        self.last_change
    }

    /// Deletes what an earlier run left and `desired` does not ask for. Until this is called it stays in force.
    pub fn drop_leftovers(&mut self, desired: &Model) -> Published {
        let leftovers = std::mem::take(&mut self.leftovers);
        if leftovers.is_empty() { Published::default() } else { self.publish(desired, leftovers) }
    }

    /// Tries again what was refused, if anything happened since that may have made room.
    pub fn retry(&mut self, desired: &Model) -> Published {
        let unchanged = self.view().generation() == self.tried_at;
        if unchanged && !self.waits_for_reader() && !self.room.has_failures() {
            return Published { refused: self.refused.len(), ..Published::default() };
        }
        let refused: Vec<Key> = self.refused.keys().copied().collect();
        let outcome = self.publish(desired, refused);
        self.tried_at = self.view().generation();
        outcome
    }

    /// Brings these entries in line with what is desired; with them, if one of them goes and so makes room, those
    /// refused before.
    pub fn publish(&mut self, desired: &Model, keys: impl IntoIterator<Item = Key>) -> Published {
        let begin = Instant::now();
        let mut keys: BTreeSet<Key> = keys.into_iter().collect();
        if keys.iter().any(|key| self.published.contains_key(key) && !desired.contains_key(key)) {
            keys.extend(self.refused.keys().copied());
        }
        self.room.forget_failures();
        let refused_before: BTreeSet<Key> =
            keys.iter().filter(|key| self.refused.remove(key).is_some()).copied().collect();
        let cleared = self.clear_what_leads_astray(&keys, desired);
        let kept = |key: &Key| self.leftovers.contains(key) && !desired.contains_key(key);
        let part = |model: &Model| -> Model {
            keys.iter().filter(|k| !kept(k)).filter_map(|k| Some((*k, model.get(k)?.clone()))).collect()
        };
        let changes = diff(&part(&self.published), &part(desired));
        let (set, deleted): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .map(|(key, value)| (key, op(&key, value.as_ref())))
            .partition(|(key, _)| desired.contains_key(key));
        let all: Vec<_> = deleted.iter().chain(&set).cloned().collect();
        if self.try_apply(&all, desired).is_err() {
            // Deletions make room; then whatever fits goes in, found by halving.
            self.apply_what_fits(&deleted, desired);
            self.apply_what_fits(&set, desired);
        }
        let deletions = deleted.len() + cleared;
        let outcome = Published { set: set.len(), deleted: deletions, refused: self.refused.len() };
        self.count_refusals(keys.difference(&refused_before));
        if !all.is_empty() {
            self.room.watch(&self.writer);
            let at = Instant::now();
            self.last_change = Some(LastChange { at, took: at - begin, entries: all.len() });
            tracing::debug!(?outcome, generation = self.view().generation(), "tables changed");
        }
        outcome
    }

    /// Deletes entries that lead to a port number which becomes another device's, unless they go on leading there; returns
    /// how many are to stay deleted. Within a batch the tables set before they delete: packets would go to a stranger
    /// for that moment, or, if control dies in it, until it starts again.
    fn clear_what_leads_astray(&mut self, keys: &BTreeSet<Key>, desired: &Model) -> usize {
        let port = |model: &Model, key: &Key| match model.get(key) {
            Some(Value::Port(port)) => Some(*port),
            _ => None,
        };
        let changes_device = |key: &Key| match (key, port(&self.published, key), port(desired, key)) {
            (Key::Port(id), Some(old), Some(new)) if old.ifname() != new.ifname() => Some(*id),
            _ => None,
        };
        let ports: BTreeSet<PortId> = keys.iter().filter_map(changes_device).collect();
        if ports.is_empty() {
            return 0;
        }
        // Pods' addresses whatever the batch is about: one that is a leftover goes later.
        let endpoints = self.published.range(Key::Endpoint(Ip::UNSPECIFIED)..);
        let endpoints = endpoints.map(|(key, _)| *key).take_while(|key| matches!(key, Key::Endpoint(_)));
        let concerned: BTreeSet<Key> = keys.iter().copied().chain(endpoints).collect();
        let astray = concerned.into_iter().filter(|key| {
            let value = self.published.get(key);
            value.is_some_and(|value| leads_to(key, value, &ports)) && value != desired.get(key)
        });
        let astray: Vec<Key> = astray.collect();
        let ops: Vec<Op> = astray.iter().map(|key| op(key, None)).collect();
        if self.writer.apply(&ops).is_err() {
            // Routes may need room to go, which a reader holds back: then they are part of what follows, as ever.
            return 0;
        }
        astray.iter().for_each(|key| {
            self.published.remove(key);
            self.leftovers.remove(key);
        });
        astray.iter().filter(|key| !desired.contains_key(key)).count()
    }

    fn try_apply(&mut self, ops: &[(Key, Op)], desired: &Model) -> Result<(), ApplyError> {
        if ops.is_empty() {
            return Ok(());
        }
        let batch: Vec<Op> = ops.iter().map(|(_, op)| op.clone()).collect();
        loop {
            match self.writer.apply(&batch) {
                Ok(_) => break,
                Err(ApplyError::Full { table, needed, .. })
                    if self.room.grow(&mut self.writer, table, needed) => {}
                Err(error) => return Err(error),
            }
        }
        for (key, _) in ops {
            match desired.get(key) {
                Some(value) => self.published.insert(*key, value.clone()),
                None => self.published.remove(key),
            };
        }
        Ok(())
    }

    /// Counts those of these keys that are refused, and says so once per table.
    fn count_refusals<'a>(&mut self, keys: impl Iterator<Item = &'a Key>) {
        let mut new: BTreeMap<&'static str, u64> = BTreeMap::new();
        for error in keys.filter_map(|key| self.refused.get(key)) {
            let entries = new.entry(error.table()).or_default();
            if *entries == 0 {
                tracing::warn!(%error, "the tables refuse entries; fairway status names their objects");
            }
            *entries += 1;
        }
        for (table, entries) in new {
            *self.refused_total.entry(table).or_default() += entries;
        }
    }

    fn apply_what_fits(&mut self, ops: &[(Key, Op)], desired: &Model) {
        match (self.try_apply(ops, desired), ops) {
            (Ok(()), _) => {}
            (Err(error), [(key, _)]) => {
                self.refused.insert(*key, error);
            }
            (Err(_), _) => {
                let (first, second) = ops.split_at(ops.len() / 2);
                self.apply_what_fits(first, desired);
                self.apply_what_fits(second, desired);
            }
        }
    }
}

/// What the tables hold, as a model.
pub fn read(view: View<'_>) -> Model {
    let mut model = Model::new();
    let settings = view.settings();
    if settings != NO_SETTINGS {
        model.insert(Key::Settings, Value::Settings(settings));
    }
    let masquerade = view.masquerade();
    if masquerade != Masquerade::NOTHING {
        model.insert(Key::Masquerade, Value::Masquerade(Box::new(masquerade)));
    }
    model.extend(view.ports().map(|(k, v)| (Key::Port(k), Value::Port(v))));
    model.extend(view.endpoints().map(|(k, v)| (Key::Endpoint(k), Value::Endpoint(v))));
    model.extend(view.routes().map(|(k, paths)| match paths.only() {
        Some(next_hop) => (Key::Route(k), Value::Route(next_hop)),
        None => (Key::Route(k), Value::Paths(Box::new(paths))),
    }));
    model.extend(view.neighbours().map(|(k, v)| (Key::Neighbour(k), Value::Neighbour(v))));
    model.extend(view.tunnels().map(|(k, v)| (Key::Tunnel(k), Value::Tunnel(v))));
    model.extend(view.services().map(|(k, v)| (Key::Service(k), Value::Service(v.service(), v.targets()))));
    model
}

/// What the tables hold before any settings were made.
const NO_SETTINGS: Settings = Settings {
    node_ip: Ip::UNSPECIFIED,
    node_ip6: Ip::UNSPECIFIED,
    gateway_ip: Ip::UNSPECIFIED,
    router_ip: Ip::UNSPECIFIED,
    gateway_ip6: Ip::UNSPECIFIED,
    router_ip6: Ip::UNSPECIFIED,
    outside_ip: Ip::UNSPECIFIED,
    outside_ip6: Ip::UNSPECIFIED,
    host_ip: Ip::UNSPECIFIED,
    host_ip6: Ip::UNSPECIFIED,
    vni: 0,
    pod_mtu: 0,
    vxlan_port: 0,
    uplink: PortId(0),
    host: PortId(0),
    gateway_mac: Mac::ZERO,
    vtep_mac: Mac::ZERO,
    vtep_mac6: Mac::ZERO,
    second_vtep_mac6: Mac::ZERO,
    udp_tunnel_port: 0,
    snat_first: 0,
    snat_last: 0,
    takes: 0,
    second_vxlan: Vxlan { vni: 0, udp_port: 0, vtep_mac: Mac::ZERO },
};

/// The operation that sets or deletes an entry.
fn op(key: &Key, value: Option<&Value>) -> Op {
    match (key, value) {
        (Key::Settings, Some(Value::Settings(v))) => Op::SetSettings(*v),
        (Key::Masquerade, Some(Value::Masquerade(v))) => Op::SetMasquerade(v.clone()),
        (Key::Port(k), Some(Value::Port(v))) => Op::SetPort(*k, *v),
        (Key::Endpoint(k), Some(Value::Endpoint(v))) => Op::SetEndpoint(*k, *v),
        (Key::Route(k), Some(Value::Route(v))) => Op::SetRoute(*k, *v),
        (Key::Route(k), Some(Value::Paths(v))) => Op::SetPaths(*k, v.clone()),
        (Key::Neighbour(k), Some(Value::Neighbour(v))) => Op::SetNeighbour(*k, *v),
        (Key::Tunnel(k), Some(Value::Tunnel(v))) => Op::SetTunnel(*k, *v),
        (Key::Service(k), Some(Value::Service(v, targets))) => Op::SetService(*k, *v, targets.clone()),
        // A value always is of its key's kind (tests/properties.rs), so what is left are deletions.
        (Key::Settings, _) => Op::SetSettings(NO_SETTINGS),
        (Key::Masquerade, _) => Op::SetMasquerade(Box::new(Masquerade::NOTHING)),
        (Key::Port(k), _) => Op::DelPort(*k),
        (Key::Endpoint(k), _) => Op::DelEndpoint(*k),
        (Key::Route(k), _) => Op::DelRoute(*k),
        (Key::Neighbour(k), _) => Op::DelNeighbour(*k),
        (Key::Tunnel(k), _) => Op::DelTunnel(*k),
        (Key::Service(k), _) => Op::DelService(*k),
    }
}

/// Whether packets that meet this entry go to one of these ports.
fn leads_to(key: &Key, value: &Value, ports: &BTreeSet<PortId>) -> bool {
    match (key, value) {
        (_, Value::Endpoint(endpoint)) => ports.contains(&endpoint.port) || ports.contains(&endpoint.uplink),
        (_, Value::Route(hop)) => ports.contains(&hop.port),
        (_, Value::Paths(group)) => group.paths().iter().any(|path| ports.contains(&path.next_hop.port)),
        (Key::Neighbour(neighbour), _) => ports.contains(&neighbour.port),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_tables::{
        Capacities, Endpoint, FaultStop, Group, NextHop, NextHopKind, Port, PortKind, Prefix, Tables,
    };
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const UNLIMITED: u64 = u64::MAX;

    fn route(i: u8) -> (Key, Value) {
        let prefix = Prefix::new(Ip::v4([10, i, 0, 0]), 16).unwrap();
        (Key::Route(prefix), Value::Route(NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE)))
    }

    #[test]
    fn a_restart_writes_nothing_and_leftovers_go_only_when_told() {
        let (mut writer, _) = Tables::heap(Capacities::default());
        let desired: Model = (0..4).map(route).collect();
        let ops: Vec<Op> = desired
            .iter()
            .chain([route(9)].iter().map(|(k, v)| (k, v)))
            .map(|(k, v)| op(k, Some(v)))
            .collect();
        let generation = writer.apply(&ops).unwrap();
        let mut publisher = Publisher::new(writer, UNLIMITED);
        publisher.publish(&desired, desired.keys().copied());
        assert_eq!(publisher.view().generation(), generation);
        assert_eq!(publisher.published().len(), 5);
        let outcome = publisher.drop_leftovers(&desired);
        assert_eq!((outcome.set, outcome.deleted), (0, 1));
        assert_eq!(read(publisher.view()), desired);
        assert_eq!(publisher.published(), &desired);
    }

    #[test]
    fn full_tables_in_files_grow_up_to_their_limit_and_then_refuse_what_is_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::open(dir.path(), Capacities { routes: 4, ..Capacities::default() }).unwrap();
        let mut publisher = Publisher::new(writer, UNLIMITED);
        let desired: Model = (0..40).map(route).collect();
        assert_eq!(publisher.publish(&desired, desired.keys().copied()).refused, 0);
        assert_eq!(read(publisher.view()), desired);
        let usage = publisher.usage().into_iter().find(|usage| usage.table == "routes").unwrap();
        assert_eq!((usage.used, usage.capacity), (40, 64));

        publisher.room = Room::new(1 << 20);
        let more: Model = (0..100).map(route).collect();
        let outcome = publisher.publish(&more, more.keys().copied());
        assert_eq!((outcome.refused, publisher.view().routes().count()), (36, 64));
        let error = publisher.refused().values().next().unwrap();
        assert!(matches!(error, ApplyError::Full { table: "routes", capacity: 64, .. }), "{error}");
        publisher.room = Room::new(UNLIMITED);
        publisher.tried_at = 0;
        assert_eq!(publisher.retry(&more).refused, 0);
        assert_eq!(read(publisher.view()), more);
    }

    #[test]
    fn what_does_not_fit_is_refused_alone_and_goes_in_when_there_is_room() {
        let (writer, _) = Tables::heap(Capacities { routes: 4, ..Capacities::default() });
        let mut publisher = Publisher::new(writer, UNLIMITED);
        let mut desired: Model = (0..7).map(route).collect();
        let ip = Ip::v4([10, 0, 0, 9]);
        let endpoint = fairway_tables::Endpoint::new(PortId(2), Mac([2; 6]));
        desired.insert(Key::Endpoint(ip), Value::Endpoint(endpoint));
        let keys: Vec<Key> = desired.keys().copied().collect();
        let outcome = publisher.publish(&desired, keys);
        assert_eq!(outcome.refused, 3);
        assert_eq!(publisher.view().routes().count(), 4);
        assert!(publisher.view().endpoint(ip).is_some());
        let gone: Vec<Key> =
            publisher.published().keys().filter(|k| matches!(k, Key::Route(_))).take(3).copied().collect();
        desired.retain(|key, _| !gone.contains(key));
        let outcome = publisher.publish(&desired, gone);
        assert_eq!(outcome.refused, 0);
        assert_eq!(read(publisher.view()), desired);
    }

    #[test]
    fn sets_of_next_hops_that_do_not_fit_are_refused_alone() {
        let (writer, _) = Tables::heap(Capacities { route_groups: 1, ..Capacities::default() });
        let mut publisher = Publisher::new(writer, UNLIMITED);
        let paths = |i: u8| {
            let hop = |n| (NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, n]), PortId(0)), 1);
            let (key, _) = route(i);
            (key, Value::Paths(Box::new(Group::new([hop(1), hop(10 + i)]).unwrap())))
        };
        let mut desired: Model = [paths(1), paths(2), route(3)].into();
        let keys: Vec<Key> = desired.keys().copied().collect();
        assert_eq!(publisher.publish(&desired, keys).refused, 1);
        let (refused, error) = publisher.refused().iter().next().unwrap();
        assert_eq!((*refused, error.table()), (paths(2).0, "route_groups"));
        assert_eq!((publisher.view().routes().count(), publisher.refused_total("route_groups")), (2, 1));
        let (key, value) = route(1);
        desired.insert(key, value);
        // A route that now has one next hop makes room; what was refused is tried again later.
        publisher.publish(&desired, [key]);
        assert_eq!(publisher.retry(&desired).refused, 0);
        assert_eq!(read(publisher.view()), desired);
    }

    /// Two pods, one of which goes, and the other comes to have its port's number.
    #[test]
    fn an_address_never_leads_to_a_port_number_that_has_become_another_pods() {
        let pods = |pods: &[(u8, u16)]| -> Model {
            let entries = pods.iter().flat_map(|(pod, number)| {
                let (id, mac) = (PortId(*number), Mac([*pod; 6]));
                let port = Port::new(&format!("pod{pod}"), PortKind::Pod, 1500, mac, Mac::ZERO).unwrap();
                let endpoint = Endpoint::new(id, mac);
                let ip = Ip::v4([10, 0, 0, *pod]);
                [(Key::Port(id), Value::Port(port)), (Key::Endpoint(ip), Value::Endpoint(endpoint))]
            });
            entries.collect()
        };
        let ways = [
            (pods(&[(1, 2)]), pods(&[(3, 2)])),
            (pods(&[(1, 2), (3, 3)]), pods(&[(1, 3), (3, 2)])),
            (pods(&[(1, 2), (3, 3), (4, 4)]), pods(&[(3, 2), (4, 4)])),
        ];
        for (before, after) in ways {
            let mut deaths = 0;
            for stores in 0.. {
                let (writer, _) = Tables::heap(Capacities::default());
                let mut publisher = Publisher::new(writer, UNLIMITED);
                publisher.publish(&before, before.keys().copied());
                publisher.writer.stop_after_stores(stores);
                let keys: BTreeSet<Key> = before.keys().chain(after.keys()).copied().collect();
                let publish = AssertUnwindSafe(|| publisher.publish(&after, keys));
                let died = catch_unwind(publish).is_err_and(|cause| cause.is::<FaultStop>());
                for (ip, endpoint) in publisher.view().endpoints() {
                    let name = publisher.view().port(endpoint.port).map(|port| port.ifname().to_owned());
                    let pod = endpoint.mac.0[0];
                    assert_eq!((name, ip), (Some(format!("pod{pod}")), Ip::v4([10, 0, 0, pod])), "{stores}");
                }
                if !died {
                    assert_eq!(read(publisher.view()), after);
                    break;
                }
                deaths += 1;
            }
            assert!(deaths > 10, "only {deaths} stores");
        }
    }
}
