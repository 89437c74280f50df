//! The workers together: starting them, telling them of ports, stopping them so that nothing is lost. Used by
//! the process, by tests and by the demo over memory; where queues come from is the caller's affair.

use crate::WorkerState;
use crate::affinity::Affinity;
use crate::conntrack::Conntrack;
use crate::counters::Counters;
use crate::mailbox::{Command, Mailbox, Owners};
use crate::sleep::{Sleeper, Waker};
use crate::worker::{Ended, PollMode, Worker};
use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use fairway_pmd::{Frame, Queue, Umem, spsc};
use fairway_tables::stats::StatsWriter;
use fairway_tables::{OpenError, PortId, PortKind, Reader};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

/// Frames on their way from one worker to another.
const HANDOFF_FRAMES: usize = 1024;
/// Commands that a worker has not yet obeyed.
const COMMANDS: usize = 4096;

/// Why the workers did not start, or one of them is gone.
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// A worker's view of the tables.
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
}

/// What workers are made from.
pub struct Plan<'a> {
    /// Core of each worker; `None` leaves it unpinned.
    pub cores: &'a [Option<CoreId>],
    /// When workers may sleep.
    pub poll: PollMode,
    /// Flows per worker at best speed.
    pub flows: usize,
    /// Port numbers are below this.
    pub ports: usize,
    /// Where frames come from.
    pub umem: &'a Umem,
    /// Connections, shared by all.
    pub conntrack: &'a Conntrack,
    /// Clients of services with session affinity, shared by all.
    pub affinity: &'a Affinity,
    /// Counters, one set per worker.
    pub stats: &'a StatsWriter,
}

struct Handle {
    thread: JoinHandle<Ended>,
    mailbox: Arc<Mailbox>,
    /// Commands given so far.
    told: AtomicU64,
    waker: Waker,
    /// Counts at the start, which may be a former process's.
    baseline: Counters,
}

/// Running workers. Dropping it leaves them running; end them with [`Crew::stop`].
pub struct Crew {
    handles: Vec<Handle>,
    owners: Arc<Owners>,
}

/// What the workers' end showed.
#[derive(Debug)]
pub struct Tally {
    /// Received minus sent, dropped and passed to the host, since the start: zero by invariant I2.
    pub packets_unaccounted: i128,
    /// Each worker's counts at the end.
    pub counters: Vec<Counters>,
}

impl Crew {
    /// Starts one worker per core of the plan. `reader` opens the tables, once per worker.
    ///
    /// # Errors
    /// See [`CrewError`]. Workers already started then run on without ports until the process ends.
    pub fn start(
        plan: &Plan<'_>,
        mut reader: impl FnMut() -> Result<Reader, OpenError>,
    ) -> Result<Crew, CrewError> {
        let count = plan.cores.len();
        let system = |what| move |source| CrewError::System { what, source };
        let mut sleepers = Vec::with_capacity(count);
        for _ in 0..count {
            sleepers.push(Sleeper::new().map_err(system("making a worker's eventfd"))?);
        }
        let wakers: Vec<Waker> = sleepers.iter().map(Sleeper::waker).collect();
        let owners = Arc::new(Owners::new(plan.ports));
        let mut rings = Rings::new(count);
        let last_call = Arc::new(Barrier::new(count));
        let mut crew = Crew { handles: Vec::with_capacity(count), owners: owners.clone() };
        for (id, (core, sleeper)) in plan.cores.iter().zip(sleepers).enumerate() {
            let stats = plan.stats.worker(id as u32);
            let mut state =
                WorkerState::new(plan.flows, plan.ports, plan.conntrack.clone(), plan.affinity.clone());
            state.counters = Counters::resume(&stats, plan.ports);
            let baseline = state.counters.clone();
            let mailbox = Arc::new(Mailbox {
                commands: ArrayQueue::new(COMMANDS),
                obeyed: AtomicU64::new(0),
                closed: ArrayQueue::new(COMMANDS),
            });
            let worker = Worker {
                id,
                state,
                cache: plan.umem.cache(),
                tables: reader()?,
                stats,
                owners: owners.clone(),
                mailbox: mailbox.clone(),
                handoff_in: rings.receivers(id),
                handoff_out: rings.senders(id),
                wakers: wakers.clone(),
                sleeper,
                poll: plan.poll,
                last_call: last_call.clone(),
            };
            let (core, ports) = (*core, plan.ports);
            let pinned = move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(core = core.id, "the kernel refuses to pin the worker; it runs unpinned");
                }
                worker.run(ports)
            };
            let thread = std::thread::Builder::new()
                .name(format!("fairway-w{id}"))
                .spawn(pinned)
                .map_err(system("starting a worker"))?;
            let waker = wakers[id].clone();
            crew.handles.push(Handle { thread, mailbox, told: AtomicU64::new(0), waker, baseline });
        }
        Ok(crew)
    }

    /// Number of workers.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Whether there is no worker.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// The handle that wakes a worker, for drivers without a descriptor to poll.
    pub fn waker(&self, worker: usize) -> Waker {
        self.handles[worker].waker.clone()
    }

    /// Gives a port's queues to workers: a pod's to one, several queues of a NIC to all in turn. Workers that
    /// have none of the port's queues hand its packets to the owner of the first. Returns that owner.
    pub fn open_port(&self, id: PortId, kind: PortKind, queues: Vec<Box<dyn Queue>>) -> usize {
        self.open_ports([(id, kind, queues)]);
        self.first_owner(id, kind)
    }

    /// Gives several ports' queues to workers at once: none receives a packet before all can be sent to.
    pub fn open_ports(&self, ports: impl IntoIterator<Item = (PortId, PortKind, Vec<Box<dyn Queue>>)>) {
        let all_told = Arc::new(AtomicBool::new(false));
        self.tell_all(|| Command::Await(all_told.clone()));
        for (id, kind, queues) in ports {
            let first = self.first_owner(id, kind);
            self.tell_all(|| Command::Know(id, kind));
            for (index, queue) in queues.into_iter().enumerate() {
                self.tell((first + index) % self.len(), Command::Open { port: id, kind, queue });
            }
            self.owners.set(id, Some(first as u16));
        }
        all_told.store(true, Ordering::Release);
        self.settle();
    }

    fn first_owner(&self, id: PortId, kind: PortKind) -> usize {
        if kind == PortKind::Pod { id.index() % self.len() } else { 0 }
    }

    /// Takes a port away. Its queues come back through [`Crew::reap`].
    pub fn close_port(&self, id: PortId) {
        self.owners.set(id, None);
        self.tell_all(|| Command::Close(id));
    }

    /// Has every worker go over to other tables.
    ///
    /// # Errors
    /// If `reader` cannot open them; workers told before that have gone over.
    pub fn change_tables(
        &self,
        mut reader: impl FnMut() -> Result<Reader, OpenError>,
    ) -> Result<(), OpenError> {
        for worker in 0..self.len() {
            self.tell(worker, Command::Tables(Box::new(reader()?)));
        }
        Ok(())
    }

    /// Has every worker look at its flows' connections again, each when its next packet comes, and waits until
    /// all will.
    pub fn recheck(&self) {
        self.tell_all(|| Command::Recheck);
        self.settle();
    }

    /// Drops queues that workers have closed; that closes sockets, which a worker does not wait for.
    pub fn reap(&self) {
        for handle in &self.handles {
            while let Some(queue) = handle.mailbox.closed.pop() {
                drop(queue);
            }
        }
    }

    /// The first worker that ended by itself.
    pub fn dead(&self) -> Option<usize> {
        self.handles.iter().position(|handle| handle.thread.is_finished())
    }

    /// Stops all workers, closes their queues, and brings every frame home.
    ///
    /// # Errors
    /// [`CrewError::WorkerDied`] if one had ended by itself before.
    pub fn stop(self) -> Result<Tally, CrewError> {
        let (tally, queues) = self.finish(|| Command::Stop)?;
        // Closing a socket waits for the kernel, each for some milliseconds: all at once.
        std::thread::scope(|scope| {
            for queue in queues {
                scope.spawn(move || drop(queue));
            }
        });
        Ok(tally)
    }

    /// Stops all workers with their queues open: each packet is processed, and each frame is home or in a queue.
    ///
    /// # Errors
    /// [`CrewError::WorkerDied`] if one had ended by itself before.
    pub fn pause(self) -> Result<(Tally, Vec<Box<dyn Queue>>), CrewError> {
        self.finish(|| Command::Pause)
    }

    fn finish(self, command: impl Fn() -> Command) -> Result<(Tally, Vec<Box<dyn Queue>>), CrewError> {
        if let Some(dead) = self.dead() {
            // The others would wait for it at the last call.
            return Err(CrewError::WorkerDied(dead));
        }
        self.tell_all(command);
        let mut tally = Tally { packets_unaccounted: 0, counters: Vec::new() };
        let mut all = Vec::new();
        let mut died = None;
        for (id, handle) in self.handles.into_iter().enumerate() {
            match handle.thread.join() {
                Ok(Ended { counters, cache, queues }) => {
                    tally.packets_unaccounted += counters.unaccounted() - handle.baseline.unaccounted();
                    tally.counters.push(counters);
                    all.extend(queues);
                    drop(cache);
                }
                Err(_) => died = Some(id),
            }
            while handle.mailbox.closed.pop().is_some() {}
        }
        died.map_or(Ok((tally, all)), |id| Err(CrewError::WorkerDied(id)))
    }

    /// Waits until the workers have obeyed every command given so far.
    pub fn settle(&self) {
        for handle in &self.handles {
            while handle.mailbox.obeyed.load(Ordering::Acquire) < handle.told.load(Ordering::Relaxed) {
                if handle.thread.is_finished() {
                    break;
                }
                handle.waker.wake();
                std::thread::yield_now();
            }
        }
    }

    fn tell(&self, worker: usize, command: Command) {
        let handle = &self.handles[worker];
        handle.told.fetch_add(1, Ordering::Relaxed);
        let mut command = command;
        // A worker looks into its mailbox in every loop; a full one is emptied in microseconds.
        while let Err(back) = handle.mailbox.commands.push(command) {
            if handle.thread.is_finished() {
                return;
            }
            command = back;
            handle.waker.wake();
            std::thread::yield_now();
        }
        handle.waker.wake();
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        (0..self.len()).for_each(|worker| self.tell(worker, command()));
    }
}

/// A hand-off ring from each worker to each other.
struct Rings {
    count: usize,
    senders: Vec<Option<spsc::Sender<Frame>>>,
    receivers: Vec<Option<spsc::Receiver<Frame>>>,
}

impl Rings {
    fn new(count: usize) -> Rings {
        let ring = |index: usize| {
            let other = index / count != index % count;
            other.then(|| spsc::ring(HANDOFF_FRAMES)).unzip()
        };
        let (senders, receivers) = (0..count * count).map(ring).unzip();
        Rings { count, senders, receivers }
    }

    fn senders(&mut self, from: usize) -> Vec<Option<spsc::Sender<Frame>>> {
        (0..self.count).map(|to| self.senders[from * self.count + to].take()).collect()
    }

    fn receivers(&mut self, to: usize) -> Vec<Option<spsc::Receiver<Frame>>> {
        (0..self.count).map(|from| self.receivers[from * self.count + to].take()).collect()
    }
}
