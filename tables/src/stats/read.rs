//! Reading the counters file: what control exports and the command line shows.

use super::write::{check_size, read_words};
use super::{ABI_VERSION, FILE, MAGIC, head};
use super::{Counter, Geometry, PortCounters, ProcessState, Stage, StageSummary};
use crate::error::OpenError;
use crate::files::{check_head, check_min_len, io_error};
use crate::region::Region;
use crate::sync::{Arc, Ordering};
use crate::{DropReason, PortId, sys};
use std::fs::File;
use std::path::Path;

/// Reads counters that another process, or another thread, writes.
pub struct StatsReader {
    region: Arc<Region>,
    geometry: Geometry,
    file: Option<File>,
}

impl StatsReader {
    pub(super) fn new(region: Arc<Region>, geometry: Geometry, file: Option<File>) -> StatsReader {
        StatsReader { region, geometry, file }
    }

    /// Opens `<dir>/stats` for reading. If the dataplane comes back with other workers or ports it makes a
    /// new file; so open again when a snapshot says that the writer is not alive.
    pub fn open(dir: &Path) -> Result<StatsReader, OpenError> {
        let path = dir.join(FILE);
        let file = File::open(&path).map_err(io_error(&path, "open"))?;
        let found = check_min_len(&path, &file, head::LEN as u64)?;
        let region = Region::map_read(&file).map_err(io_error(&path, "map"))?;
        check_head(&path, &region, MAGIC, ABI_VERSION, Geometry::hash())?;
        let word = |at| u32::try_from(region.load64(at, Ordering::Relaxed)).unwrap_or(u32::MAX);
        let geometry =
            check_size(word(head::WORKERS), word(head::PORTS)).map_err(|_| OpenError::Corrupt {
                path: path.clone(),
                table: "header",
                what: "impossible number of workers or ports",
            })?;
        let expected = geometry.len() as u64;
        if found != expected || region.load64(head::FILE_LEN, Ordering::Relaxed) != expected {
            return Err(OpenError::Length { path, found, expected });
        }
        Ok(StatsReader { region, geometry, file: Some(file) })
    }

    /// Everything as it is now.
    pub fn snapshot(&self) -> StatsSnapshot {
        let word = |at| self.region.load64(at, Ordering::Relaxed);
        StatsSnapshot {
            pid: word(head::PID) as u32,
            start_time_ticks: word(head::START_TIME),
            state: ProcessState::from_word(word(head::STATE)),
            starts: word(head::STARTS),
            alive: self.file.as_ref().is_none_or(|file| sys::is_locked(file, 0, 64).unwrap_or(false)),
            conntrack_used: word(head::CONNTRACK_USED),
            conntrack_capacity: word(head::CONNTRACK_CAPACITY),
            workers: (0..self.geometry.workers).map(|worker| self.worker(worker)).collect(),
        }
    }

    fn worker(&self, worker: u32) -> WorkerSnapshot {
        let base = self.geometry.worker(worker);
        let region = &self.region;
        let ports = (0..self.geometry.ports as usize).filter_map(|port| self.geometry.port(worker, port));
        WorkerSnapshot {
            counters: read_words(region, base),
            drops: read_words(region, base + Geometry::DROPS),
            stages: std::array::from_fn(|stage| {
                let at = base + Geometry::STAGES + 8 * StageSummary::WORDS * stage;
                StageSummary::from_words(read_words(region, at))
            }),
            ports: ports.map(|at| PortCounters::from_words(read_words(region, at))).collect(),
        }
    }
}

/// The counters at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct StatsSnapshot {
    /// The process that writes or wrote them, as it knows itself (in its own PID namespace).
    pub pid: u32,
    /// When that process started, in clock ticks since boot (proc(5)).
    pub start_time_ticks: u64,
    /// What it said it was doing.
    pub state: ProcessState,
    /// How often a process, or an image of one, began to forward since the file was made.
    pub starts: u64,
    /// Whether it lives.
    pub alive: bool,
    /// Entries in the connection table.
    pub conntrack_used: u64,
    /// Entries that the connection table can hold.
    pub conntrack_capacity: u64,
    /// Each worker's own counters.
    pub workers: Vec<WorkerSnapshot>,
}

impl StatsSnapshot {
    fn sum(&self, part: impl Fn(&WorkerSnapshot) -> u64) -> u64 {
        self.workers.iter().map(part).fold(0, u64::wrapping_add)
    }

    /// A counter over all workers.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.sum(|w| w.counter(counter))
    }

    /// Drops for a reason over all workers.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.sum(|w| w.drops(reason))
    }

    /// Drops for any reason over all workers.
    pub fn all_drops(&self) -> u64 {
        self.sum(WorkerSnapshot::all_drops)
    }

    /// What a stage cost over all workers; see [`StageSummary::merged`] for the percentiles.
    pub fn stage(&self, stage: Stage) -> StageSummary {
        self.workers.iter().map(|w| w.stage(stage)).fold(StageSummary::default(), StageSummary::merged)
    }

    /// A port's counters over all workers.
    pub fn port(&self, port: PortId) -> PortCounters {
        self.workers.iter().map(|w| w.port(port)).fold(PortCounters::default(), PortCounters::merged)
    }
}

/// One worker's counters at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerSnapshot {
    counters: [u64; Counter::COUNT],
    drops: [u64; DropReason::COUNT],
    stages: [StageSummary; Stage::COUNT],
    ports: Vec<PortCounters>,
}

impl WorkerSnapshot {
    /// A counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// Drops for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Drops for any reason.
    pub fn all_drops(&self) -> u64 {
        self.drops.iter().copied().fold(0, u64::wrapping_add)
    }

    /// What a stage cost.
    pub fn stage(&self, stage: Stage) -> StageSummary {
        self.stages[stage as usize]
    }

    /// A port's counters; zero for a port that there is no room for.
    pub fn port(&self, port: PortId) -> PortCounters {
        self.ports.get(port.index()).copied().unwrap_or_default()
    }
}
