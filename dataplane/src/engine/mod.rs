//! The process around the workers: its main thread opens what has to be opened, keeps ports in step with
//! the tables, watches the workers, and closes everything in order. No packet passes through it.

mod check;
mod config;
mod handover;
mod ports;
mod program;
mod report;
pub mod requests;
mod resume;
mod service_steering;

pub use check::can_take_over;
pub use config::{Config, ConfigError, parse_cores};
pub use handover::{Handover, HandoverError, begin_anew, hold_back_hangup};
pub use program::{Answer, Program};
pub use report::{Outcome, RestartReport};

use crate::affinity::{Affinity, AffinityError};
use crate::clock;
use crate::conntrack::{ConnRef, Conntrack, ConntrackError};
use crate::crew::{Crew, CrewError, Plan};
use core_affinity::CoreId;
use fairway_pmd::af_xdp::{AfXdp, AfXdpError, AfXdpQueue};
use fairway_pmd::steering::{LinkState, Steering, SteeringError};
use fairway_pmd::{Queue, Umem, UmemConfig, UmemError};
use fairway_tables::stats::{ProcessState, StatsWriter};
use fairway_tables::{OpenError, Reader};
use handover::{Parting, TakenOver};
use ports::Ports;
use requests::{Request, Requests};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Port numbers are below this.
pub const MAX_PORTS: usize = 1024;
/// How often the main thread looks at the tables.
const LOOK: Duration = Duration::from_millis(10);
/// How often it does what takes system calls.
const SLOW_WORK: Duration = Duration::from_millis(500);
/// How long a port that cannot be opened keeps the engine from saying that it runs.
const OPENING: Duration = Duration::from_secs(5);

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
    /// The table of clients with session affinity.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// Control's tables, or the counters' file.
    #[error(transparent)]
    Tables(#[from] OpenError),
    /// The workers.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// The program that was to take this image's place.
    #[error("the engine could not be started anew in place of an image that took nothing over: {0}")]
    Replace(std::io::Error),
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

/// What the process is told from outside, and what it is.
pub struct Process {
    /// Set to end.
    pub stop: Arc<AtomicBool>,
    /// Set to be replaced by the program that is at this one's path then.
    pub restart: Arc<AtomicBool>,
    /// The program.
    pub program: Program,
}

/// What there is before ports are: fresh, or left by a former image.
struct Start {
    af_xdp: AfXdp,
    stats: StatsWriter,
    queues: Vec<AfXdpQueue>,
    links: Vec<(LinkState, OwnedFd)>,
    /// When a former image stopped forwarding.
    stopped_ns: Option<u64>,
    packets_unaccounted: i128,
    /// Loaded in time, where no former image's program is attached meanwhile.
    steering: Option<Steering>,
}

impl Start {
    fn fresh(config: &Config, workers: u32) -> Result<Start, EngineError> {
        let umem = UmemConfig { frames: config.frames, frame_size: 2048, huge_pages: config.huge_pages };
        // Memory and program both take the kernel some time.
        let (umem, steering) = std::thread::scope(|scope| {
            let umem = scope.spawn(move || Umem::new(umem));
            let steering = Steering::load();
            (umem.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), steering)
        });
        Ok(Start {
            af_xdp: AfXdp::new(&umem?),
            stats: StatsWriter::create(&config.run_dir, workers, MAX_PORTS as u32)?,
            queues: Vec::new(),
            links: Vec::new(),
            stopped_ns: None,
            packets_unaccounted: 0,
            steering: Some(steering?),
        })
    }

    fn taken_over(config: &Config, workers: u32, left: TakenOver) -> Result<Start, EngineError> {
        let TakenOver { af_xdp, queues, links, counters, stopped_ns, packets_unaccounted } = left;
        let (run_dir, ports) = (&config.run_dir, MAX_PORTS as u32);
        let stats = match StatsWriter::adopt(run_dir, counters, workers, ports) {
            Some(stats) => stats,
            None => StatsWriter::create(run_dir, workers, ports)?,
        };
        let stopped_ns = Some(stopped_ns);
        Ok(Start { af_xdp, stats, queues, links, stopped_ns, packets_unaccounted, steering: None })
    }
}

/// Runs until `process.stop` is set. Does not return if the process is replaced meanwhile. `left`: what a former
/// image left.
///
/// # Errors
/// See [`EngineError`]; whatever was opened is closed again.
pub fn run(config: &Config, process: &Process, left: Option<Handover>) -> Result<(), EngineError> {
    let cores = config.worker_cores()?;
    let run_dir = &config.run_dir;
    std::fs::create_dir_all(run_dir)
        .map_err(|source| EngineError::RunDir { path: run_dir.display().to_string(), source })?;
    let taken_over = match left.map(|left| left.take_over(config)).transpose() {
        Ok(taken_over) => taken_over,
        // The kernel may still use some of the memory, so this image is of no use any more.
        Err(reason) => return Err(EngineError::Replace(handover::begin_anew(&process.program, &reason))),
    };
    let workers = cores.len() as u32;
    // Beside the rest: it may hold a million connections.
    let (conntrack, start) = std::thread::scope(|scope| {
        let path = run_dir.join("conntrack");
        let conntrack = scope.spawn(move || Conntrack::open(&path, config.connections, config.timeouts));
        let start = match taken_over {
            None => Start::fresh(config, workers),
            Some(left) => Start::taken_over(config, workers, left),
        };
        (conntrack.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), start)
    });
    let (conntrack, start) = (conntrack?.tcp_liberal(config.tcp_liberal), start?);
    let Some(tables) = wait_for_tables(run_dir, "engine", &process.stop)? else { return Ok(()) };
    tracing::info!(
        generation = tables.view().generation(),
        connections = conntrack.summary().used,
        tcp_liberal = config.tcp_liberal,
        frames = config.frames,
        huge_pages = start.af_xdp.umem().has_huge_pages(),
        cores = ?cores.iter().map(|core| core.id).collect::<Vec<_>>(),
        "engine starts"
    );
    Engine::start(config, process, cores, conntrack, start, tables)?.run()
}

/// The running engine.
struct Engine<'a> {
    config: &'a Config,
    process: &'a Process,
    cores: Vec<Option<CoreId>>,
    conntrack: Conntrack,
    affinity: Affinity,
    stats: StatsWriter,
    umem: Umem,
    ports: Ports,
    crew: Crew,
    /// Of the restart that this image comes from.
    report: Option<RestartReport>,
    /// Of workers that have ended already.
    packets_unaccounted: i128,
}

impl<'a> Engine<'a> {
    fn start(
        config: &'a Config,
        process: &'a Process,
        cores: Vec<CoreId>,
        conntrack: Conntrack,
        start: Start,
        tables: Reader,
    ) -> Result<Engine<'a>, EngineError> {
        let Start { af_xdp, stats, queues, links, stopped_ns, packets_unaccounted, steering } = start;
        let cores: Vec<_> = cores.into_iter().map(Some).collect();
        let umem = af_xdp.umem().clone();
        let affinity = Affinity::open(&config.run_dir.join("affinity"))?;
        let crew = hire(config, &cores, &umem, &conntrack, &affinity, &stats)?;
        let resumed = resume::resume(queues, links, tables.view(), &crew);
        if let Some(stopped_ns) = stopped_ns {
            let gap_ms = clock::monotonic_ns().saturating_sub(stopped_ns) as f64 / 1e6;
            tracing::info!(gap_ms, ports = resumed.len(), "forwarding again");
        }
        let handed_over = stopped_ns.is_some();
        let report = handed_over.then(|| RestartReport::read(&config.run_dir)).flatten();
        let report = report.map(RestartReport::forwarding_again);
        let steering = steering.map_or_else(Steering::load, Ok)?;
        let mut ports = Ports::new(af_xdp, steering, tables, config.poll);
        ports.take_over(resumed, &crew);
        Ok(Engine {
            config,
            process,
            cores,
            conntrack,
            affinity,
            stats,
            umem,
            ports,
            crew,
            report,
            packets_unaccounted,
        })
    }

    /// Opens what is not open yet, and says that it runs. After a kill the kernel may hold on to a port's queue for a moment.
    fn begin(&mut self) -> Result<(), EngineError> {
        let begun = Instant::now();
        self.ports.sync(&self.crew)?;
        while !self.ports.all_open()
            && begun.elapsed() < OPENING
            && !self.process.stop.load(Ordering::Relaxed)
        {
            std::thread::sleep(LOOK);
            self.ports.sync(&self.crew)?;
        }
        self.crew.settle();
        self.stats.set_state(ProcessState::Running);
        let (run_dir, starts) = (&self.config.run_dir, self.stats.starts());
        match self.report.take() {
            Some(report) => report.end(run_dir, Outcome::HandedOver, None, starts),
            None => RestartReport::end_reopened(run_dir, starts),
        }
        Ok(())
    }

    fn run(mut self) -> Result<(), EngineError> {
        let mut outcome = self.begin();
        while outcome.is_ok() && !self.process.stop.load(Ordering::Relaxed) {
            match self.supervise() {
                Ok(()) if self.process.restart.swap(false, Ordering::Relaxed) => self = self.restart()?,
                other => outcome = other,
            }
        }
        self.ports.detach_all();
        let Engine { crew, umem, stats, packets_unaccounted, .. } = self;
        let ended = end(crew, &umem, packets_unaccounted);
        stats.set_state(ProcessState::Stopped);
        outcome.and(ended)
    }

    /// Looks after everything until there is something to do.
    fn supervise(&mut self) -> Result<(), EngineError> {
        let Engine { ports, crew, conntrack, stats, config, process, .. } = self;
        let mut slow_work_at = Instant::now();
        let mut requests = Requests::listen(&config.run_dir)
            .inspect_err(|error| tracing::error!(%error, "requests cannot be served; packets are"))
            .ok();
        let told = || process.stop.load(Ordering::Relaxed) || process.restart.load(Ordering::Relaxed);
        while !told() {
            ports.sync(crew)?;
            crew.reap();
            if let Some(requests) = &mut requests {
                requests.serve(|request| obey(request, crew, conntrack));
            }
            if let Some(dead) = crew.dead() {
                return Err(CrewError::WorkerDied(dead).into());
            }
            if slow_work_at.elapsed() > SLOW_WORK {
                slow_work_at = Instant::now();
                let summary = conntrack.summary();
                stats.set_conntrack(summary.used as u64, summary.capacity as u64);
                if ports.tables_superseded() {
                    ports.reopen_tables(&config.run_dir, crew)?;
                }
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Replaces this image by the program at its path, if that is fit. Returns only if it was not, or could not
    /// be executed; then everything goes on as before.
    fn restart(self) -> Result<Engine<'a>, EngineError> {
        let (run_dir, program) = (&self.config.run_dir, &self.process.program);
        tracing::info!(program = %program.path().display(), "asked to restart");
        let mut report = RestartReport::begin(run_dir, self.stats.starts());
        if let Err(unfit) = program.check() {
            report.end(run_dir, Outcome::Refused, Some(unfit.to_string()), self.stats.starts());
            return Ok(self);
        }
        let Engine { config, process, cores, conntrack, affinity, stats, umem, ports, crew, .. } = self;
        let mut packets_unaccounted = self.packets_unaccounted;
        crew.reap();
        crew.settle();
        let stopped_ns = clock::monotonic_ns();
        let (tally, queues) = crew.pause()?;
        packets_unaccounted += tally.packets_unaccounted;
        report.stopped(run_dir, stopped_ns);
        let mut queues: Vec<AfXdpQueue> = queues.into_iter().filter_map(own_queue).collect();
        stock_up(&mut queues, &umem);
        let parting = Parting {
            umem: &umem,
            queues: &queues.iter().collect::<Vec<_>>(),
            links: ports.links(),
            stats: &stats,
            stopped_ns,
            packets_unaccounted,
        };
        let error = parting.exec(program);
        let crew = hire(config, &cores, &umem, &conntrack, &affinity, &stats)?;
        resume::go_on(queues, |id| ports.kind(id), &crew);
        let reason = format!("{} cannot be executed: {error}", program.path().display());
        report.end(run_dir, Outcome::Failed, Some(reason), stats.starts());
        let report = None;
        Ok(Engine {
            config,
            process,
            cores,
            conntrack,
            affinity,
            stats,
            umem,
            ports,
            crew,
            report,
            packets_unaccounted,
        })
    }
}

/// The driver's own queue. The engine opens no others.
fn own_queue(queue: Box<dyn Queue>) -> Option<AfXdpQueue> {
    let queue: Box<dyn Any> = queue;
    queue.downcast().ok().map(|queue| *queue)
}

/// Shares what frames are left out among the queues: nobody takes packets out of them for a while.
fn stock_up(queues: &mut [AfXdpQueue], umem: &Umem) {
    let share = umem.pool().home() / queues.len().max(1);
    let mut cache = umem.cache();
    queues.iter_mut().for_each(|queue| queue.stock_up(&mut cache, share as u32));
}

fn hire(
    config: &Config,
    cores: &[Option<CoreId>],
    umem: &Umem,
    conntrack: &Conntrack,
    affinity: &Affinity,
    stats: &StatsWriter,
) -> Result<Crew, EngineError> {
    let (poll, flows, ports) = (config.poll, config.flows, MAX_PORTS);
    let plan = Plan { cores, poll, flows, ports, umem, conntrack, affinity, stats };
    Ok(Crew::start(&plan, || Reader::open(&config.run_dir, "worker"))?)
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

fn obey(request: Request, crew: &Crew, conntrack: &Conntrack) -> requests::Answer {
    match request {
        Request::DeleteConnections(connections) => {
            let conns = connections.into_iter().map(|(index, generation)| ConnRef { index, generation });
            let deleted = conns.filter(|conn| conntrack.remove(*conn)).count();
            if deleted > 0 {
                crew.recheck();
                tracing::info!(connections = deleted, "connections deleted on request");
            }
            requests::Answer::Deleted(deleted)
        }
    }
}

/// Stops the workers, and checks invariants I1 and I2 over this image and those before it.
fn end(crew: Crew, umem: &Umem, before: i128) -> Result<(), EngineError> {
    let packets = before + crew.stop()?.packets_unaccounted;
    let frames = umem.pool().missing();
    tracing::info!(frames_missing = frames, packets_unaccounted = packets, "engine ends: I1 and I2");
    if frames != 0 || packets != 0 {
        return Err(EngineError::Invariant { frames, packets });
    }
    Ok(())
}
