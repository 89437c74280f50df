//! Room in the tables: which of them grow and how far, and what is said of those that cannot.

use fairway_tables::{GrowError, TableUsage, Writer};
use std::collections::{BTreeMap, BTreeSet};

/// How large the file of tables may become unless the operator says otherwise; only what is used of it takes memory.
pub const DEFAULT_MAX_MIB: u64 = 1024;
/// The least that the operator may say: the root of the IPv4 routes takes most of it.
pub const MIN_MAX_MIB: u64 = 72;

/// See the module's head.
#[derive(Debug)]
pub struct Room {
    max_bytes: u64,
    /// Why the system let a table not grow within the limit, by table; empty again with each publication.
    failures: BTreeMap<&'static str, String>,
    /// Tables that cannot grow and were nearly full when last looked at.
    nearly_full: BTreeSet<&'static str>,
}

/// Port numbers are given out up to a number that the engine knows too, and there is one entry of settings.
fn is_fixed(table: &str) -> bool {
    matches!(table, "ports" | "settings")
}

impl Room {
    /// Tables may grow until their file has `max_bytes`.
    pub fn new(max_bytes: u64) -> Room {
        Room { max_bytes, failures: BTreeMap::new(), nearly_full: BTreeSet::new() }
    }

    /// What failed may be tried again.
    pub(crate) fn forget_failures(&mut self) {
        self.failures.clear();
    }

    /// Whether the system let some table not grow that may.
    pub(crate) fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Makes a table larger, if it may be and the system lets it.
    pub(crate) fn grow(&mut self, writer: &mut Writer, table: &'static str, needed: u64) -> bool {
        if is_fixed(table) || self.failures.contains_key(table) {
            return false;
        }
        match writer.grow(table, needed, self.max_bytes) {
            Ok(_) => {
                tracing::info!(table, needed, "the tables were full and are larger now");
                true
            }
            Err(GrowError::Heap | GrowError::Limit { .. }) => false,
            Err(error) => {
                self.failures.insert(table, error.to_string());
                false
            }
        }
    }

    /// Whether a table can become larger.
    pub fn can_grow(&self, writer: &Writer, table: &str) -> bool {
        !is_fixed(table) && !self.failures.contains_key(table) && writer.can_grow(table, self.max_bytes)
    }

    /// Why a table cannot become larger, and what to do.
    pub fn why_not(&self, table: &str) -> String {
        match self.failures.get(table) {
            _ if is_fixed(table) => "the number of ports is fixed: run fewer pods on this node".to_owned(),
            Some(failure) => failure.clone(),
            None => {
                let mib = self.max_bytes >> 20;
                format!("the tables may take {mib} MiB: raise --max-table-mib, or have fewer")
            }
        }
    }

    /// The tables that cannot grow and are at least four fifths full.
    pub fn nearly_full(&self, writer: &Writer) -> Vec<TableUsage> {
        let is_near = |usage: &TableUsage| usage.used > 0 && usage.used * 5 >= usage.capacity * 4;
        let near = writer.usage().into_iter().filter(is_near);
        near.filter(|usage| !self.can_grow(writer, usage.table)).collect()
    }

    /// Logs, once each, which tables became nearly full.
    pub(crate) fn watch(&mut self, writer: &Writer) {
        let near = self.nearly_full(writer);
        for usage in near.iter().filter(|usage| !self.nearly_full.contains(usage.table)) {
            tracing::warn!("{}", self.warning(usage));
        }
        self.nearly_full = near.into_iter().map(|usage| usage.table).collect();
    }

    /// What is to be said of a table that is nearly full.
    pub fn warning(&self, usage: &TableUsage) -> String {
        let TableUsage { table, used, capacity, .. } = usage;
        let why_not = self.why_not(table);
        format!("table {table} holds {used} of {capacity} entries and cannot grow, {why_not}")
    }
}
