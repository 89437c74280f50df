//! The memory under the connection table for the model checker, whose atomics cannot lie in a mapping.

use super::ConntrackError;
use super::entry::Entry;
use super::sync::{AtomicU32, Ordering};
use std::io;
use std::path::Path;

pub(super) struct Map {
    entries: Box<[Entry]>,
    watermark: AtomicU32,
}

impl Map {
    pub(super) fn heap(capacity: u32) -> io::Result<Map> {
        Ok(Map { entries: (0..capacity).map(|_| Entry::new()).collect(), watermark: AtomicU32::new(0) })
    }

    pub(super) fn open(path: &Path, _capacity: u32) -> Result<Map, ConntrackError> {
        Map::view(path)
    }

    pub(super) fn view(path: &Path) -> Result<Map, ConntrackError> {
        Err(ConntrackError::Io { path: path.to_owned(), source: io::ErrorKind::Unsupported.into() })
    }

    pub(super) fn ever_used(&self) -> usize {
        (self.watermark.load(Ordering::Relaxed) as usize).min(self.entries.len())
    }

    pub(super) fn use_up_to(&self, place: u32) {
        if self.ever_used() <= place as usize {
            self.watermark.fetch_max(place + 1, Ordering::Release);
        }
    }

    pub(super) fn secret(&self) -> u64 {
        1
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
