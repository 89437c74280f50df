//! The process around the workers: its main thread opens what has to be opened, keeps ports in step with
//! the tables, watches the workers, and closes everything in order. No packet passes through it.

mod config;
mod ports;

pub use config::{Config, ConfigError, parse_cores};

use crate::conntrack::{Conntrack, ConntrackError, Timeouts};
use crate::crew::{Crew, CrewError, Plan};
use fairway_pmd::af_xdp::{AfXdp, AfXdpError};
use fairway_pmd::steering::{Steering, SteeringError};
use fairway_pmd::{Umem, UmemConfig, UmemError};
use fairway_tables::stats::{ProcessState, StatsWriter};
use fairway_tables::{OpenError, Reader};
use ports::Ports;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Port numbers are below this.
pub const MAX_PORTS: usize = 1024;
/// How often the main thread looks at the tables.
const LOOK: Duration = Duration::from_millis(10);
/// How often it does what takes system calls.
const SLOW_WORK: Duration = Duration::from_millis(500);

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
    /// A port, for a reason that does not pass: this process lacks a capability.
    #[error(transparent)]
    Port(#[from] AfXdpError),
    /// The connection table.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// Control's tables, or the counters' file.
    #[error(transparent)]
    Tables(#[from] OpenError),
    /// The workers.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// The run folder cannot be made.
    #[error("can't make the run folder {path}: {source}; choose another with --run-dir")]
    RunDir {
        /// The folder.
        path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The end did not add up.
    #[error("shutdown found {frames} frames missing (I1) and {packets} packets unaccounted for (I2)")]
    Invariant {
        /// Frames that did not come home.
        frames: usize,
        /// Received minus sent, dropped and passed to the host.
        packets: i128,
    },
}

/// Runs until `stop` is set.
///
/// # Errors
/// See [`EngineError`]; whatever was opened is closed again.
pub fn run(config: &Config, stop: &AtomicBool) -> Result<(), EngineError> {
    let cores = config.worker_cores()?;
    let run_dir = &config.run_dir;
    std::fs::create_dir_all(run_dir)
        .map_err(|source| EngineError::RunDir { path: run_dir.display().to_string(), source })?;
    let conntrack = Conntrack::open(&run_dir.join("conntrack"), config.connections, Timeouts::default())?;
    let steering = Steering::load()?;
    let umem =
        Umem::new(UmemConfig { frames: config.frames, frame_size: 2048, huge_pages: config.huge_pages })?;
    let stats = StatsWriter::create(run_dir, cores.len() as u32, MAX_PORTS as u32)?;
    let Some(tables) = wait_for_tables(run_dir, "engine", stop)? else { return Ok(()) };
    tracing::info!(
        generation = tables.view().generation(),
        connections = conntrack.summary().used,
        frames = config.frames,
        huge_pages = umem.has_huge_pages(),
        cores = ?cores.iter().map(|core| core.id).collect::<Vec<_>>(),
        "engine starts"
    );
    let plan = Plan {
        cores: &cores.iter().copied().map(Some).collect::<Vec<_>>(),
        poll: config.poll,
        flows: config.flows,
        ports: MAX_PORTS,
        umem: &umem,
        conntrack: &conntrack,
        stats: &stats,
    };
    let crew = Crew::start(&plan, || Reader::open(run_dir, "worker"))?;
    stats.set_state(ProcessState::Running);
    let mut ports = Ports::new(AfXdp::new(&umem), steering, tables, config.poll);
    let outcome = supervise(run_dir, &mut ports, &crew, &stats, &conntrack, stop);
    ports.detach_all();
    let ended = end(crew, &umem);
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

fn supervise(
    run_dir: &Path,
    ports: &mut Ports,
    crew: &Crew,
    stats: &StatsWriter,
    conntrack: &Conntrack,
    stop: &AtomicBool,
) -> Result<(), EngineError> {
    let mut slow_work_at = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        ports.sync(crew)?;
        crew.reap();
        if let Some(dead) = crew.dead() {
            return Err(CrewError::WorkerDied(dead).into());
        }
        if slow_work_at.elapsed() > SLOW_WORK {
            slow_work_at = Instant::now();
            let summary = conntrack.summary();
            stats.set_conntrack(summary.used as u64, summary.capacity as u64);
            if ports.tables_superseded() {
                ports.reopen_tables(run_dir, crew)?;
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Stops the workers, and checks invariants I1 and I2.
fn end(crew: Crew, umem: &Umem) -> Result<(), EngineError> {
    let packets = crew.stop()?.packets_unaccounted;
    let frames = umem.pool().missing();
    tracing::info!(frames_missing = frames, packets_unaccounted = packets, "engine ends: I1 and I2");
    if frames != 0 || packets != 0 {
        return Err(EngineError::Invariant { frames, packets });
    }
    Ok(())
}
