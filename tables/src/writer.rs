//! The one writer of the tables: plans a batch, refuses it whole if anything does not fit, then stores it.
//!
//! Cost follows the batch, not the tables. Within a batch, what others refer to is set first and deleted
//! last (make before break), whatever the order of the operations; of several operations on one object
//! the last counts.

use crate::blocks::{Block, Blocks};
use crate::changes::Noted;
use crate::error::{ApplyError, OpenError};
use crate::files::{self, WriterLock};
use crate::keyed::KeyedWriter;
use crate::layout::{Capacities, Layout, RouteValue, ServiceValue, header};
use crate::lpm_write::{LpmWriter, RouteTarget};
use crate::maglev;
use crate::masquerade::Masquerade;
use crate::op::{Changes, Difference, Op};
use crate::quiescence::Quiescence;
use crate::reader::ReaderFactory;
use crate::record::*;
use crate::region::{Region, WriteRegion};
use crate::sync::{Arc, Ordering};
use crate::view::{Shared, View};
use crate::{Ip, Prefix};
use bytemuck::Pod;
use std::path::{Path, PathBuf};

/// Slots for readers of heap tables.
const HEAP_READERS: u32 = 1024;

/// How full a table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableUsage {
    /// Which table, or which of the arrays behind the routes and services.
    pub table: &'static str,
    /// Entries that readers can reach.
    pub used: u64,
    /// Entries that it can hold.
    pub capacity: u64,
    /// Entries that wait for readers to move on before their memory can be used again.
    pub retired: u64,
}

/// Tables in heap memory.
pub struct Tables;

impl Tables {
    /// Empty tables in heap memory: the same code, no files. Memory that is never used costs nothing.
    ///
    /// # Panics
    /// If a capacity is over its limit.
    pub fn heap(capacities: Capacities) -> (Writer, ReaderFactory) {
        let layout = Layout::new(&capacities).unwrap_or_else(|e| panic!("{e}"));
        let region = Region::heap(layout.len);
        let tables = Arc::new(Shared { region: region.clone(), layout, seed: crate::sys::random() });
        let lines = WriteRegion::new(Region::heap(Quiescence::len(HEAP_READERS)));
        let quiescence = Quiescence::new(lines, HEAP_READERS, 0);
        let factory = ReaderFactory::new(tables.clone(), quiescence.clone());
        (Writer::new(tables, WriteRegion::new(region), quiescence, None, None), factory)
    }
}

/// See the module.
pub struct Writer {
    pub(crate) tables: Arc<Shared>,
    pub(crate) region: WriteRegion,
    pub(crate) quiescence: Quiescence,
    pub(crate) lock: Option<WriterLock>,
    /// Where the files are; `None` in heap memory.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) state: State,
}

/// The writer's private books, one per table.
pub(crate) struct State {
    pub(crate) settings: KeyedWriter<u64, Settings>,
    pub(crate) masquerade: KeyedWriter<u64, Masquerade>,
    pub(crate) ports: KeyedWriter<PortId, Port>,
    pub(crate) endpoints: KeyedWriter<Ip, Endpoint>,
    pub(crate) routes: KeyedWriter<Prefix, RouteValue>,
    pub(crate) neighbours: KeyedWriter<NeighbourKey, Neighbour>,
    pub(crate) tunnels: KeyedWriter<Ip, Tunnel>,
    pub(crate) services: KeyedWriter<ServiceKey, ServiceValue>,
    pub(crate) blocks: Blocks,
    /// Slots of the arena that services refer to.
    pub(crate) backends: u64,
    pub(crate) lpm: LpmWriter,
}

impl State {
    pub(crate) fn new(layout: &Layout) -> State {
        State {
            settings: KeyedWriter::new(layout.settings),
            masquerade: KeyedWriter::new(layout.masquerade),
            ports: KeyedWriter::new(layout.ports),
            endpoints: KeyedWriter::new(layout.endpoints),
            routes: KeyedWriter::new(layout.routes),
            neighbours: KeyedWriter::new(layout.neighbours),
            tunnels: KeyedWriter::new(layout.tunnels),
            services: KeyedWriter::new(layout.services),
            blocks: Blocks::new(layout.backends.order),
            backends: 0,
            lpm: LpmWriter::new(layout.tries),
        }
    }

    fn reclaim(&mut self, seen: u64) {
        self.settings.pool.reclaim(seen);
        self.masquerade.pool.reclaim(seen);
        self.ports.pool.reclaim(seen);
        self.endpoints.pool.reclaim(seen);
        self.routes.pool.reclaim(seen);
        self.neighbours.pool.reclaim(seen);
        self.tunnels.pool.reclaim(seen);
        self.services.pool.reclaim(seen);
        self.blocks.reclaim(seen);
        self.lpm.nodes.pool.reclaim(seen);
        self.lpm.next_hops.pool.reclaim(seen);
        self.lpm.groups.pool.reclaim(seen);
    }
}

/// Something does not fit: which table, what it would have to hold, what it can, and what is retired.
struct Shortage {
    table: &'static str,
    needed: u64,
    capacity: u64,
    /// Retired entries that would make it fit; 0 if they would not.
    waiting: u64,
}

impl Writer {
    /// Opens the tables in `dir` for writing: makes them, or takes over those of a former writer without
    /// a change that a reader could notice. Where they have less room than `capacities` say, they grow; where they
    /// have more, they keep it. Refuses if another writer is at work.
    pub fn open(dir: &Path, capacities: Capacities) -> Result<Writer, OpenError> {
        let mut writer = Writer::open_files(files::open_for_writing(dir, &capacities)?)?;
        // What is there is worth more than more room; without it, batches that do not fit say so.
        let _ = writer.grow_to(&capacities);
        Ok(writer)
    }

    /// As [`open`](Self::open), but stopping like [`stop_after_stores`](Self::stop_after_stores) while it
    /// takes over.
    #[cfg(any(test, feature = "fault-injection"))]
    pub fn open_stopping_after(dir: &Path, capacities: Capacities, stores: u64) -> Result<Writer, OpenError> {
        let files = files::open_for_writing(dir, &capacities)?;
        files.region.stop_after(stores);
        Writer::open_files(files)
    }

    fn open_files(files: files::WriterFiles) -> Result<Writer, OpenError> {
        let dir = files.path.parent().map(Path::to_owned);
        let mut writer =
            Writer::new(Arc::new(files.tables), files.region, files.quiescence, Some(files.lock), dir);
        if files.recovered {
            let generation = writer.view().generation().wrapping_add(1);
            let changed = writer
                .state
                .recover(&writer.tables, &writer.region, generation)
                .map_err(|damage| damage.in_file(&files.path))?;
            // The former writer may have been killed before it noted what its last batch was about.
            let cut_short = writer.region.load64(header::STORING, Ordering::Acquire) != 0;
            if cut_short {
                Noted::everything().publish(&writer.region);
            }
            if changed || cut_short {
                writer.finish_batch(generation);
            }
        }
        Ok(writer)
    }

    pub(crate) fn new(
        tables: Arc<Shared>,
        region: WriteRegion,
        quiescence: Quiescence,
        lock: Option<WriterLock>,
        dir: Option<PathBuf>,
    ) -> Writer {
        let state = State::new(&tables.layout);
        Writer { tables, region, quiescence, lock, dir, state }
    }

    /// The tables as they are now.
    pub fn view(&self) -> View<'_> {
        self.tables.view()
    }

    /// Makes the writer unwind with [`FaultStop`](crate::FaultStop) at the store after the next `stores`.
    #[cfg(any(test, feature = "fault-injection"))]
    pub fn stop_after_stores(&self, stores: u64) {
        self.region.stop_after(stores);
    }

    /// Applies a batch, all of it or, with an error, nothing. Returns the generation that holds it; that
    /// is a new one only if the batch changes anything.
    pub fn apply(&mut self, ops: &[Op]) -> Result<u64, ApplyError> {
        let tables = self.tables.clone();
        let diff = Difference::new(ops, tables.view())?;
        let current = tables.view().generation();
        if diff.is_empty() {
            return Ok(current);
        }
        self.reclaim(current);
        self.check_fit(&diff).map_err(|shortage| self.refuse(shortage))?;
        let blocks = self.take_blocks(&diff).map_err(|shortage| self.refuse(shortage))?;
        let generation = current.wrapping_add(1);
        self.region.store64(header::STORING, 1, Ordering::Release);
        self.store(&diff, &blocks, generation).publish(&self.region);
        self.finish_batch(generation);
        Ok(generation)
    }

    fn finish_batch(&self, generation: u64) {
        self.region.store64(header::GENERATION, generation, Ordering::Release);
        self.region.store64(header::STORING, 0, Ordering::Release);
    }

    /// Frees what no reader can be reading any more. Readers that are behind may be so because they died.
    fn reclaim(&mut self, current: u64) {
        let mut progress = self.quiescence.progress();
        if progress.seen_by_all < current
            && let Some(lock) = &self.lock
        {
            lock.evict_dead(&self.quiescence, current);
            progress = self.quiescence.progress();
        }
        self.state.reclaim(progress.seen_by_all);
    }

    fn refuse(&self, shortage: Shortage) -> ApplyError {
        let Shortage { table, needed, capacity, waiting } = shortage;
        match self.quiescence.progress() {
            progress if waiting > 0 && progress.last.is_some() => {
                let who = self.quiescence.identity(progress.last.unwrap_or_default());
                ApplyError::WaitingForReader {
                    table,
                    waiting,
                    reader: who.name(),
                    pid: who.pid,
                    seen: progress.seen_by_all,
                }
            }
            _ => ApplyError::Full { table, needed, capacity },
        }
    }

    fn check_fit(&self, diff: &Difference<'_>) -> Result<(), Shortage> {
        let s = &self.state;
        fits("settings", &s.settings, &diff.settings)?;
        fits("masquerade", &s.masquerade, &diff.masquerade)?;
        fits("ports", &s.ports, &diff.ports)?;
        fits("endpoints", &s.endpoints, &diff.endpoints)?;
        fits_slots(
            "routes",
            &s.routes,
            diff.routes.inserts,
            diff.routes.set.len(),
            diff.routes.delete.len(),
        )?;
        fits("neighbours", &s.neighbours, &diff.neighbours)?;
        fits("tunnels", &s.tunnels, &diff.tunnels)?;
        let services = &diff.services;
        fits_slots("services", &s.services, services.inserts, services.set.len(), services.delete.len())?;

        let capacity = u64::from(self.tables.layout.backends.capacity);
        let needed = s.backends + diff.backends_added - diff.backends_removed;
        if needed > capacity {
            return Err(Shortage { table: "backends", needed, capacity, waiting: 0 });
        }
        let routes = &diff.routes.set;
        let one = routes.iter().filter_map(|(_, target)| match target {
            RouteTarget::One(next_hop) => Some(next_hop),
            RouteTarget::Several(_) => None,
        });
        fits_pool("next_hops", &s.lpm.next_hops.pool, s.lpm.next_hops.missing(one))?;
        let several = routes.iter().filter_map(|(_, target)| match target {
            RouteTarget::One(_) => None,
            RouteTarget::Several(group) => Some(*group),
        });
        fits_pool("route_groups", &s.lpm.groups.pool, s.lpm.groups.missing(several))?;
        let missing = s.lpm.missing_nodes(&self.region, routes.iter().map(|(prefix, _)| prefix));
        fits_pool("lpm_nodes", &s.lpm.nodes.pool, missing)
    }

    /// Blocks for the backends of every service set; on failure all are given back.
    fn take_blocks(&mut self, diff: &Difference<'_>) -> Result<Vec<Option<Block>>, Shortage> {
        let mut taken = Vec::with_capacity(diff.services.set.len());
        for (_, (service, targets)) in &diff.services.set {
            let block = match Block::of(0, targets.value(service, 0).slots()) {
                None => None,
                Some(wanted) => match self.state.blocks.take(wanted.order) {
                    Some(block) => Some(block),
                    None => {
                        let blocks = &mut self.state.blocks;
                        taken.into_iter().flatten().for_each(|block| blocks.give(block));
                        return Err(Shortage {
                            table: "backends",
                            needed: self.state.backends + diff.backends_added,
                            capacity: u64::from(self.tables.layout.backends.capacity),
                            waiting: blocks.retired() as u64,
                        });
                    }
                },
            };
            taken.push(block);
        }
        Ok(taken)
    }

    /// Stores a batch that is known to fit; returns what it is about.
    fn store(&mut self, diff: &Difference<'_>, blocks: &[Option<Block>], generation: u64) -> Noted {
        let Writer { tables, region, state, .. } = self;
        let seed = tables.seed;
        let store = Store { region, seed, generation };
        let mut noted = if diff.is_only_services() { Noted::default() } else { Noted::everything() };
        store.set(&mut state.settings, &diff.settings);
        store.set(&mut state.masquerade, &diff.masquerade);
        store.set(&mut state.ports, &diff.ports);
        store.set(&mut state.neighbours, &diff.neighbours);
        store.set(&mut state.tunnels, &diff.tunnels);
        store.set(&mut state.endpoints, &diff.endpoints);
        store.set_services(state, tables, diff, blocks, &mut noted);
        for (prefix, target) in &diff.routes.set {
            store.set_route(state, prefix, *target);
        }
        for prefix in &diff.routes.delete {
            store.delete_route(state, tables, prefix);
        }
        state.lpm.retire_unreferenced(region, generation);
        for key in &diff.services.delete {
            let old = state.services.delete(region, seed, key, generation);
            old.iter().for_each(|old| noted.service(old.service.id));
            state.retire_backends(old, generation);
        }
        store.delete(&mut state.endpoints, &diff.endpoints);
        store.delete(&mut state.tunnels, &diff.tunnels);
        store.delete(&mut state.neighbours, &diff.neighbours);
        store.delete(&mut state.ports, &diff.ports);
        noted
    }

    /// How full each table is.
    pub fn usage(&self) -> Vec<TableUsage> {
        let s = &self.state;
        let layout = &self.tables.layout;
        let pool = |table, pool: &crate::pool::Pool, capacity: u32| TableUsage {
            table,
            used: pool.in_use() as u64,
            capacity: u64::from(capacity),
            retired: pool.retired() as u64,
        };
        vec![
            pool("ports", &s.ports.pool, layout.ports.capacity),
            pool("endpoints", &s.endpoints.pool, layout.endpoints.capacity),
            pool("routes", &s.routes.pool, layout.routes.capacity),
            pool("next_hops", &s.lpm.next_hops.pool, layout.tries.next_hops.count),
            pool("route_groups", &s.lpm.groups.pool, layout.tries.groups.count),
            pool("lpm_nodes", &s.lpm.nodes.pool, layout.tries.nodes.count),
            pool("neighbours", &s.neighbours.pool, layout.neighbours.capacity),
            pool("tunnels", &s.tunnels.pool, layout.tunnels.capacity),
            pool("services", &s.services.pool, layout.services.capacity),
            TableUsage {
                table: "backends",
                used: s.backends,
                capacity: u64::from(layout.backends.capacity),
                retired: s.blocks.retired() as u64,
            },
        ]
    }
}

fn fits<K: Pod, V: Pod>(
    table: &'static str,
    writer: &KeyedWriter<K, V>,
    changes: &Changes<K, V>,
) -> Result<(), Shortage> {
    fits_slots(table, writer, changes.inserts, changes.set.len(), changes.delete.len())
}

fn fits_slots<K: Pod, V: Pod>(
    table: &'static str,
    writer: &KeyedWriter<K, V>,
    inserts: usize,
    sets: usize,
    deletes: usize,
) -> Result<(), Shortage> {
    let needed = u64::from(writer.used) + inserts as u64 - deletes as u64;
    let capacity = u64::from(writer.table.capacity);
    if needed > capacity {
        return Err(Shortage { table, needed, capacity, waiting: 0 });
    }
    fits_pool(table, &writer.pool, sets)
}

fn fits_pool(table: &'static str, pool: &crate::pool::Pool, wanted: usize) -> Result<(), Shortage> {
    if wanted <= pool.available() {
        return Ok(());
    }
    let possible = pool.available() + pool.retired();
    Err(Shortage {
        table,
        needed: (pool.in_use() + wanted) as u64,
        capacity: (pool.in_use() + possible) as u64,
        waiting: if wanted <= possible { pool.retired() as u64 } else { 0 },
    })
}

/// What every store of a batch needs.
pub(crate) struct Store<'a> {
    pub(crate) region: &'a WriteRegion,
    pub(crate) seed: u64,
    pub(crate) generation: u64,
}

impl Store<'_> {
    fn set<K: Pod, V: Pod>(&self, writer: &mut KeyedWriter<K, V>, changes: &Changes<K, V>) {
        for (key, value) in &changes.set {
            writer.set(self.region, self.seed, key, value, self.generation);
        }
    }

    fn delete<K: Pod, V: Pod>(&self, writer: &mut KeyedWriter<K, V>, changes: &Changes<K, V>) {
        for key in &changes.delete {
            writer.delete(self.region, self.seed, key, self.generation);
        }
    }

    fn set_services(
        &self,
        state: &mut State,
        shared: &Shared,
        diff: &Difference<'_>,
        blocks: &[Option<Block>],
        noted: &mut Noted,
    ) {
        let (layout, view) = (&shared.layout, shared.view());
        let mut tables = maglev::Tables::default();
        for ((key, (service, targets)), block) in diff.services.set.iter().zip(blocks) {
            let first = block.map_or(0, |block| block.first);
            let before = view.service(key);
            targets.store(self.region, &layout.backends, service, first, before, &mut tables);
            let mark = layout.backends.high_water_offset;
            let end = block.map_or(0, |block| block.end());
            if end > self.region.load64(mark, Ordering::Relaxed) {
                self.region.store64(mark, end, Ordering::Release);
            }
            let value = targets.value(service, first);
            let old = state.services.set(self.region, self.seed, key, &value, self.generation);
            state.backends += u64::from(value.slots());
            // A service may have got another number: results found under either are stale.
            noted.service(service.id);
            old.iter().for_each(|old| noted.service(old.service.id));
            state.retire_backends(old, self.generation);
        }
    }

    /// Runs a change of one prefix under the journal.
    fn journalled(&self, prefix: &Prefix, change: impl FnOnce()) {
        self.region.write(header::JOURNAL_PREFIX, prefix);
        self.region.store64(header::JOURNAL, 1, Ordering::Release);
        change();
        self.region.store64(header::JOURNAL, 0, Ordering::Release);
    }

    fn set_route(&self, state: &mut State, prefix: &Prefix, target: RouteTarget<'_>) {
        let id = state.lpm.acquire(self.region, target);
        let value = target.value(id);
        self.journalled(prefix, || {
            let old = state.routes.set(self.region, self.seed, prefix, &value, self.generation);
            state.lpm.set(self.region, prefix, id, old.is_some(), self.generation);
            if let Some(old) = old {
                state.lpm.release(old.id);
            }
        });
    }

    fn delete_route(&self, state: &mut State, tables: &Shared, prefix: &Prefix) {
        self.journalled(prefix, || {
            let Some(old) = state.routes.delete(self.region, self.seed, prefix, self.generation) else {
                return;
            };
            let get = |prefix: &Prefix| tables.view().route_value(prefix);
            state.lpm.delete(self.region, prefix, true, self.generation, get);
            state.lpm.release(old.id);
        });
    }
}

impl State {
    /// Retires the block of a service that was replaced or deleted.
    fn retire_backends(&mut self, old: Option<ServiceValue>, generation: u64) {
        let Some(old) = old else { return };
        self.backends -= u64::from(old.slots());
        if let Some(block) = Block::of(old.first, old.slots()) {
            self.blocks.retire(block, generation);
        }
    }
}
