//! Tables that became too small: the writer makes a larger file aside, fills it with the same entries, and moves it
//! into the old one's place. Readers of the old file keep it, whole and unchanged, until they see that it was
//! replaced ([`Reader::is_superseded`](crate::Reader::is_superseded)) and open the new one; at no moment is there no
//! file, or one that lacks an entry.

use crate::error::{ApplyError, OpenError};
use crate::files;
use crate::layout::{Capacities, Layout, header};
use crate::op::Op;
use crate::region::WriteRegion;
use crate::sync::{Arc, Ordering};
use crate::writer::Writer;

/// Why the tables were not made larger. They are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrowError {
    /// Tables in heap memory have the size that they were made with.
    #[error("tables in heap memory cannot grow; make them with larger capacities")]
    Heap,
    /// There is no such table.
    #[error("there is no table '{table}' that could grow")]
    NoTable {
        /// What was asked for.
        table: String,
    },
    /// The file would be larger than it may be.
    #[error(
        "a capacity of {capacity} for {table} makes the tables {bytes} bytes large, over their limit of \
         {max_bytes}; have fewer entries"
    )]
    Limit {
        /// Which table.
        table: String,
        /// Its capacity then.
        capacity: u32,
        /// The file's length then.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// The new file.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The entries do not fit the new file, which is larger: the old one is damaged.
    #[error(transparent)]
    Entries(#[from] ApplyError),
}

impl Capacities {
    /// The same, with the capacity of one table doubled until it holds `needed`; that capacity. `None` if there
    /// is no such table.
    fn with_room(&self, table: &str, needed: u64) -> Option<(Capacities, u32)> {
        let list = self.list();
        let place = list.iter().position(|(name, _, _)| *name == table)?;
        let mut values = list.map(|(_, capacity, _)| capacity);
        let mut capacity = u64::from(values[place]).max(1) * 2;
        while capacity < needed {
            capacity *= 2;
        }
        values[place] = u32::try_from(capacity).unwrap_or(u32::MAX);
        Some((Capacities::from_list(values), values[place]))
    }
}

impl Capacities {
    /// The same, halved until a file of tables is no larger than `max_bytes`; ports, which cost little, stay. `None`
    /// if even the smallest tables are larger: about 65 MiB of them are the root of the IPv4 routes.
    pub fn within(&self, max_bytes: u64) -> Option<Capacities> {
        const LEAST: u32 = 16;
        let mut fitting = *self;
        while Layout::new(&fitting).ok()?.len as u64 > max_bytes {
            let halved = fitting.list().map(|(_, capacity, _)| capacity.min((capacity / 2).max(LEAST)));
            let halved = Capacities { ports: self.ports, ..Capacities::from_list(halved) };
            if halved == fitting {
                return None;
            }
            fitting = halved;
        }
        Some(fitting)
    }
}

impl Writer {
    /// Whether [`grow`](Self::grow) may make this table larger.
    pub fn can_grow(&self, table: &str, max_bytes: u64) -> bool {
        let larger = self.dir.as_ref().and_then(|_| self.tables.layout.capacities.with_room(table, 0));
        let layout = larger.and_then(|(capacities, _)| Layout::new(&capacities).ok());
        layout.is_some_and(|layout| layout.len as u64 <= max_bytes)
    }

    /// Goes over to a larger file, in which `table` has room for `needed` entries and at least twice what it had.
    ///
    /// # Errors
    /// See [`GrowError`].
    pub fn grow(&mut self, table: &str, needed: u64, max_bytes: u64) -> Result<Capacities, GrowError> {
        if self.dir.is_none() {
            return Err(GrowError::Heap);
        }
        let no_table = || GrowError::NoTable { table: table.to_owned() };
        let (capacities, capacity) =
            self.tables.layout.capacities.with_room(table, needed).ok_or_else(no_table)?;
        let bytes = Layout::new(&capacities)?.len as u64;
        if bytes > max_bytes {
            return Err(GrowError::Limit { table: table.to_owned(), capacity, bytes, max_bytes });
        }
        self.move_to(&capacities)?;
        Ok(capacities)
    }

    /// Goes over to a larger file if a table has less room than is wanted.
    pub(crate) fn grow_to(&mut self, wanted: &Capacities) -> Result<(), GrowError> {
        let pairs = self.tables.layout.capacities.list().into_iter().zip(wanted.list());
        let mut larger = pairs.map(|((_, found, _), (_, wanted, _))| found.max(wanted));
        let larger = Capacities::from_list(std::array::from_fn(|_| larger.next().unwrap_or_default()));
        if larger == self.tables.layout.capacities { Ok(()) } else { self.move_to(&larger) }
    }

    fn move_to(&mut self, capacities: &Capacities) -> Result<(), GrowError> {
        let Some(dir) = self.dir.clone() else { return Err(GrowError::Heap) };
        let tables = Arc::new(files::make_aside(&dir, capacities, Layout::new(capacities)?)?);
        let region = WriteRegion::new(tables.region.clone());
        // Generations go on, so that nobody who compares them takes the new tables for older ones.
        region.store64(header::GENERATION, self.view().generation(), Ordering::Release);
        let quiescence = self.quiescence.of_instance(tables.instance());
        let mut larger = Writer::new(tables, region, quiescence, None, Some(dir.clone()));
        for part in self.entries().chunks(512) {
            // A batch sets more trie nodes aside than it takes in the end; one operation sets aside what it takes.
            if larger.apply(part).is_err() {
                part.iter().try_for_each(|op| larger.apply(std::slice::from_ref(op)).map(|_| ()))?;
            }
        }
        files::move_into_place(&dir)?;
        larger.lock = self.lock.take();
        *self = larger;
        Ok(())
    }

    /// Operations that set all that the tables hold.
    fn entries(&self) -> Vec<Op> {
        let view = self.view();
        let mut ops: Vec<Op> = view.settings_if_set().map(Op::SetSettings).into_iter().collect();
        ops.extend(view.masquerade_if_set().map(|v| Op::SetMasquerade(Box::new(v))));
        ops.extend(view.ports().map(|(k, v)| Op::SetPort(k, v)));
        ops.extend(view.endpoints().map(|(k, v)| Op::SetEndpoint(k, v)));
        ops.extend(view.routes().map(|(k, paths)| Op::SetPaths(k, Box::new(paths))));
        ops.extend(view.neighbours().map(|(k, v)| Op::SetNeighbour(k, v)));
        ops.extend(view.tunnels().map(|(k, v)| Op::SetTunnel(k, v)));
        ops.extend(view.services().map(|(k, v)| Op::SetService(k, v.service(), v.targets())));
        ops
    }
}
