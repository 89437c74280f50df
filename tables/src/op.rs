//! Changes to the tables, and what of a batch really changes something.

use crate::error::ApplyError;
use crate::group::Group;
use crate::lpm_write::RouteTarget;
use crate::masquerade::Masquerade;
use crate::record::*;
use crate::service::Targets;
use crate::view::View;
use crate::{Ip, Prefix};
use std::collections::HashMap;

/// One change. `Set` inserts or replaces; deleting what is not there changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Replaces what holds for the whole node.
    SetSettings(Settings),
    /// Replaces what says whose sources are translated.
    SetMasquerade(Box<Masquerade>),
    /// Sets a port.
    SetPort(PortId, Port),
    /// Deletes a port.
    DelPort(PortId),
    /// Sets a pod address of this node.
    SetEndpoint(Ip, Endpoint),
    /// Deletes a pod address.
    DelEndpoint(Ip),
    /// Sets a route with one next hop.
    SetRoute(Prefix, NextHop),
    /// Sets a route with one or several next hops.
    SetPaths(Prefix, Box<Group>),
    /// Deletes a route.
    DelRoute(Prefix),
    /// Sets a neighbour.
    SetNeighbour(NeighbourKey, Neighbour),
    /// Deletes a neighbour.
    DelNeighbour(NeighbourKey),
    /// Sets how a remote node is reached.
    SetTunnel(Ip, Tunnel),
    /// Deletes a remote node.
    DelTunnel(Ip),
    /// Sets a service port with all that it leads to, in the order that readers will see.
    SetService(ServiceKey, Service, Targets),
    /// Deletes a service port.
    DelService(ServiceKey),
}

/// What an operation is about: of several on one object only the last counts.
#[derive(PartialEq, Eq, Hash)]
enum Object {
    Settings,
    Masquerade,
    Port(PortId),
    Endpoint(Ip),
    Route(Prefix),
    Neighbour(NeighbourKey),
    Tunnel(Ip),
    Service(ServiceKey),
}

impl Op {
    fn object(&self) -> Object {
        match self {
            Op::SetSettings(_) => Object::Settings,
            Op::SetMasquerade(_) => Object::Masquerade,
            Op::SetPort(k, _) | Op::DelPort(k) => Object::Port(*k),
            Op::SetEndpoint(k, _) | Op::DelEndpoint(k) => Object::Endpoint(*k),
            Op::SetRoute(k, _) | Op::SetPaths(k, _) | Op::DelRoute(k) => Object::Route(*k),
            Op::SetNeighbour(k, _) | Op::DelNeighbour(k) => Object::Neighbour(*k),
            Op::SetTunnel(k, _) | Op::DelTunnel(k) => Object::Tunnel(*k),
            Op::SetService(k, _, _) | Op::DelService(k) => Object::Service(*k),
        }
    }

    /// Refuses keys that no look-up could ever find.
    fn check(&self) -> Result<(), ApplyError> {
        match self {
            Op::SetPort(PortId::NONE, _) => Err(ApplyError::BadKey {
                table: "ports",
                key: PortId::NONE.0.to_string(),
                why: "this number stands for no port",
            }),
            Op::SetRoute(prefix, _) | Op::SetPaths(prefix, _)
                if Prefix::new(prefix.addr(), prefix.len()) != Some(*prefix) =>
            {
                Err(ApplyError::BadKey {
                    table: "routes",
                    key: prefix.to_string(),
                    why: "bits beyond the prefix length are set, or the length is too large",
                })
            }
            _ => Ok(()),
        }
    }
}

/// Changes to one keyed table.
pub(crate) struct Changes<K, V> {
    pub(crate) set: Vec<(K, V)>,
    /// How many of `set` are new.
    pub(crate) inserts: usize,
    pub(crate) delete: Vec<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Changes { set: Vec::new(), inserts: 0, delete: Vec::new() }
    }
}

impl<K: Copy, V: Copy + PartialEq> Changes<K, V> {
    fn set(&mut self, key: K, new: V, old: Option<V>) {
        if old != Some(new) {
            self.inserts += usize::from(old.is_none());
            self.set.push((key, new));
        }
    }

    fn delete(&mut self, key: K, old: Option<V>) {
        if old.is_some() {
            self.delete.push(key);
        }
    }
}

impl<K, V> Changes<K, V> {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.delete.is_empty()
    }
}

/// A batch sorted by table, without what would change nothing.
#[derive(Default)]
pub(crate) struct Difference<'a> {
    pub(crate) settings: Changes<u64, Settings>,
    pub(crate) masquerade: Changes<u64, Masquerade>,
    pub(crate) ports: Changes<PortId, Port>,
    pub(crate) endpoints: Changes<Ip, Endpoint>,
    pub(crate) routes: Changes<Prefix, RouteTarget<'a>>,
    pub(crate) neighbours: Changes<NeighbourKey, Neighbour>,
    pub(crate) tunnels: Changes<Ip, Tunnel>,
    pub(crate) services: Changes<ServiceKey, (Service, &'a Targets)>,
    /// Slots that the services set now take, and those that services took that are set or deleted.
    pub(crate) backends_added: u64,
    pub(crate) backends_removed: u64,
}

impl<'a> Difference<'a> {
    /// What of `ops` changes anything.
    pub(crate) fn new(ops: &'a [Op], view: View<'_>) -> Result<Difference<'a>, ApplyError> {
        let mut last = HashMap::with_capacity(ops.len());
        for (i, op) in ops.iter().enumerate() {
            op.check()?;
            last.insert(op.object(), i);
        }
        let mut diff = Difference::default();
        for (i, op) in ops.iter().enumerate() {
            if last.get(&op.object()) == Some(&i) {
                diff.add(op, view);
            }
        }
        Ok(diff)
    }

    fn add(&mut self, op: &'a Op, view: View<'_>) {
        match op {
            Op::SetSettings(v) => self.settings.set(0, *v, view.settings_if_set()),
            Op::SetMasquerade(v) => self.masquerade.set(0, **v, view.masquerade_if_set()),
            Op::SetPort(k, v) => self.ports.set(*k, *v, view.port(*k)),
            Op::DelPort(k) => self.ports.delete(*k, view.port(*k)),
            Op::SetEndpoint(k, v) => self.endpoints.set(*k, *v, view.endpoint(*k)),
            Op::DelEndpoint(k) => self.endpoints.delete(*k, view.endpoint(*k)),
            Op::SetRoute(k, next_hop) => self.set_route(*k, RouteTarget::One(*next_hop), view),
            Op::SetPaths(k, group) => {
                let target = group.only().map_or(RouteTarget::Several(group), RouteTarget::One);
                self.set_route(*k, target, view);
            }
            Op::DelRoute(k) => {
                if view.route_value(k).is_some() {
                    self.routes.delete.push(*k);
                }
            }
            Op::SetNeighbour(k, v) => self.neighbours.set(*k, *v, view.neighbour_by_key(k)),
            Op::DelNeighbour(k) => self.neighbours.delete(*k, view.neighbour_by_key(k)),
            Op::SetTunnel(k, v) => self.tunnels.set(*k, *v, view.tunnel(*k)),
            Op::DelTunnel(k) => self.tunnels.delete(*k, view.tunnel(*k)),
            Op::SetService(k, service, targets) => {
                let old = view.service(k);
                if let Some(old) = old {
                    if old.service() == *service && old.targets() == *targets {
                        return;
                    }
                    self.backends_removed += u64::from(old.slots());
                }
                self.backends_added += u64::from(targets.value(service, 0).slots());
                self.services.inserts += usize::from(old.is_none());
                self.services.set.push((*k, (*service, targets)));
            }
            Op::DelService(k) => {
                if let Some(old) = view.service(k) {
                    self.backends_removed += u64::from(old.slots());
                    self.services.delete.push(*k);
                }
            }
        }
    }

    fn set_route(&mut self, prefix: Prefix, target: RouteTarget<'a>, view: View<'_>) {
        let old = view.exact_paths(&prefix);
        if !target.is(old) {
            self.routes.inserts += usize::from(old.is_none());
            self.routes.set.push((prefix, target));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.is_only_services() && self.services.set.is_empty() && self.services.delete.is_empty()
    }

    /// Whether no other table changes.
    pub(crate) fn is_only_services(&self) -> bool {
        self.settings.is_empty()
            && self.masquerade.is_empty()
            && self.ports.is_empty()
            && self.endpoints.is_empty()
            && self.routes.is_empty()
            && self.neighbours.is_empty()
            && self.tunnels.is_empty()
    }
}
