//! Looking things up: what the dataplane does per packet. No allocation, no lock, no store, no system
//! call; every look-up is bounded even if the file is damaged.

use crate::changes::{self, Change};
use crate::group::Group;
use crate::keyed::KeyedIter;
use crate::layout::{Layout, RouteValue, ServiceValue, header};
use crate::lpm::GROUP;
use crate::masquerade::Masquerade;
use crate::record::*;
use crate::region::Region;
use crate::service::ServiceView;
use crate::sync::{Arc, Ordering};
use crate::{Ip, Prefix};
use bytemuck::Zeroable;

/// Tables in memory, with what a look-up needs at hand.
pub(crate) struct Shared {
    pub(crate) region: Arc<Region>,
    pub(crate) layout: Layout,
    pub(crate) seed: u64,
}

impl Shared {
    pub(crate) fn view(&self) -> View<'_> {
        View { tables: self }
    }
}

/// The tables as a reader sees them. Each object that it returns is one consistent version; two look-ups
/// may see a batch in between. While a view or anything borrowed from it lives, nothing that it can reach
/// is reused.
#[derive(Clone, Copy)]
pub struct View<'a> {
    tables: &'a Shared,
}

impl<'a> View<'a> {
    #[cfg(test)]
    pub(crate) fn region(&self) -> &'a Region {
        &self.tables.region
    }

    /// Number of the last batch that was applied completely. A look-up that follows sees at least it.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.tables.region.load64(header::GENERATION, Ordering::Acquire)
    }

    /// How many changes were ever noted. Load it before looking things up that are to be remembered, and ask
    /// [`changes`](Self::changes) later what of it may have changed.
    #[inline(always)]
    pub fn change_count(&self) -> u64 {
        changes::count(&self.tables.region)
    }

    /// What changed from one [`change_count`](Self::change_count) to a later one;
    /// [`Change::Everything`] if that is too long ago to say.
    #[inline]
    pub fn changes(&self, from: u64, to: u64, note: impl FnMut(Change)) {
        changes::each(&self.tables.region, from, to, note);
    }

    /// What holds for the whole node; all zero if it was never set.
    #[inline]
    pub fn settings(&self) -> Settings {
        self.settings_if_set().unwrap_or_else(Settings::zeroed)
    }

    #[inline]
    pub(crate) fn settings_if_set(&self) -> Option<Settings> {
        self.tables.layout.settings.get(&self.tables.region, self.tables.seed, &0)
    }

    /// Whose sources are translated; nobody's if it was never set.
    pub fn masquerade(&self) -> Masquerade {
        self.masquerade_if_set().unwrap_or(Masquerade::NOTHING)
    }

    pub(crate) fn masquerade_if_set(&self) -> Option<Masquerade> {
        self.tables.layout.masquerade.get(&self.tables.region, self.tables.seed, &0)
    }

    /// A port.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<Port> {
        self.tables.layout.ports.get(&self.tables.region, self.tables.seed, &id)
    }

    /// All ports, in no particular order.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, Port)> + use<'a> {
        self.tables.layout.ports.iter(&self.tables.region)
    }

    /// Has the CPU fetch what [`route`](Self::route) of this address loads first: to be called for several addresses before the
    /// first of them is looked up, so that they wait for the memory together.
    #[inline]
    pub fn prefetch_route(&self, ip: Ip) {
        self.tables.layout.tries.prefetch(&self.tables.region, ip);
    }

    /// The next hop of the longest prefix that holds `ip`; any one where there are several.
    #[inline]
    pub fn route(&self, ip: Ip) -> Option<NextHop> {
        self.route_for(ip, 0)
    }

    /// The next hop of the longest prefix that holds `ip`, for the flow with this hash: where there are several, each
    /// gets flows by its weight, and keeps them when others come and go (see [`Group::choose`]).
    #[inline]
    pub fn route_for(&self, ip: Ip, hash: u64) -> Option<NextHop> {
        self.tables.layout.tries.lookup(&self.tables.region, ip, hash)
    }

    /// All next hops of the longest prefix that holds `ip`.
    pub fn paths(&self, ip: Ip) -> Option<Group> {
        self.tables.layout.tries.paths(&self.tables.region, ip)
    }

    /// All next hops of exactly this prefix.
    pub fn exact_paths(&self, prefix: &Prefix) -> Option<Group> {
        self.route_value(prefix).and_then(|value| self.paths_of(&value))
    }

    fn paths_of(&self, value: &RouteValue) -> Option<Group> {
        match value.id & GROUP {
            0 => Some(Group::single(value.next_hop)),
            _ => self.tables.layout.tries.group(&self.tables.region, value.id),
        }
    }

    pub(crate) fn route_value(&self, prefix: &Prefix) -> Option<RouteValue> {
        self.tables.layout.routes.get(&self.tables.region, self.tables.seed, prefix)
    }

    /// All routes with their next hops, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = (Prefix, Group)> + use<'a> {
        let this = *self;
        this.route_values().filter_map(move |(prefix, value)| Some((prefix, this.paths_of(&value)?)))
    }

    pub(crate) fn route_values(&self) -> KeyedIter<'a, Prefix, RouteValue> {
        self.tables.layout.routes.iter(&self.tables.region)
    }

    /// The pod of this node that has the address.
    #[inline]
    pub fn endpoint(&self, ip: Ip) -> Option<Endpoint> {
        self.tables.layout.endpoints.get(&self.tables.region, self.tables.seed, &ip)
    }

    /// All pod addresses of this node, in no particular order.
    pub fn endpoints(&self) -> impl Iterator<Item = (Ip, Endpoint)> + use<'a> {
        self.tables.layout.endpoints.iter(&self.tables.region)
    }

    /// The neighbour with address `ip` on the link of `port`.
    #[inline]
    pub fn neighbour(&self, ip: Ip, port: PortId) -> Option<Neighbour> {
        self.neighbour_by_key(&NeighbourKey { ip, port, reserved: 0 })
    }

    #[inline]
    pub(crate) fn neighbour_by_key(&self, key: &NeighbourKey) -> Option<Neighbour> {
        self.tables.layout.neighbours.get(&self.tables.region, self.tables.seed, key)
    }

    /// All neighbours, in no particular order.
    pub fn neighbours(&self) -> impl Iterator<Item = (NeighbourKey, Neighbour)> + use<'a> {
        self.tables.layout.neighbours.iter(&self.tables.region)
    }

    /// How the remote node with underlay address `remote` is reached.
    #[inline]
    pub fn tunnel(&self, remote: Ip) -> Option<Tunnel> {
        self.tables.layout.tunnels.get(&self.tables.region, self.tables.seed, &remote)
    }

    /// A number for the tunnel to `remote` that no other has as long as it stays as it is.
    #[inline]
    pub fn tunnel_number(&self, remote: Ip) -> Option<u32> {
        self.tables.layout.tunnels.number(&self.tables.region, self.tables.seed, &remote)
    }

    /// The tunnel with a [`number`](Self::tunnel_number), and its remote node's underlay address.
    pub fn numbered_tunnel(&self, number: u32) -> Option<(Ip, Tunnel)> {
        self.tables.layout.tunnels.numbered(&self.tables.region, number)
    }

    /// All remote nodes, in no particular order.
    pub fn tunnels(&self) -> impl Iterator<Item = (Ip, Tunnel)> + use<'a> {
        self.tables.layout.tunnels.iter(&self.tables.region)
    }

    /// A service port with its backends.
    #[inline]
    pub fn service(&self, key: &ServiceKey) -> Option<ServiceView<'a>> {
        let value = self.tables.layout.services.get(&self.tables.region, self.tables.seed, key)?;
        Some(ServiceView::new(self.tables, value))
    }

    /// All service ports, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = (ServiceKey, ServiceView<'a>)> + use<'a> {
        let tables = self.tables;
        self.service_values().map(move |(key, value)| (key, ServiceView::new(tables, value)))
    }

    pub(crate) fn service_values(&self) -> KeyedIter<'a, ServiceKey, ServiceValue> {
        self.tables.layout.services.iter(&self.tables.region)
    }
}
