//! What stands behind a service port's record: its backends, the sources that it admits, and for Maglev the tables that
//! choose. All of it lies in one block of the arena, so that publishing the record publishes one version of everything:
//! backends for any client, backends for clients from outside, source ranges, ways to the nodes of the former, then a table
//! for each list of backends.

use crate::layout::{Backends, ServiceValue};
use crate::maglev;
use crate::record::{Backend, NextHop, Service};
use crate::region::{Region, WriteRegion};
use crate::sync::Ordering;
use crate::view::Shared;
use crate::{Ip, NextHopKind, PortId, Prefix};

/// Slots of the arena that a Maglev table takes, four places to a word.
const TABLE_SLOTS: usize = (2 * maglev::SIZE).div_ceil(Backends::STRIDE);

/// What a service port leads to, beside its record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Targets {
    /// The backends, for every client but those of `local`.
    pub cluster: Vec<Backend>,
    /// Under [`Service::LOCAL`], the backends for clients that are neither pods nor this node; under [`Service::DSR`], this
    /// node's own.
    pub local: Vec<Backend>,
    /// Under [`Service::SOURCE_RANGES`], the only clients that are admitted.
    pub source_ranges: Vec<Prefix>,
    /// Under [`Service::DSR`], for each of `cluster` the tunnel to its node, or [`NextHopKind::Local`] for this node. Any
    /// other: packets to it are translated here as without DSR.
    ///
    /// [`NextHopKind::Local`]: crate::NextHopKind::Local
    pub ways: Vec<NextHop>,
}

impl From<Vec<Backend>> for Targets {
    fn from(cluster: Vec<Backend>) -> Targets {
        Targets { cluster, ..Targets::default() }
    }
}

impl Targets {
    /// The value of a service's slot, if its block begins at `first`.
    pub(crate) fn value(&self, service: &Service, first: u32) -> ServiceValue {
        ServiceValue {
            service: *service,
            first,
            cluster: self.cluster.len() as u32,
            local: self.local.len() as u32,
            source_ranges: self.source_ranges.len() as u32,
        }
    }

    /// Writes all of it into the block at `first`, in the place of what there was `before`.
    pub(crate) fn store<'a>(
        &'a self,
        region: &WriteRegion,
        arena: &Backends,
        service: &Service,
        first: u32,
        before: Option<ServiceView<'_>>,
        tables: &mut maglev::Tables<'a>,
    ) {
        let mut slots = first..;
        let backends = self.cluster.iter().chain(&self.local);
        backends.zip(&mut slots).for_each(|(backend, slot)| region.write(arena.at(slot), backend));
        let value = self.value(service, first);
        let ranges = self.source_ranges.iter();
        ranges.zip(&mut slots).for_each(|(range, slot)| region.write(arena.at(slot), range));
        let unknown = NextHop::new(NextHopKind::Unreachable, Ip::UNSPECIFIED, PortId::NONE);
        for (i, slot) in (0..value.ways() as usize).zip(&mut slots) {
            region.write(arena.at(slot), self.ways.get(i).unwrap_or(&unknown));
        }
        let (cluster, local) = (before.map(|before| before.cluster()), before.map(|before| before.local()));
        for (list, set, before) in
            [(&self.cluster, value.cluster(), cluster), (&self.local, value.local(), local)]
        {
            let Some(table) = set.table else { continue };
            let before = || before.and_then(|before| Some((before.iter().collect(), before.maglev_table()?)));
            for (word, places) in tables.of(list, before).chunks(4).enumerate() {
                let word_of = |word: u64, place: &u16| word << 16 | u64::from(*place);
                let packed = places.iter().rev().fold(0, word_of);
                region.store64(arena.at(table) + 8 * word, packed, Ordering::Relaxed);
            }
        }
    }
}

/// Where one list of a service's backends lies.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    first: u32,
    count: u32,
    /// First slot of its Maglev table.
    table: Option<u32>,
}

impl ServiceValue {
    /// Backends of both lists.
    pub(crate) fn backends(&self) -> u32 {
        self.cluster.saturating_add(self.local)
    }

    /// Ways to backends.
    fn ways(&self) -> u32 {
        if self.service.flags & Service::DSR != 0 { self.cluster } else { 0 }
    }

    /// First slot of the ways.
    fn ways_begin(&self) -> u32 {
        self.first + self.backends() + self.source_ranges
    }

    fn has_table(&self, count: u32) -> bool {
        count > 0 && self.service.flags & Service::MAGLEV != 0
    }

    /// Slots of the arena that the service takes.
    pub(crate) fn slots(&self) -> u32 {
        let tables = [self.cluster, self.local].iter().filter(|count| self.has_table(**count)).count();
        let lists = self.backends().saturating_add(self.source_ranges).saturating_add(self.ways());
        lists.saturating_add((tables * TABLE_SLOTS) as u32)
    }

    fn tables_begin(&self) -> u32 {
        self.ways_begin() + self.ways()
    }

    pub(crate) fn cluster(&self) -> Extent {
        let table = self.has_table(self.cluster).then(|| self.tables_begin());
        Extent { first: self.first, count: self.cluster, table }
    }

    pub(crate) fn local(&self) -> Extent {
        let before = if self.has_table(self.cluster) { TABLE_SLOTS as u32 } else { 0 };
        let table = self.has_table(self.local).then(|| self.tables_begin() + before);
        Extent { first: self.first + self.cluster, count: self.local, table }
    }
}

/// One version of a service port and what it leads to.
#[derive(Clone, Copy)]
pub struct ServiceView<'a> {
    tables: &'a Shared,
    value: ServiceValue,
}

impl<'a> ServiceView<'a> {
    #[inline]
    pub(crate) fn new(tables: &'a Shared, mut value: ServiceValue) -> ServiceView<'a> {
        if !tables.layout.backends.holds(value.first, value.slots()) {
            // A damaged file.
            (value.cluster, value.local, value.source_ranges) = (0, 0, 0);
        }
        ServiceView { tables, value }
    }

    /// What is fixed for the service port.
    #[inline]
    pub fn service(&self) -> Service {
        self.value.service
    }

    /// Slots of the arena that it takes.
    pub(crate) fn slots(&self) -> u32 {
        self.value.slots()
    }

    /// The backends for all clients but those of [`local`](Self::local).
    #[inline]
    pub fn cluster(&self) -> BackendSet<'a> {
        BackendSet { tables: self.tables, extent: self.value.cluster() }
    }

    /// The backends apart; see [`Targets::local`].
    #[inline]
    pub fn local(&self) -> BackendSet<'a> {
        BackendSet { tables: self.tables, extent: self.value.local() }
    }

    /// All backends, those for any client first; one that is in both lists comes twice.
    pub fn backends(&self) -> impl Iterator<Item = Backend> + use<'a> {
        self.cluster().iter().chain(self.local().iter())
    }

    /// Under [`Service::SOURCE_RANGES`], the only clients that are admitted.
    pub fn source_ranges(&self) -> impl Iterator<Item = Prefix> + use<'a> {
        let ServiceView { tables, value } = *self;
        let first = value.first + value.backends();
        (first..first + value.source_ranges).map(|slot| tables.region.read(tables.layout.backends.at(slot)))
    }

    /// Under [`Service::DSR`], how to reach the node of each backend for any client; see [`Targets::ways`].
    pub fn ways(&self) -> impl Iterator<Item = NextHop> + use<'a> {
        let this = *self;
        (0..this.value.ways() as usize).filter_map(move |i| this.way(i))
    }

    /// Number `i` of the [`ways`](Self::ways).
    pub fn way(&self, i: usize) -> Option<NextHop> {
        let ServiceView { tables, value } = self;
        let slot = |i: usize| tables.layout.backends.at(value.ways_begin() + i as u32);
        (i < value.ways() as usize).then(|| tables.region.read(slot(i)))
    }

    /// All of what the service leads to.
    pub fn targets(&self) -> Targets {
        Targets {
            cluster: self.cluster().iter().collect(),
            local: self.local().iter().collect(),
            source_ranges: self.source_ranges().collect(),
            ways: self.ways().collect(),
        }
    }
}

/// Backends among which one is chosen.
#[derive(Clone, Copy)]
pub struct BackendSet<'a> {
    tables: &'a Shared,
    extent: Extent,
}

impl<'a> BackendSet<'a> {
    /// How many backends there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.extent.count as usize
    }

    /// Whether there is no backend.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.extent.count == 0
    }

    /// Backend number `i`, in the order in which they were set.
    #[inline]
    pub fn get(&self, i: usize) -> Option<Backend> {
        (i < self.len()).then(|| self.region().read(self.at(self.extent.first + i as u32)))
    }

    /// All of them, in the order in which they were set.
    pub fn iter(&self) -> impl Iterator<Item = Backend> + use<'a> {
        let this = *self;
        (0..this.len()).filter_map(move |i| this.get(i))
    }

    /// Number of a backend. Lists are searched as control writes them: sorted.
    pub fn position(&self, ip: Ip, port: u16) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let backend = self.get(middle)?;
            match (backend.ip, backend.port).cmp(&(ip, port)) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Number of the backend that a flow with this hash is given; `None` without [`Service::MAGLEV`].
    #[inline]
    pub fn maglev(&self, hash: u64) -> Option<usize> {
        let place = (hash >> (u64::BITS - maglev::SIZE.ilog2())) as usize;
        let word = self.region().load64(self.at(self.extent.table?) + 8 * (place / 4), Ordering::Relaxed);
        let number = usize::from((word >> (16 * (place % 4))) as u16);
        (number < self.len()).then_some(number)
    }

    /// The backend's number at each place of the Maglev table.
    pub(crate) fn maglev_table(&self) -> Option<Vec<u16>> {
        let first = self.at(self.extent.table?);
        let words =
            (0..maglev::SIZE / 4).map(|word| self.region().load64(first + 8 * word, Ordering::Relaxed));
        Some(
            words
                .flat_map(|word| [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16])
                .collect(),
        )
    }

    fn region(&self) -> &'a Region {
        &self.tables.region
    }

    fn at(&self, slot: u32) -> usize {
        self.tables.layout.backends.at(slot)
    }
}

const _: () = assert!(size_of::<Prefix>() <= Backends::STRIDE, "a range fits a backend's slot");
const _: () = assert!(size_of::<NextHop>() <= Backends::STRIDE, "a way fits a backend's slot");
