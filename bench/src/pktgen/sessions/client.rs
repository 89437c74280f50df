//! The client's side of all sessions. It has no clock and no I/O.

use super::segment::Segment;
use crate::pktgen::plan::{PlannedStream, Tuple};
use fairway_dataplane::wire::tcp_flags;
use hdrhistogram::Histogram;

/// Bytes of data each way.
const DATA: u16 = 64;
/// No session has this tuple now.
const NOBODY: u32 = u32::MAX;
const MAX_LATENCY_NS: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    SynSent,
    Established,
    FinSent,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    /// Number of its tuple.
    number: u32,
    /// Its next sequence number.
    seq: u32,
    opened_ns: u64,
    last_sent_ns: u64,
}

/// Counts over all sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Sessions begun.
    pub opened: u64,
    /// Of those, sessions whose SYN was answered.
    pub established: u64,
    /// Of those, sessions that went to their end.
    pub completed: u64,
    /// Sessions that waited in vain.
    pub failed: u64,
    /// Segments that belong to no session, or not to its state.
    pub strays: u64,
}

/// All sessions.
pub struct Client {
    stream: PlannedStream,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slot by number of tuple.
    by_number: Vec<u32>,
    next_number: u32,
    timeout_ns: u64,
    /// The next slot to be looked at for its age.
    cursor: usize,
    tally: Tally,
    setup: Histogram<u64>,
    whole: Histogram<u64>,
}

impl Client {
    /// No session yet; tuples are the stream's flows, in order and around again.
    pub fn new(stream: PlannedStream, concurrent: u32, timeout_ns: u64) -> Client {
        let slot = Slot { state: State::Free, number: 0, seq: 0, opened_ns: 0, last_sent_ns: 0 };
        // These bounds are constants, and right.
        let histogram = || {
            Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3)
                .unwrap_or_else(|_| unreachable!("the bounds are constant"))
        };
        let concurrent = concurrent.min(stream.flows);
        Client {
            slots: vec![slot; concurrent as usize],
            free: (0..concurrent).rev().collect(),
            by_number: vec![NOBODY; stream.flows as usize],
            next_number: 0,
            timeout_ns,
            cursor: 0,
            tally: Tally::default(),
            setup: histogram(),
            whole: histogram(),
            stream,
        }
    }

    /// Opens a session if fewer than the most are open; its SYN.
    pub fn open(&mut self, now_ns: u64) -> Option<Segment> {
        let slot = *self.free.last()?;
        let number = self.next_number;
        // Around all tuples, a session that is still open is not opened again.
        if self.by_number[number as usize] != NOBODY {
            return None;
        }
        self.free.pop();
        self.next_number = if number + 1 == self.stream.flows { 0 } else { number + 1 };
        self.by_number[number as usize] = slot;
        // A new sequence number each time around, above the old one's (RFC 9293 section 3.4.1).
        let isn = (self.tally.opened as u32).wrapping_mul(64_000);
        self.tally.opened += 1;
        let state = State::SynSent;
        let seq = isn.wrapping_add(1);
        self.slots[slot as usize] = Slot { state, number, seq, opened_ns: now_ns, last_sent_ns: now_ns };
        Some(self.segment(number, tcp_flags::SYN, isn, 0, 0))
    }

    /// Takes a segment from the responder; the client's answer, if there is one.
    pub fn receive(&mut self, segment: &Segment, now_ns: u64) -> Option<Segment> {
        let found = self.number_of(&segment.tuple).map(|number| self.by_number[number as usize]);
        let Some(slot) = found.filter(|slot| *slot != NOBODY) else {
            self.tally.strays += 1;
            return None;
        };
        let Slot { state, number, seq, opened_ns, .. } = self.slots[slot as usize];
        let flags = segment.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK);
        let theirs = segment.seq.wrapping_add(u32::from(segment.payload_len));
        let entry = &mut self.slots[slot as usize];
        entry.last_sent_ns = now_ns;
        match (state, flags) {
            (State::SynSent, SYN_ACK) if segment.ack == seq => {
                entry.state = State::Established;
                entry.seq = seq.wrapping_add(u32::from(DATA));
                self.tally.established += 1;
                self.setup.saturating_record(now_ns.saturating_sub(opened_ns));
                Some(self.segment(number, tcp_flags::ACK, seq, theirs.wrapping_add(1), DATA))
            }
            (State::Established, tcp_flags::ACK) if segment.ack == seq => {
                entry.state = State::FinSent;
                entry.seq = seq.wrapping_add(1);
                Some(self.segment(number, FIN_ACK, seq, theirs, 0))
            }
            (State::FinSent, FIN_ACK) if segment.ack == seq => {
                self.tally.completed += 1;
                self.whole.saturating_record(now_ns.saturating_sub(opened_ns));
                self.end(slot);
                Some(self.segment(number, tcp_flags::ACK, seq, theirs.wrapping_add(1), 0))
            }
            _ => {
                self.tally.strays += 1;
                None
            }
        }
    }

    /// Looks at the age of some sessions, and gives up those that wait too long.
    pub fn expire(&mut self, now_ns: u64, count: usize) {
        for _ in 0..count.min(self.slots.len()) {
            self.cursor = (self.cursor + 1) % self.slots.len();
            let slot = self.slots[self.cursor];
            if slot.state != State::Free && now_ns.saturating_sub(slot.last_sent_ns) > self.timeout_ns {
                self.tally.failed += 1;
                self.end(self.cursor as u32);
            }
        }
    }

    fn end(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        entry.state = State::Free;
        self.by_number[entry.number as usize] = NOBODY;
        self.free.push(slot);
    }

    /// Sessions open now.
    pub fn open_now(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Counts so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Times from SYN to its answer, and from SYN to the last segment, in nanoseconds.
    pub fn latencies(&self) -> (&Histogram<u64>, &Histogram<u64>) {
        (&self.setup, &self.whole)
    }

    fn segment(&self, number: u32, flags: u8, seq: u32, ack: u32, payload_len: u16) -> Segment {
        Segment { tuple: self.stream.tuple(number), flags, seq, ack, payload_len }
    }

    /// Number of the tuple that an answer belongs to.
    fn number_of(&self, answer: &Tuple) -> Option<u32> {
        let ours = Tuple { src: answer.dst, dst: answer.src, sport: answer.dport, dport: answer.sport };
        self.stream.number(&ours)
    }
}

const SYN_ACK: u8 = tcp_flags::SYN | tcp_flags::ACK;
const FIN_ACK: u8 = tcp_flags::FIN | tcp_flags::ACK;
