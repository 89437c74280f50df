//! A registered reader: one per dataplane worker, one per command that looks at the tables.

use crate::error::OpenError;
use crate::files;
use crate::quiescence::{Identity, Quiescence};
use crate::sync::Arc;
use crate::view::{Shared, View};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Reads the tables, and tells the writer how far it is. Made per thread.
pub struct Reader {
    tables: Arc<Shared>,
    quiescence: Quiescence,
    slot: u32,
    /// Where the tables came from; the open file whose lock says that the reader lives.
    file: Option<(PathBuf, File)>,
}

impl Reader {
    /// Opens the tables in `dir`, read-only, and registers under `name`, which shows up where the writer
    /// has to wait for this reader.
    pub fn open(dir: &Path, name: &str) -> Result<Reader, OpenError> {
        let (tables, instance) = files::open_for_reading(dir)?;
        let (quiescence, file, slot) = files::claim_reader_slot(dir, instance)?;
        let who = Identity::new(std::process::id(), crate::sys::start_time(), name);
        quiescence.register(slot, &tables.region, &who);
        Ok(Reader { tables: Arc::new(tables), quiescence, slot, file: Some((dir.join(files::TABLES), file)) })
    }

    /// The tables as they are now.
    #[inline(always)]
    pub fn view(&self) -> View<'_> {
        self.tables.view()
    }

    /// Tells the writer that this reader holds nothing of the tables. To be called once per loop: one
    /// load and one store.
    #[inline(always)]
    pub fn quiescent(&mut self) {
        self.quiescence.quiescent(self.slot, &self.tables.region);
    }

    /// Whether the tables file was replaced by another since this reader opened it, so that no change
    /// will ever show up here: open a new reader then. Takes system calls.
    pub fn is_superseded(&self) -> bool {
        let Some((path, _)) = &self.file else { return false };
        files::instance_of(path).is_some_and(|now| now != self.tables.instance())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.quiescence.leave(self.slot);
    }
}

/// Makes readers of tables in heap memory, for tests, benchmarks and the memory driver.
#[derive(Clone)]
pub struct ReaderFactory {
    tables: Arc<Shared>,
    quiescence: Quiescence,
}

impl ReaderFactory {
    pub(crate) fn new(tables: Arc<Shared>, quiescence: Quiescence) -> ReaderFactory {
        ReaderFactory { tables, quiescence }
    }

    /// A new registered reader.
    ///
    /// # Panics
    /// If 1,024 readers exist already.
    pub fn reader(&self) -> Reader {
        let slot = self.quiescence.claim().expect("at most 1,024 readers of heap tables at a time");
        let who = Identity::new(std::process::id(), 0, "heap");
        self.quiescence.register(slot, &self.tables.region, &who);
        Reader { tables: self.tables.clone(), quiescence: self.quiescence.clone(), slot, file: None }
    }
}
