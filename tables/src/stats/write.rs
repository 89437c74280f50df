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
    /// for other counters. Made for other workers or ports, it is made anew with the same counts: those of
    /// workers that are no more are the first's now. Refuses if another process is writing it.
    pub fn create(dir: &Path, workers: u32, ports: u32) -> Result<StatsWriter, OpenError> {
        let geometry = check_size(workers, ports)?;
        std::fs::create_dir_all(dir).map_err(io_error(dir, "make folder"))?;
        let path = dir.join(FILE);
        let writer = match reopen(&path)? {
            Some(former) if former.geometry == geometry => former,
            former => {
                let (file, region) = make(dir, &path, geometry)?;
                let writer = StatsWriter { region, geometry, file: Some(file) };
                if let Some(former) = former {
                    writer.carry_over(&former);
                }
                writer
            }
        };
        writer.introduce();
        Ok(writer)
    }

    /// Goes on with the counters that a former image of this process left open as `file`, its lock still held:
    /// to readers, the writer was there all the time. `None` if they are not for these workers and ports, or the
    /// file is not `<dir>/stats` any more; [`StatsWriter::create`] then does better.
    pub fn adopt(dir: &Path, file: File, workers: u32, ports: u32) -> Option<StatsWriter> {
        use std::os::unix::fs::MetadataExt;
        let path = dir.join(FILE);
        let (named, open) = (std::fs::metadata(&path).ok()?, file.metadata().ok()?);
        if (named.dev(), named.ino()) != (open.dev(), open.ino()) {
            return None;
        }
        let writer = StatsWriter::over(&path, file)?;
        (writer.geometry == check_size(workers, ports).ok()?).then_some(writer)
    }

    /// The open file, to be left to the next image of this process; `None` on the heap.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The counters in a file that this process may write, if they count the same as this version.
    fn over(path: &Path, file: File) -> Option<StatsWriter> {
        let len = file.metadata().ok()?.len();
        if len < head::LEN as u64 {
            return None;
        }
        let region = WriteRegion::new(Region::map_write(&file).ok()?);
        check_head(path, &region, MAGIC, ABI_VERSION, Geometry::hash()).ok()?;
        let word = |at| u32::try_from(region.load64(at, Ordering::Relaxed)).unwrap_or(u32::MAX);
        let geometry = check_size(word(head::WORKERS), word(head::PORTS)).ok()?;
        (len == geometry.len() as u64).then_some(StatsWriter { region, geometry, file: Some(file) })
    }

    fn carry_over(&self, former: &StatsWriter) {
        if self.geometry.workers == 0 {
            return;
        }
        for from in 0..former.geometry.workers {
            let to = if from < self.geometry.workers { from } else { 0 };
            let (from, to) = (former.worker(from), self.worker(to));
            for counter in Counter::ALL {
                to.set_counter(*counter, to.counter(*counter).wrapping_add(from.counter(*counter)));
            }
            for reason in DropReason::ALL {
                to.set_drop(*reason, to.drops(*reason).wrapping_add(from.drops(*reason)));
            }
            for port in (0..former.geometry.ports.min(self.geometry.ports)).map(|port| PortId(port as u16)) {
                to.set_port(port, to.port(port).merged(from.port(port)));
            }
        }
        let starts = former.region.load64(head::STARTS, Ordering::Relaxed);
        self.region.store64(head::STARTS, starts, Ordering::Relaxed);
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

    /// Says what the process is doing. An image says once that it forwards, which counts as a start.
    pub fn set_state(&self, state: ProcessState) {
        if state == ProcessState::Running {
            let starts = self.region.load64(head::STARTS, Ordering::Relaxed);
            self.region.store64(head::STARTS, starts.wrapping_add(1), Ordering::Relaxed);
        }
        self.region.store64(head::STATE, state as u64, Ordering::Relaxed);
    }

    /// How often a process, or an image of one, began to forward since the file was made.
    pub fn starts(&self) -> u64 {
        self.region.load64(head::STARTS, Ordering::Relaxed)
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

/// The counters of an existing file, locked; `None` if there is none that counts the same as this version.
fn reopen(path: &Path) -> Result<Option<StatsWriter>, OpenError> {
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
    Ok(StatsWriter::over(path, file))
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
