//! Looking at the connection table from another process, whether its engine lives or not.

use super::map::Map;
use super::table::Connection;
use super::{ConntrackError, Summary};
use std::path::Path;

/// The connection table, read only: locks nobody out, and is not locked out.
pub struct ConntrackReader {
    map: Map,
}

impl ConntrackReader {
    /// Opens the table that an engine keeps, or kept, in this file.
    ///
    /// # Errors
    /// See [`ConntrackError`].
    pub fn open(path: &Path) -> Result<ConntrackReader, ConntrackError> {
        Ok(ConntrackReader { map: Map::view(path)? })
    }

    /// Connections, one place at a time; a snapshot of each, not of all. One that changes at that moment may be
    /// missed.
    pub fn iter(&self) -> impl Iterator<Item = Connection> + '_ {
        let entries = self.map.entries()[..self.map.ever_used()].iter().enumerate();
        entries.filter_map(|(index, entry)| Connection::read(index as u32, entry))
    }

    /// How full the table is, counted.
    pub fn summary(&self) -> Summary {
        Summary { used: self.iter().count(), capacity: self.map.entries().len() }
    }
}
