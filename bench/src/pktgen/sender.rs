//! One sending queue's side of a trial: writes what is due, and gives the driver what it takes.

use crate::pktgen::frame::Stamp;
use crate::pktgen::generator::Generator;
use crate::pktgen::paths::Entry;
use crate::pktgen::scenario::TrialLimits;
use crate::pktgen::trial::End;
use core_affinity::CoreId;
use fairway_dataplane::clock;
use fairway_pmd::Burst;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A packet may be sent so much later than the end of sending, as a share of the duration: a stall of the
/// machine is made up for, an overload is not.
const LATE_SHARE: f64 = 0.02;
/// Longest time for the driver to send what it has taken.
const PUSH: Duration = Duration::from_millis(200);

/// When one sender stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    end_ns: u64,
    give_up_ns: u64,
    max_packets: u64,
}

impl Window {
    /// A trial's limits, shared by so many senders.
    pub fn shares(limits: &TrialLimits, senders: u32) -> impl Iterator<Item = Window> + use<> {
        let (end_ns, packets) = (u64::from(limits.duration_ms) * 1_000_000, limits.max_packets);
        let give_up_ns = end_ns + (end_ns as f64 * LATE_SHARE) as u64 + 2_000_000;
        (0..senders).map(move |n| Window {
            end_ns,
            give_up_ns,
            max_packets: u64::from(packets / senders + u32::from(n < packets % senders)),
        })
    }
}

/// What became of the packets that were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets that were due.
    pub intended: u64,
    /// Packets that the driver took.
    pub sent: u64,
    /// When it took the last one, since the trial's start.
    pub last_sent_ns: u64,
}

impl AddAssign for Sent {
    fn add_assign(&mut self, other: Sent) {
        self.intended += other.intended;
        self.sent += other.sent;
        self.last_sent_ns = self.last_sent_ns.max(other.last_sent_ns);
    }
}

/// See the module.
pub struct Sender<'a> {
    generator: &'a mut Generator,
    client: &'a mut End,
    window: Window,
    start: u64,
    ns_per_clock: f64,
    /// What the driver has not taken yet, by [`Entry`].
    bursts: [Burst; 2],
    sent: Sent,
}

impl<'a> Sender<'a> {
    /// A sender of a trial that began at `start`, in clocks.
    pub fn new(
        generator: &'a mut Generator,
        client: &'a mut End,
        window: Window,
        start: u64,
        ns_per_clock: f64,
    ) -> Sender<'a> {
        let bursts = [Burst::new(), Burst::new()];
        Sender { generator, client, window, start, ns_per_clock, bursts, sent: Sent::default() }
    }

    /// Counts so far.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Time since the trial's start.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        (clock::tsc().saturating_sub(self.start) as f64 * self.ns_per_clock) as u64
    }

    /// Sends what is due, what enters by the wire through `wire`; whether there is more to come.
    #[inline]
    pub fn step(&mut self, now_ns: u64, wire: Option<&mut End>) -> bool {
        let Window { end_ns, give_up_ns, max_packets } = self.window;
        if now_ns < end_ns {
            self.write_due(now_ns);
        }
        self.give(now_ns, wire);
        let due = self.generator.due_ns().max(now_ns) < end_ns && self.sent.intended < max_packets;
        let waiting = self.bursts.iter().any(|burst| !burst.is_empty());
        let more = (due || waiting) && now_ns < give_up_ns;
        if !more {
            self.stop();
        }
        more
    }

    /// Has drivers send what they have taken.
    pub fn push_out(&mut self, wire: Option<&mut End>) {
        for End { queue, cache } in [Some(&mut *self.client), wire].into_iter().flatten() {
            if queue.tx_pending() > 0 {
                queue.kick(cache);
            }
        }
    }

    #[inline]
    fn write_due(&mut self, now_ns: u64) {
        let Sender { generator, client: End { cache, .. }, bursts, sent, window, .. } = self;
        while !bursts[0].is_full()
            && !bursts[1].is_full()
            && generator.due_ns() <= now_ns
            && sent.intended < window.max_packets
        {
            let Some(mut frame) = cache.alloc() else { break };
            let packet = generator.next_packet();
            sent.intended += 1;
            if frame.reset(packet.len) {
                generator.write(&packet, clock::tsc(), frame.bytes_mut());
                bursts[generator.entry(&packet) as usize].push(frame);
            } else {
                // Sizes are checked against the chunk before; a frame too small counts as lost.
                cache.free(frame);
            }
        }
    }

    #[inline]
    fn give(&mut self, now_ns: u64, wire: Option<&mut End>) {
        let ends = [(Entry::Pod, Some(&mut *self.client)), (Entry::Wire, wire)];
        for (entry, end) in ends {
            let Some(End { queue, cache }) = end else { continue };
            let burst = &mut self.bursts[entry as usize];
            let mut taken = 0;
            if !burst.is_empty() {
                taken = queue.tx_burst(cache, burst);
                self.sent.sent += taken as u64;
                self.sent.last_sent_ns = now_ns;
            }
            if taken > 0 || queue.tx_pending() > 0 {
                queue.kick(cache);
            }
        }
    }

    /// Counts what was due and has not been sent.
    fn stop(&mut self) {
        for frame in self.bursts.iter_mut().flat_map(|burst| burst.drain(..)) {
            if let Some(stamp) = Stamp::of(frame.bytes()) {
                self.generator.unsend(stamp.flow);
            }
            self.client.cache.free(frame);
        }
        if self.generator.due_ns() > 0 {
            let Window { end_ns, max_packets, .. } = self.window;
            while self.generator.due_ns() < end_ns && self.sent.intended < max_packets {
                self.generator.skip();
                self.sent.intended += 1;
            }
        }
    }
}

/// What the first sender's thread sees of the others.
pub struct Helpers {
    sent: Vec<AtomicU64>,
    stopped: AtomicUsize,
}

impl Helpers {
    /// So many further senders, none of which has begun.
    pub fn new(count: u32) -> Helpers {
        Helpers { sent: (0..count).map(|_| AtomicU64::new(0)).collect(), stopped: AtomicUsize::new(0) }
    }

    /// Packets that they have sent so far.
    #[inline]
    pub fn sent(&self) -> u64 {
        self.sent.iter().map(|sent| sent.load(Ordering::Acquire)).sum()
    }

    /// Whether none will send any more.
    #[inline]
    pub fn all_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire) == self.sent.len()
    }

    /// Runs helper number `n` to its end on this thread.
    pub fn run(&self, n: usize, mut sender: Sender<'_>, core: Option<CoreId>) -> Sent {
        // Unpinned it works too, less steadily.
        core.map(core_affinity::set_for_current);
        loop {
            let more = sender.step(sender.now_ns(), None);
            self.sent[n].store(sender.sent().sent, Ordering::Release);
            if !more {
                break;
            }
        }
        self.stopped.fetch_add(1, Ordering::AcqRel);
        let start = Instant::now();
        while sender.client.queue.tx_pending() > 0 && start.elapsed() < PUSH {
            sender.push_out(None);
        }
        sender.sent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_share_a_trials_packets_to_the_last_one() {
        let limits = TrialLimits { duration_ms: 100, max_packets: 1001 };
        let shares: Vec<Window> = Window::shares(&limits, 3).collect();
        assert_eq!(shares.iter().map(|share| share.max_packets).collect::<Vec<_>>(), [334, 334, 333]);
        assert!(shares.iter().all(|share| share.end_ns == 100_000_000 && share.give_up_ns > share.end_ns));
    }
}
