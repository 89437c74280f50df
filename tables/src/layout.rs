//! Where everything lies in the tables file: header, capacities, and the table of tables. Pure
//! arithmetic, the same in every process that agrees on the layout hash and the capacities.

use crate::error::OpenError;
use crate::group::Group;
use crate::keyed::Keyed;
use crate::lpm::{Nodes, Slots, Trie4, Trie6, Tries};
use crate::masquerade::Masquerade;
use crate::record::{Backend, Endpoint, Neighbour, NeighbourKey, NextHop, Port, PortId};
use crate::record::{Service, ServiceKey, Settings, Tunnel};
use crate::region::words_len;
use crate::{Ip, Prefix};
use bytemuck::{Pod, Zeroable};

/// "FAIRWAY" and a kind of file.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"FAIRWAYT");
/// Raised when the meaning of a field changes without changing its size.
pub(crate) const ABI_VERSION: u64 = 4;
/// Bytes before the first table.
pub(crate) const HEADER_LEN: usize = header::CHANGES + 8 * crate::changes::RING as usize;

/// Offsets in the header. The first three stay where they are in every version.
pub(crate) mod header {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const ABI: usize = 8;
    pub(crate) const LAYOUT: usize = 16;
    pub(crate) const FILE_LEN: usize = 24;
    /// Random, so that readers of a file that was replaced are not mistaken for readers of this one.
    pub(crate) const INSTANCE: usize = 32;
    pub(crate) const BOOT: usize = 40;
    pub(crate) const SEED: usize = 48;
    /// One word each, in the order of [`Capacities::list`](super::Capacities).
    pub(crate) const CAPACITIES: usize = 64;
    /// On a line of its own: all readers load it, all the time.
    pub(crate) const GENERATION: usize = 192;
    /// Entries ever written to the ring of changes; beside the generation, since who loads one loads the other.
    pub(crate) const CHANGE_COUNT: usize = 200;
    /// 1 while a batch is being stored.
    pub(crate) const STORING: usize = 248;
    /// Prefix whose expansion is under way: {1 or 0, prefix in three words}.
    pub(crate) const JOURNAL: usize = 256;
    /// Prefix of the above.
    pub(crate) const JOURNAL_PREFIX: usize = JOURNAL + 8;
    /// One word per pool.
    pub(crate) const HIGH_WATER: usize = 320;
    /// Two `u32`: the leaf of `0.0.0.0/0` and of `::/0`.
    pub(crate) const DEFAULT_V4: usize = 512;
    pub(crate) const DEFAULT_V6: usize = 516;
    /// The ring of [`changes`](crate::changes).
    pub(crate) const CHANGES: usize = 4096;
}

/// FNV-1a, 64 bits: for fingerprints, not for hash tables.
pub(crate) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// How many entries each table can hold. Fixed when the file is made; [`Writer::grow`](crate::Writer::grow) makes a
/// larger one. Memory that is never used costs nothing, so it pays to be generous.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    /// Ports, up to 65,535.
    pub ports: u32,
    /// Pod addresses.
    pub endpoints: u32,
    /// Routes of both families.
    pub routes: u32,
    /// Different next hops among the routes that have one.
    pub next_hops: u32,
    /// Different sets of next hops among the routes that have several.
    pub route_groups: u32,
    /// Inner nodes of the look-up tries, 64 bytes each. A route longer than /24 (IPv4) or /16 (IPv6) takes one or
    /// two, and up to three more while others are set in the same batch.
    pub lpm_nodes: u32,
    /// Neighbours.
    pub neighbours: u32,
    /// Remote nodes.
    pub tunnels: u32,
    /// Service ports.
    pub services: u32,
    /// Backends of all service ports together. A source range counts as one backend, a Maglev table as 1,366.
    pub backends: u32,
}

impl Default for Capacities {
    fn default() -> Capacities {
        Capacities {
            ports: 1024,
            endpoints: 4096,
            routes: 65_536,
            next_hops: 8192,
            route_groups: 1024,
            lpm_nodes: 262_144,
            neighbours: 8192,
            tunnels: 8192,
            services: 16_384,
            backends: 262_144,
        }
    }
}

/// How many capacities there are.
pub(crate) const CAPACITY_COUNT: usize = 10;

impl Capacities {
    /// (table, capacity, limit), in the order in which the header holds them.
    pub(crate) fn list(&self) -> [(&'static str, u32, u32); CAPACITY_COUNT] {
        const MANY: u32 = 1 << 22;
        [
            ("ports", self.ports, u16::MAX as u32),
            ("endpoints", self.endpoints, MANY),
            ("routes", self.routes, MANY),
            ("next_hops", self.next_hops, crate::lpm::MAX_NEXT_HOPS),
            ("route_groups", self.route_groups, crate::lpm::MAX_NEXT_HOPS),
            ("lpm_nodes", self.lpm_nodes, crate::lpm::MAX_NODES),
            ("neighbours", self.neighbours, MANY),
            ("tunnels", self.tunnels, MANY),
            ("services", self.services, MANY),
            ("backends", self.backends, MANY),
        ]
    }

    /// The inverse of [`list`](Self::list).
    pub(crate) fn from_list(list: [u32; CAPACITY_COUNT]) -> Capacities {
        let [
            ports,
            endpoints,
            routes,
            next_hops,
            route_groups,
            lpm_nodes,
            neighbours,
            tunnels,
            services,
            backends,
        ] = list;
        Capacities {
            ports,
            endpoints,
            routes,
            next_hops,
            route_groups,
            lpm_nodes,
            neighbours,
            tunnels,
            services,
            backends,
        }
    }
}

/// What a route's slot holds.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub(crate) struct RouteValue {
    pub(crate) next_hop: NextHop,
    /// Its number among the next hops; or, marked so, the number of a group, and then the next hop is zero.
    pub(crate) id: u32,
}

/// What a service's slot holds: publishing the slot publishes the service and what it leads to at once.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub(crate) struct ServiceValue {
    pub(crate) service: Service,
    /// First slot of its block in the arena; see [`service`](crate::service) for what is in it.
    pub(crate) first: u32,
    pub(crate) cluster: u32,
    pub(crate) local: u32,
    pub(crate) source_ranges: u32,
}

/// The arena of backends.
#[derive(Clone, Copy)]
pub(crate) struct Backends {
    offset: usize,
    /// Backends that the table may hold.
    pub(crate) capacity: u32,
    /// log2 of the backends that there is room for.
    pub(crate) order: u32,
    pub(crate) high_water_offset: usize,
}

impl Backends {
    pub(crate) const STRIDE: usize = words_len::<Backend>();

    /// Offset of backend `index`, which must be below 2^order.
    #[inline(always)]
    pub(crate) fn at(&self, index: u32) -> usize {
        self.offset + index as usize * Self::STRIDE
    }

    /// Whether `count` backends from `first` on lie in the arena.
    #[inline(always)]
    pub(crate) fn holds(&self, first: u32, count: u32) -> bool {
        u64::from(first) + u64::from(count) <= 1 << self.order
    }
}

/// Where each table lies.
pub(crate) struct Layout {
    pub(crate) capacities: Capacities,
    pub(crate) settings: Keyed<u64, Settings>,
    pub(crate) masquerade: Keyed<u64, Masquerade>,
    pub(crate) ports: Keyed<PortId, Port>,
    pub(crate) endpoints: Keyed<Ip, Endpoint>,
    pub(crate) routes: Keyed<Prefix, RouteValue>,
    pub(crate) neighbours: Keyed<NeighbourKey, Neighbour>,
    pub(crate) tunnels: Keyed<Ip, Tunnel>,
    pub(crate) services: Keyed<ServiceKey, ServiceValue>,
    pub(crate) backends: Backends,
    pub(crate) tries: Tries,
    /// Bytes of all of it.
    pub(crate) len: usize,
}

impl Layout {
    /// The layout for these capacities, or which of them is out of bounds.
    pub(crate) fn new(c: &Capacities) -> Result<Layout, OpenError> {
        for (table, asked, limit) in c.list() {
            if asked > limit {
                return Err(OpenError::CapacityLimit { table, asked, limit });
            }
        }
        let mut end = HEADER_LEN;
        let mark = |pool: usize| header::HIGH_WATER + 8 * pool;
        let settings = Keyed::lay_out(&mut end, 1, mark(0));
        let masquerade = Keyed::lay_out(&mut end, 1, mark(11));
        let ports = Keyed::lay_out(&mut end, c.ports, mark(1));
        let endpoints = Keyed::lay_out(&mut end, c.endpoints, mark(2));
        let routes = Keyed::lay_out(&mut end, c.routes, mark(3));
        let neighbours = Keyed::lay_out(&mut end, c.neighbours, mark(4));
        let tunnels = Keyed::lay_out(&mut end, c.tunnels, mark(5));
        let services = Keyed::lay_out(&mut end, c.services, mark(6));
        // Four times the capacity: rounding up to powers of two may double it, and so may copy on write.
        let order = (c.backends.max(1) * 4).next_power_of_two().trailing_zeros();
        let offset = end.next_multiple_of(64);
        let backends = Backends { offset, capacity: c.backends, order, high_water_offset: mark(7) };
        end = backends.at(1 << order);
        let tries = Tries::lay_out(
            &mut end,
            (c.next_hops, mark(8)),
            (c.route_groups, mark(10)),
            (c.lpm_nodes, mark(9)),
        );
        let len = end.next_multiple_of(4096);
        let capacities = *c;
        Ok(Layout {
            capacities,
            settings,
            masquerade,
            ports,
            endpoints,
            routes,
            neighbours,
            tunnels,
            services,
            backends,
            tries,
            len,
        })
    }

    /// Fingerprint of every size that the layout is made of.
    pub(crate) fn hash() -> u64 {
        let shapes = [
            Keyed::<u64, Settings>::shape(),
            Keyed::<u64, Masquerade>::shape(),
            Keyed::<PortId, Port>::shape(),
            Keyed::<Ip, Endpoint>::shape(),
            Keyed::<Prefix, RouteValue>::shape(),
            Keyed::<NeighbourKey, Neighbour>::shape(),
            Keyed::<Ip, Tunnel>::shape(),
            Keyed::<ServiceKey, ServiceValue>::shape(),
            [Backends::STRIDE, size_of::<Service>(), size_of::<NextHop>()],
            [Trie4::ROOT_BITS as usize, Trie6::ROOT_BITS as usize, HEADER_LEN],
            [Nodes::STRIDE, crate::lpm::STRIDE as usize, Slots::<Group>::STRIDE],
            [header::CHANGE_COUNT, header::CHANGES, crate::changes::RING as usize],
            [crate::maglev::SIZE, Slots::<Group>::SPARE, 0],
        ];
        fnv(shapes.as_flattened().iter().flat_map(|n| (*n as u64).to_le_bytes()))
    }
}
