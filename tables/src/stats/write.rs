//! The dataplane's side of the counters file.

use super::{ABI_VERSION, FILE, MAGIC, MAX_PORTS, MAX_WORKERS};
use super::{Counter, Geometry, PortCounters, Stage, StageSummary, StatsReader, head};
use crate::error::OpenError;
use crate::files::{check_head, check_min_len, io_error, make_file};
use crate::layout::header;
use crate::region::{Region, WriteRegion};
use crate::sync::Ordering;
use crate::{DropReason, PortId, sys};
use std::fs::{File, OpenOptions};
use std::path::Path;

/// What the dataplane process is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessState {
    /// It has not said anything yet.
    Unknown,
    /// Opening ports.
    Starting,
    /// Forwarding.
    Running,
    /// It ended in good order.
    Stopped,
}

impl ProcessState {
    pub(super) fn from_word(word: u64) -> ProcessState {
        match word {
            1 => ProcessState::Starting,
            2 => ProcessState::Running,
            3 => ProcessState::Stopped,
            _ => ProcessState::Unknown,
        }
    }
}

/// Owns the counters; hands each worker its own.
pub struct StatsWriter {
    region: WriteRegion,
    geometry: Geometry,
    /// Its lock says that this process lives.
    file: Option<File>,
}

impl StatsWriter {
    /// Opens `<dir>/stats` and goes on from its counts, or makes it anew if there is none or it was made
    /// for other counters, workers or ports. Refuses if another process is writing it.
    pub fn create(dir: &Path, workers: u32, ports: u32) -> Result<StatsWriter, OpenError> {
        let geometry = check_size(workers, ports)?;
        std::fs::create_dir_all(dir).map_err(io_error(dir, "make folder"))?;
        let path = dir.join(FILE);
        let (file, region) = match reopen(&path, geometry)? {
            Some(existing) => existing,
            None => make(dir, &path, geometry)?,
        };
        let writer = StatsWriter { region, geometry, file: Some(file) };
        writer.introduce();
        Ok(writer)
    }

    /// Counters in heap memory.
    ///
    /// # Panics
    /// If there are more than 1,024 workers or 65,535 ports.
    pub fn heap(workers: u32, ports: u32) -> StatsWriter {
        let geometry = check_size(workers, ports).unwrap_or_else(|e| panic!("{e}"));
        let writer =
            StatsWriter { region: WriteRegion::new(Region::heap(geometry.len())), geometry, file: None };
        writer.introduce();
        writer
    }

    fn introduce(&self) {
        let store = |offset, value| self.region.store64(offset, value, Ordering::Relaxed);
        store(head::PID, u64::from(std::process::id()));
        store(head::START_TIME, sys::start_time());
        self.set_state(ProcessState::Starting);
    }

    /// Says what the process is doing.
    pub fn set_state(&self, state: ProcessState) {
        self.region.store64(head::STATE, state as u64, Ordering::Relaxed);
    }

    /// Says how full the connection table is.
    pub fn set_conntrack(&self, used: u64, capacity: u64) {
        self.region.store64(head::CONNTRACK_USED, used, Ordering::Relaxed);
        self.region.store64(head::CONNTRACK_CAPACITY, capacity, Ordering::Relaxed);
    }

    /// How many workers there is room for.
    pub fn workers(&self) -> u32 {
        self.geometry.workers
    }

    /// The counters of one worker. To be handed out once per worker: they have one writer each.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn worker(&self, worker: u32) -> WorkerStats {
        assert!(worker < self.geometry.workers, "worker {worker} of {}", self.geometry.workers);
        WorkerStats { region: self.region.clone(), geometry: self.geometry, worker }
    }

    /// Reads what is written here, without a file.
    pub fn reader(&self) -> StatsReader {
        StatsReader::new(self.region.shared().clone(), self.geometry, None)
    }
}

impl Drop for StatsWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.set_state(ProcessState::Stopped);
        }
    }
}

pub(super) fn check_size(workers: u32, ports: u32) -> Result<Geometry, OpenError> {
    for (table, asked, limit) in [("workers", workers, MAX_WORKERS), ("ports", ports, MAX_PORTS)] {
        if asked > limit {
            return Err(OpenError::CapacityLimit { table, asked, limit });
        }
    }
    Ok(Geometry { workers, ports })
}

/// A file whose counts can be gone on from, locked; `None` if it is to be made anew.
fn reopen(path: &Path, geometry: Geometry) -> Result<Option<(File, WriteRegion)>, OpenError> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io_error(path, "open"))?,
    };
    let len = check_min_len(path, &file, 0)?;
    if !sys::try_lock(&file, 0, 64).map_err(io_error(path, "lock"))? {
        let pid = match Region::map_read(&file) {
            Ok(region) if len >= head::LEN as u64 => region.load64(head::PID, Ordering::Relaxed) as u32,
            _ => 0,
        };
        return Err(OpenError::WriterRunning { path: path.to_owned(), pid });
    }
    if len != geometry.len() as u64 {
        return Ok(None);
    }
    let region = WriteRegion::new(Region::map_write(&file).map_err(io_error(path, "map"))?);
    let same = check_head(path, &region, MAGIC, ABI_VERSION, Geometry::hash()).is_ok()
        && region.load64(head::WORKERS, Ordering::Relaxed) == u64::from(geometry.workers)
        && region.load64(head::PORTS, Ordering::Relaxed) == u64::from(geometry.ports);
    Ok(same.then_some((file, region)))
}

/// A new file, locked before it takes its name.
fn make(dir: &Path, path: &Path, geometry: Geometry) -> Result<(File, WriteRegion), OpenError> {
    let new = dir.join(format!("{FILE}.new"));
    let (file, region) = make_file(&new, geometry.len() as u64)?;
    if !sys::try_lock(&file, 0, 64).map_err(io_error(&new, "lock"))? {
        return Err(OpenError::WriterRunning { path: path.to_owned(), pid: 0 });
    }
    region.store64(header::ABI, ABI_VERSION, Ordering::Relaxed);
    region.store64(header::LAYOUT, Geometry::hash(), Ordering::Relaxed);
    region.store64(head::FILE_LEN, geometry.len() as u64, Ordering::Relaxed);
    region.store64(head::WORKERS, u64::from(geometry.workers), Ordering::Relaxed);
    region.store64(head::PORTS, u64::from(geometry.ports), Ordering::Relaxed);
    region.store64(header::MAGIC, MAGIC, Ordering::Release);
    std::fs::rename(&new, path).map_err(io_error(path, "move new counters to"))?;
    Ok((file, region))
}

/// The counters of one worker, stored by it alone. Setters overwrite: the worker keeps its own counts and
/// commits them now and then. Getters give what is stored, for a restarted worker to go on from.
pub struct WorkerStats {
    region: WriteRegion,
    geometry: Geometry,
    worker: u32,
}

impl WorkerStats {
    fn base(&self) -> usize {
        self.geometry.worker(self.worker)
    }

    fn counter_at(&self, counter: Counter) -> usize {
        self.base() + 8 * counter as usize
    }

    fn drop_at(&self, reason: DropReason) -> usize {
        self.base() + Geometry::DROPS + 8 * reason as usize
    }

    fn stage_at(&self, stage: Stage) -> usize {
        self.base() + Geometry::STAGES + 8 * StageSummary::WORDS * stage as usize
    }

    fn store(&self, at: usize, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.region.store64(at + 8 * i, *word, Ordering::Relaxed);
        }
    }

    /// Stores a counter.
    #[inline]
    pub fn set_counter(&self, counter: Counter, value: u64) {
        self.store(self.counter_at(counter), &[value]);
    }

    /// A counter as stored.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.region.load64(self.counter_at(counter), Ordering::Relaxed)
    }

    /// Stores how many packets were dropped for a reason.
    #[inline]
    pub fn set_drop(&self, reason: DropReason, value: u64) {
        self.store(self.drop_at(reason), &[value]);
    }

    /// Drops for a reason, as stored.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.region.load64(self.drop_at(reason), Ordering::Relaxed)
    }

    /// Stores what a stage cost.
    pub fn set_stage(&self, stage: Stage, summary: StageSummary) {
        self.store(self.stage_at(stage), &summary.to_words());
    }

    /// What a stage cost, as stored.
    pub fn stage(&self, stage: Stage) -> StageSummary {
        StageSummary::from_words(read_words(&self.region, self.stage_at(stage)))
    }

    /// Stores a port's counters; a port that there is no room for is left out.
    #[inline]
    pub fn set_port(&self, port: PortId, counters: PortCounters) {
        if let Some(at) = self.geometry.port(self.worker, port.index()) {
            self.store(at, &counters.to_words());
        }
    }

    /// A port's counters, as stored.
    pub fn port(&self, port: PortId) -> PortCounters {
        let at = self.geometry.port(self.worker, port.index());
        at.map_or_else(PortCounters::default, |at| PortCounters::from_words(read_words(&self.region, at)))
    }
}

pub(super) fn read_words<const N: usize>(region: &Region, at: usize) -> [u64; N] {
    std::array::from_fn(|i| region.load64(at + 8 * i, Ordering::Relaxed))
}
