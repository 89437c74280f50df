//! The process around the workers: its main thread opens what has to be opened, keeps ports in step with
//! the tables, watches the workers, and closes everything in order. No packet passes through it.

mod config;
mod ports;

pub use config::{Config, ConfigError, parse_cores};

use crate::WorkerState;
use crate::conntrack::{Conntrack, ConntrackError, Timeouts};
use crate::counters::Counters;
use crate::sleep::{Sleeper, Waker};
use crate::worker::{Command, Ended, Mailbox, Owners, Worker};
use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use fairway_pmd::af_xdp::AfXdp;
use fairway_pmd::spsc;
use fairway_pmd::steering::{Steering, SteeringError};
use fairway_pmd::{Umem, UmemConfig, UmemError};
use fairway_tables::stats::{ProcessState, StatsWriter};
use fairway_tables::{OpenError, Reader};
use ports::Ports;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Port numbers are below this.
pub const MAX_PORTS: usize = 1024;
/// How often the main thread looks at the tables.
const LOOK_MS: u64 = 10;
/// Frames on their way from one worker to another.
const HANDOFF_FRAMES: usize = 1024;

/// Why the engine did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An option makes no sense on this machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The frames' memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// The steering program.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// The connection table.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// Control's tables, or the counters' file.
    #[error(transparent)]
    Tables(#[from] OpenError),
    /// The kernel refuses something that every process may have.
    #[error("{what}: {source}; check limits on open files (ulimit -n) and threads")]
    System {
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A worker ended by itself.
    #[error("worker {0} stopped by a fault; the log above says which. Traffic falls back to the kernel")]
    WorkerDied(usize),
    /// The end did not add up.
    #[error("shutdown found {frames} frames missing (I1) and {packets} packets unaccounted for (I2)")]
    Invariant {
        /// Frames that did not come home.
        frames: usize,
        /// Received minus sent, dropped and passed to the host.
        packets: i128,
    },
}

struct Handle {
    thread: JoinHandle<Ended>,
    mailbox: Arc<Mailbox>,
    waker: Waker,
    baseline: Counters,
}

/// Runs until `stop` is set.
///
/// # Errors
/// See [`EngineError`]; whatever was opened is closed again.
pub fn run(config: &Config, stop: &AtomicBool) -> Result<(), EngineError> {
    let cores = config.worker_cores()?;
    std::fs::create_dir_all(&config.run_dir)
        .map_err(|source| EngineError::System { what: "making the run folder", source })?;
    let conntrack =
        Conntrack::open(&config.run_dir.join("conntrack"), config.connections, Timeouts::default())?;
    let steering = Steering::load()?;
    let umem =
        Umem::new(UmemConfig { frames: config.frames, frame_size: 2048, huge_pages: config.huge_pages })?;
    let stats = StatsWriter::create(&config.run_dir, cores.len() as u32, MAX_PORTS as u32)?;
    let Some(tables) = wait_for_tables(&config.run_dir, "engine", stop)? else { return Ok(()) };
    tracing::info!(
        generation = tables.view().generation(),
        connections = conntrack.summary().used,
        frames = config.frames,
        huge_pages = umem.has_huge_pages(),
        cores = ?cores.iter().map(|core| core.id).collect::<Vec<_>>(),
        "engine starts"
    );
    let owners = Arc::new(Owners::new(MAX_PORTS));
    let workers = start_workers(config, &cores, &umem, &conntrack, &stats, &owners)?;
    stats.set_state(ProcessState::Running);
    let mut ports = Ports::new(AfXdp::new(&umem), steering, tables, owners, config.poll);
    let outcome = supervise(&config.run_dir, &mut ports, &workers, &stats, &conntrack, stop);
    ports.detach_all();
    let ended = end(workers, ports, &umem);
    stats.set_state(ProcessState::Stopped);
    outcome.and(ended)
}

/// Opens control's tables once they are there; `None` if told to stop before.
fn wait_for_tables(run_dir: &Path, name: &str, stop: &AtomicBool) -> Result<Option<Reader>, OpenError> {
    let mut said = false;
    while !stop.load(Ordering::Relaxed) {
        match Reader::open(run_dir, name) {
            Ok(reader) => return Ok(Some(reader)),
            Err(OpenError::Missing { .. }) => {
                if !said {
                    tracing::info!(path = %run_dir.display(), "waiting for fairway-control's tables");
                    said = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn start_workers(
    config: &Config,
    cores: &[CoreId],
    umem: &Umem,
    conntrack: &Conntrack,
    stats: &StatsWriter,
    owners: &Arc<Owners>,
) -> Result<Vec<Handle>, EngineError> {
    let count = cores.len();
    let system = |what| move |source| EngineError::System { what, source };
    let mut sleepers = Vec::with_capacity(count);
    for _ in 0..count {
        sleepers.push(Sleeper::new().map_err(system("making a worker's eventfd"))?);
    }
    let wakers: Vec<Waker> = sleepers.iter().map(Sleeper::waker).collect();
    let mut rings = Rings::new(count);
    let last_call = Arc::new(Barrier::new(count));
    let mut handles: Vec<Handle> = Vec::with_capacity(count);
    for (id, (core, sleeper)) in cores.iter().zip(sleepers).enumerate() {
        let worker_stats = stats.worker(id as u32);
        let mut state = WorkerState::new(config.flows, MAX_PORTS, conntrack.clone());
        state.counters = Counters::resume(&worker_stats, MAX_PORTS);
        let baseline = state.counters.clone();
        let mailbox = Arc::new(Mailbox { commands: ArrayQueue::new(4096), closed: ArrayQueue::new(4096) });
        let worker = Worker {
            id,
            state,
            cache: umem.cache(),
            tables: Reader::open(&config.run_dir, "worker")?,
            stats: worker_stats,
            owners: owners.clone(),
            mailbox: mailbox.clone(),
            handoff_in: rings.receivers(id),
            handoff_out: rings.senders(id),
            wakers: wakers.clone(),
            sleeper,
            poll: config.poll,
            last_call: last_call.clone(),
        };
        let core = *core;
        let pinned = move || {
            if !core_affinity::set_for_current(core) {
                tracing::warn!(core = core.id, "the kernel refuses to pin the worker; it runs unpinned");
            }
            worker.run(MAX_PORTS)
        };
        let thread = std::thread::Builder::new()
            .name(format!("fairway-w{id}"))
            .spawn(pinned)
            .map_err(system("starting a worker"));
        match thread {
            Ok(thread) => handles.push(Handle { thread, mailbox, waker: wakers[id].clone(), baseline }),
            // The others wait for a last call that never comes; the process ends anyway.
            Err(error) => return Err(error),
        }
    }
    Ok(handles)
}

type Ring = (Option<spsc::Sender<fairway_pmd::Frame>>, Option<spsc::Receiver<fairway_pmd::Frame>>);

/// A hand-off ring from each worker to each other.
struct Rings {
    count: usize,
    rings: Vec<Ring>,
}

impl Rings {
    fn new(count: usize) -> Rings {
        let make = |index: usize| {
            if index / count == index % count {
                return (None, None);
            }
            let (sender, receiver) = spsc::ring(HANDOFF_FRAMES);
            (Some(sender), Some(receiver))
        };
        Rings { count, rings: (0..count * count).map(make).collect() }
    }

    fn senders(&mut self, from: usize) -> Vec<Option<spsc::Sender<fairway_pmd::Frame>>> {
        (0..self.count).map(|to| self.rings[from * self.count + to].0.take()).collect()
    }

    fn receivers(&mut self, to: usize) -> Vec<Option<spsc::Receiver<fairway_pmd::Frame>>> {
        (0..self.count).map(|from| self.rings[from * self.count + to].1.take()).collect()
    }
}

fn supervise(
    run_dir: &Path,
    ports: &mut Ports,
    workers: &[Handle],
    stats: &StatsWriter,
    conntrack: &Conntrack,
    stop: &AtomicBool,
) -> Result<(), EngineError> {
    let mailboxes: Vec<_> = workers.iter().map(|handle| (&*handle.mailbox, &handle.waker)).collect();
    let mut gauges_at = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        ports.sync(&mailboxes);
        for (mailbox, _) in &mailboxes {
            // Dropping a queue closes its socket.
            while let Some(queue) = mailbox.closed.pop() {
                drop(queue);
            }
        }
        if let Some(dead) = workers.iter().position(|handle| handle.thread.is_finished()) {
            return Err(EngineError::WorkerDied(dead));
        }
        if gauges_at.elapsed() > Duration::from_millis(500) {
            gauges_at = Instant::now();
            let summary = conntrack.summary();
            stats.set_conntrack(summary.used as u64, summary.capacity as u64);
            if ports.tables_superseded() {
                ports.reopen_tables(run_dir, &mailboxes)?;
            }
        }
        std::thread::sleep(Duration::from_millis(LOOK_MS));
    }
    Ok(())
}

/// Stops the workers, brings every frame home, and checks invariants I1 and I2.
fn end(workers: Vec<Handle>, ports: Ports, umem: &Umem) -> Result<(), EngineError> {
    for handle in &workers {
        let _ = handle.mailbox.commands.push(Command::Stop);
        handle.waker.wake();
    }
    let mut packets = 0;
    let mut died = None;
    let mut caches = Vec::new();
    for (id, handle) in workers.into_iter().enumerate() {
        match handle.thread.join() {
            Ok(Ended { counters, cache, queues }) => {
                packets += counters.unaccounted() - handle.baseline.unaccounted();
                drop(queues);
                caches.push(cache);
            }
            Err(_) => died = Some(id),
        }
        while handle.mailbox.closed.pop().is_some() {}
    }
    drop(caches);
    drop(ports);
    if let Some(id) = died {
        return Err(EngineError::WorkerDied(id));
    }
    let frames = umem.pool().missing();
    tracing::info!(frames_missing = frames, packets_unaccounted = packets, "engine ends: I1 and I2");
    if frames != 0 || packets != 0 {
        return Err(EngineError::Invariant { frames, packets });
    }
    Ok(())
}
