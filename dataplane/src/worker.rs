//! The worker loop: all ring operations, around the pure [`process`].
//!
//! One loop: take commands (rarely), receive and process each queue, send what processing left, take what
//! other workers hand over, wake the kernel where it asks, say "quiescent", and now and then a slice of
//! housekeeping, or of [`chores`] before sleep. In steady state it neither allocates, locks, formats nor logs, and its only system calls
//! are ring wake-ups and, with adaptive polling, sleep.

use crate::chores::{self, Chores};
use crate::clock::{self, Now};
use crate::counters::Counters;
use crate::mailbox::{Command, Mailbox, Owners};
use crate::process;
use crate::sleep::{Sleeper, Waker};
use crate::state::WorkerState;
use crate::tx::TxBatches;
use fairway_pmd::spsc::{Receiver, Sender};
use fairway_pmd::{Burst, Frame, FrameCache, Queue};
use fairway_tables::stats::{Counter, Stage, WorkerStats};
use fairway_tables::{DropReason, PortId, PortKind, Reader};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

/// When a worker may sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PollMode {
    /// Never: lowest latency, one core always busy.
    Busy,
    /// After this many idle microseconds, until a packet comes.
    Adaptive {
        /// How long to spin first.
        spin_us: u32,
    },
}

/// Everything a worker is made of.
pub struct Worker {
    /// Its number.
    pub id: usize,
    /// Private memory.
    pub state: WorkerState,
    /// Its stock of frames.
    pub cache: FrameCache,
    /// Control's tables.
    pub tables: Reader,
    /// Its counters in shared memory.
    pub stats: WorkerStats,
    /// Which worker serves which port.
    pub owners: Arc<Owners>,
    /// Commands and returned queues.
    pub mailbox: Arc<Mailbox>,
    /// Frames from other workers, by their number; `None` at its own.
    pub handoff_in: Vec<Option<Receiver<Frame>>>,
    /// Frames to other workers.
    pub handoff_out: Vec<Option<Sender<Frame>>>,
    /// Wakers of all workers.
    pub wakers: Vec<Waker>,
    /// Its own sleep.
    pub sleeper: Sleeper,
    /// When to sleep.
    pub poll: PollMode,
    /// Where workers meet at the end, so that none hands over to one that has left.
    pub last_call: Arc<Barrier>,
}

struct Slot {
    port: PortId,
    queue: Box<dyn Queue>,
    unsent: bool,
    busy_polled: bool,
    /// Whether packets of it wake the sleeper; see [`Worker::watch`].
    watched: bool,
    /// Whether packets came or left since this was last asked.
    moved: bool,
}

/// The loop's own variables, apart from what it is made of.
struct Run {
    queues: Vec<Slot>,
    /// Place in `queues` by port.
    by_port: Vec<Option<u16>>,
    host: u16,
    tx: TxBatches,
    rx: Box<Burst>,
    now: Now,
    loops: u64,
    idle_since: Option<u64>,
    /// What `loops` was when the worker last slept.
    slept_at: u64,
    chores: Chores,
    /// Queues whose drops in the kernel were taken in, of this second.
    asked: (u32, usize),
}

/// How a worker ended.
pub struct Ended {
    /// Its counts at the end.
    pub counters: Counters,
    /// Its stock, still holding frames.
    pub cache: FrameCache,
    /// Its queues: closed after [`Command::Stop`], open after [`Command::Pause`].
    pub queues: Vec<Box<dyn Queue>>,
}

/// A busy worker looks for changes of the tables, lets the writer reuse what it may have been reading, and has the kernel
/// look for packets on ports that are busy polled and had none, this often at most.
pub const LOOK_US: u64 = 20;
/// Idle workers look up at least this often.
const SLEEP_MS: i32 = 100;
/// Counters are committed, and the clock read, once in so many loops.
const COMMIT_LOOPS: u64 = 64;
/// One stage's percentiles are worked out once in so many loops.
const SUMMARY_LOOPS: u64 = 4096;
/// A worker that has not slept for so many loops, at least some milliseconds of packets, stops watching the queues that have them.
const AWAKE_LOOPS: u64 = 4096;
/// Housekeeping slices run once in so many loops.
const HOUSEKEEP_LOOPS: u64 = 8;

impl Worker {
    /// Runs until [`Command::Stop`] or [`Command::Pause`].
    pub fn run(mut self, ports: usize) -> Ended {
        let mut run = Run {
            queues: Vec::with_capacity(ports),
            by_port: vec![None; ports],
            host: u16::MAX,
            tx: TxBatches::new(ports),
            rx: Box::default(),
            now: Now::read(),
            loops: 0,
            idle_since: None,
            slept_at: 0,
            chores: Chores::new((f64::from(SLEEP_MS) * 1e6 * clock::tsc_per_ns()) as u64, clock::tsc()),
            asked: (0, 0),
        };
        self.state.look_every_us(LOOK_US);
        let look_clocks = (LOOK_US as f64 * 1e3 * clock::tsc_per_ns()) as u64;
        let mut quiescent_at = 0;
        let spin_clocks = match self.poll {
            PollMode::Busy => u64::MAX,
            PollMode::Adaptive { spin_us } => (f64::from(spin_us) * 1e3 * clock::tsc_per_ns()) as u64,
        };
        let close = loop {
            if !self.mailbox.commands.is_empty()
                && let Some(close) = self.obey(&mut run)
            {
                break close;
            }
            let start = clock::tsc();
            let received = self.receive(&mut run);
            let handed = self.take_handoffs(&mut run);
            self.kick(&mut run);
            if received + handed == 0 || start.wrapping_sub(quiescent_at) >= look_clocks {
                self.tables.quiescent();
                quiescent_at = start;
                run.queues.iter_mut().filter(|s| s.busy_polled).for_each(|s| s.queue.poll_kernel());
            }
            run.loops += 1;
            if received + handed > 0 {
                run.idle_since = None;
                self.state.counters.add(Counter::BusyLoops, 1);
                if run.loops.is_multiple_of(u64::from(crate::stages::SAMPLE)) {
                    self.state.stages.record(Stage::Loop, (clock::tsc() - start) as f64);
                }
            }
            self.housekeep(&mut run);
            if received + handed == 0 && start - *run.idle_since.get_or_insert(start) > spin_clocks {
                match run.chores.next(start) {
                    Some(slice) => self.chore(&mut run, slice),
                    None => self.sleep(&mut run),
                }
            }
        };
        self.end(run, close)
    }

    fn receive(&mut self, run: &mut Run) -> usize {
        let mut received = 0;
        for index in 0..run.queues.len() {
            let slot = &mut run.queues[index];
            let count = slot.queue.rx_burst(&mut self.cache, &mut run.rx);
            if count == 0 {
                continue;
            }
            received += count;
            slot.moved = true;
            let port = slot.port;
            let tables = self.tables.view();
            process(&mut run.rx, port, tables, &mut self.state, run.now, &mut self.cache, &mut run.tx);
            self.flush(run);
        }
        received
    }

    fn flush(&mut self, run: &mut Run) {
        let Run { queues, by_port, tx, host, .. } = run;
        tx.flush(|port, burst| match by_port.get(usize::from(port)).copied().flatten() {
            Some(index) => self.send(&mut queues[usize::from(index)], port == *host, burst),
            None => self.hand_over(port, burst),
        });
    }

    fn send(&mut self, slot: &mut Slot, to_host: bool, burst: &mut Burst) {
        let (packets, bytes) = (burst.len(), total_len(burst));
        (slot.unsent, slot.moved) = (true, true);
        if slot.queue.tx_burst(&mut self.cache, burst) < packets {
            slot.queue.kick(&mut self.cache);
            slot.queue.tx_burst(&mut self.cache, burst);
        }
        let left_bytes = total_len(burst);
        let sent = (packets - burst.len()) as u64;
        self.state.counters.sent(slot.port.0, to_host, sent, bytes - left_bytes);
        for frame in burst.drain(..) {
            self.state.counters.dropped(DropReason::TxFull, slot.port.0);
            self.cache.free(frame);
        }
    }

    fn hand_over(&mut self, port: u16, burst: &mut Burst) {
        let owner = self.owners.get(port).filter(|owner| *owner != self.id);
        let ring = owner.and_then(|owner| self.handoff_out.get_mut(owner)?.as_mut());
        let Some(ring) = ring else {
            for frame in burst.drain(..) {
                self.state.counters.dropped(DropReason::PortDown, port);
                self.cache.free(frame);
            }
            return;
        };
        for mut frame in burst.drain(..) {
            frame.set_port(port);
            match ring.send(frame) {
                Ok(()) => self.state.counters.add(Counter::HandoffOut, 1),
                Err(frame) => {
                    self.state.counters.dropped(DropReason::HandoffFull, port);
                    self.cache.free(frame);
                }
            }
        }
        if let Some(owner) = owner {
            self.wakers[owner].wake();
        }
    }

    /// Sends what other workers hand over. At most a burst from each per loop.
    fn take_handoffs(&mut self, run: &mut Run) -> usize {
        let mut taken = 0;
        for from in 0..self.handoff_in.len() {
            let Some(ring) = self.handoff_in[from].as_mut() else { continue };
            let before = taken;
            while taken - before < fairway_pmd::MAX_BURST {
                let Some(frame) = ring.recv() else { break };
                taken += 1;
                self.state.counters.add(Counter::HandoffIn, 1);
                let port = frame.port();
                if let Err(frame) = run.tx.push(port, frame) {
                    self.state.counters.dropped(DropReason::PortDown, port);
                    self.cache.free(frame);
                }
            }
            if taken > before {
                self.flush_handed(run);
            }
        }
        taken
    }

    /// As `flush`, but what is not ours is dropped rather than handed on, so that no frame travels in circles.
    fn flush_handed(&mut self, run: &mut Run) {
        let Run { queues, by_port, tx, host, .. } = run;
        tx.flush(|port, burst| match by_port.get(usize::from(port)).copied().flatten() {
            Some(index) => self.send(&mut queues[usize::from(index)], port == *host, burst),
            None => {
                for frame in burst.drain(..) {
                    self.state.counters.dropped(DropReason::PortDown, port);
                    self.cache.free(frame);
                }
            }
        });
    }

    fn kick(&mut self, run: &mut Run) {
        for slot in run.queues.iter_mut().filter(|slot| slot.unsent) {
            slot.queue.kick(&mut self.cache);
            slot.unsent = slot.queue.tx_pending() > 0;
        }
    }

    fn housekeep(&mut self, run: &mut Run) {
        if run.loops.is_multiple_of(HOUSEKEEP_LOOPS) {
            self.state.housekeep(run.now, 1);
        }
        if run.loops.is_multiple_of(COMMIT_LOOPS) {
            run.now = Now::read();
            self.unwatch_busy(run);
            self.ask_kernel(run, 1);
            self.state.expire_fragments(run.now, &mut self.cache);
            self.state.counters.add(Counter::Loops, COMMIT_LOOPS);
            self.state.counters.commit(&self.stats);
            // Percentiles cost microseconds: one stage at a time.
            if run.loops.is_multiple_of(SUMMARY_LOOPS) {
                let stage = Stage::ALL[(run.loops / SUMMARY_LOOPS) as usize % Stage::COUNT];
                self.stats.set_stage(stage, self.state.stages.summary(stage));
            }
        }
    }

    /// Takes in what the kernel dropped, of up to `most` queues and of each once a second: a system call each.
    fn ask_kernel(&mut self, run: &mut Run, most: usize) {
        if run.asked.0 != run.now.seconds {
            run.asked = (run.now.seconds, 0);
        }
        for slot in run.queues.iter_mut().skip(run.asked.1).take(most) {
            self.state.counters.kernel_dropped(slot.port.0, slot.queue.take_kernel_drops());
            run.asked.1 += 1;
        }
    }

    /// A slice of what a sleeper's rare loops leave undone; see [`chores`].
    #[cold]
    fn chore(&mut self, run: &mut Run, slice: u32) {
        if slice == 0 {
            self.state.expire_fragments(run.now, &mut self.cache);
        }
        self.state.housekeep(run.now, chores::EFFORT);
        self.ask_kernel(run, 1);
        let stage = Stage::ALL[slice as usize % Stage::COUNT];
        self.stats.set_stage(stage, self.state.stages.summary(stage));
    }

    /// Sleeps until there may be something to do. What comes before and after is in the first packet's latency.
    fn sleep(&mut self, run: &mut Run) {
        self.watch(run);
        let unsent = run.queues.iter().any(|slot| slot.unsent);
        self.state.counters.commit(&self.stats);
        let Worker { sleeper, handoff_in, mailbox, .. } = self;
        sleeper.sleep(if unsent { 1 } else { SLEEP_MS }, || {
            !mailbox.commands.is_empty() || handoff_in.iter_mut().flatten().any(|ring| ring.available() > 0)
        });
        self.state.counters.add(Counter::Sleeps, 1);
        run.now = Now::read();
        run.idle_since = None;
        run.slept_at = run.loops;
    }

    /// Has packets of every queue wake the sleeper. Only now, because the kernel runs a watcher's callback for each batch
    /// received and for each single packet sent: a worker that never sleeps watches nothing.
    fn watch(&mut self, run: &mut Run) {
        for slot in run.queues.iter_mut().filter(|slot| !slot.watched) {
            slot.watched = true;
            if let Some(fd) = slot.queue.fd()
                && let Err(error) = self.sleeper.watch(fd)
            {
                tracing::warn!(%error, port = slot.port.0, "queue is not watched: its packets wait for the next look");
            }
        }
    }

    /// A worker that has long been awake watches its busy queues again when it next sleeps.
    #[inline]
    fn unwatch_busy(&mut self, run: &mut Run) {
        if run.loops - run.slept_at < AWAKE_LOOPS {
            return;
        }
        for slot in run.queues.iter_mut().filter(|slot| slot.watched && slot.moved) {
            (slot.watched, slot.moved) = (false, false);
            if let Some(fd) = slot.queue.fd() {
                self.sleeper.unwatch(fd);
            }
        }
    }

    fn publish(&self) {
        self.state.counters.commit(&self.stats);
        for stage in Stage::ALL {
            self.stats.set_stage(*stage, self.state.stages.summary(*stage));
        }
    }

    /// Obeys all commands; if one is to end, whether to close the queues.
    #[cold]
    fn obey(&mut self, run: &mut Run) -> Option<bool> {
        while let Some(command) = self.mailbox.commands.pop() {
            match command {
                Command::Open { port, kind, queue } => self.open(run, port, kind, queue),
                Command::Await(all_told) => {
                    while !all_told.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                }
                Command::Know(port, kind) => {
                    run.tx.open(port);
                    if kind == PortKind::Host {
                        run.host = port.0;
                    }
                }
                Command::Close(port) => self.close(run, port),
                Command::Tables(tables) => {
                    self.tables = *tables;
                    // Their list of changes says nothing about entries compiled under the former ones.
                    self.state.forget_tables();
                }
                Command::Recheck => self.state.freshness.outdate(),
                Command::Stop => return Some(true),
                Command::Pause => return Some(false),
            }
            self.mailbox.obeyed.fetch_add(1, Ordering::Release);
        }
        None
    }

    fn open(&mut self, run: &mut Run, port: PortId, kind: PortKind, queue: Box<dyn Queue>) {
        // The tables know the port already; its first packets must find it.
        self.state.look_now();
        let Some(place) = run.by_port.get_mut(port.index()) else {
            let _ = self.mailbox.closed.push(queue);
            return;
        };
        if kind == PortKind::Host {
            run.host = port.0;
        }
        run.tx.open(port);
        // A port's first queue is the one that sends.
        place.get_or_insert(run.queues.len() as u16);
        // A queue taken over may have frames to send.
        let unsent = queue.tx_pending() > 0;
        let busy_polled = queue.is_busy_polled();
        run.queues.push(Slot { port, queue, unsent, busy_polled, watched: false, moved: false });
    }

    fn close(&mut self, run: &mut Run, port: PortId) {
        if let Some(mut batch) = run.tx.close(port) {
            for frame in batch.drain() {
                self.state.counters.dropped(DropReason::PortDown, port.0);
                self.cache.free(frame);
            }
        }
        let (gone, kept) = std::mem::take(&mut run.queues).into_iter().partition(|slot| slot.port == port);
        run.queues = kept;
        run.by_port.fill(None);
        for (index, slot) in run.queues.iter().enumerate() {
            run.by_port[slot.port.index()].get_or_insert(index as u16);
        }
        for slot in gone {
            let Slot { mut queue, watched, .. } = slot;
            if let Some(fd) = queue.fd().filter(|_| watched) {
                self.sleeper.unwatch(fd);
            }
            self.state.counters.kernel_dropped(port.0, queue.take_kernel_drops());
            queue.close(&mut self.cache);
            let _ = self.mailbox.closed.push(queue);
        }
    }

    fn end(mut self, mut run: Run, close: bool) -> Ended {
        for slot in &mut run.queues {
            // Gives the kernel its last wake-up, so that answers under way still leave.
            slot.queue.kick(&mut self.cache);
        }
        self.last_call.wait();
        while self.take_handoffs(&mut run) > 0 {}
        self.state.forget_fragments(&mut self.cache);
        let mut queues = Vec::new();
        for slot in run.queues {
            let Slot { mut queue, port, .. } = slot;
            queue.kick(&mut self.cache);
            self.state.counters.kernel_dropped(port.0, queue.take_kernel_drops());
            if close {
                queue.close(&mut self.cache);
            }
            queues.push(queue);
        }
        self.publish();
        Ended { counters: self.state.counters, cache: self.cache, queues }
    }
}

fn total_len(burst: &Burst) -> u64 {
    burst.iter().map(|frame| frame.len() as u64).sum()
}
