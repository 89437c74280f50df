//! Two ends of a connection that do what RFC 9293 lets them, a network that loses, repeats and reorders what they send, and
//! in its middle the windows. Whatever these hold to be outside, its receiver would have thrown away itself; whatever is
//! forged is outside; and the connection goes on to its end, whichever segments the middle did not see.

use super::tests::{Connection, GENERATION};
use super::*;
use crate::conntrack::Direction::{Original, Reply};
use proptest::prelude::*;

/// Steps until nothing is lost any more.
const STEPS: usize = 500;
/// Steps in which the rest must be done then.
const END: usize = 6000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One TCP end. Numbers are offsets: 0 is the SYN, then come `total` bytes and the FIN.
struct End {
    iss: u32,
    shift: Option<u8>,
    total: u64,
    mss: u64,
    /// Acknowledged; sent at most; what the other may be sent at most, and by which largest window.
    una: u64,
    nxt: u64,
    edge: u64,
    largest: u64,
    /// Of the other's: its first number once known, what has come in order, what beyond, what was offered at most.
    irs: Option<u32>,
    rcv_nxt: u64,
    beyond: Vec<(u64, u64)>,
    offered: u64,
    largest_offered: u64,
    buffer: u64,
}

impl End {
    fn new(iss: u32, shift: Option<u8>, total: u64, buffer: u64) -> End {
        End {
            iss,
            shift,
            total,
            mss: 1460,
            una: 0,
            nxt: 0,
            edge: 1,
            largest: 0,
            irs: None,
            rcv_nxt: 0,
            beyond: Vec::new(),
            offered: 0,
            largest_offered: 0,
            buffer,
        }
    }

    fn seq(&self, offset: u64) -> u32 {
        self.iss.wrapping_add(offset as u32)
    }

    fn scale(&self, other: &End) -> u8 {
        self.shift.filter(|_| other.shift.is_some()).unwrap_or(0)
    }

    fn is_done(&self) -> bool {
        self.una == self.total + 2
    }

    /// A segment from `offset` on with at most `len` bytes.
    fn segment(&mut self, other: &End, offset: u64, len: u64) -> Segment {
        let mut flags = if self.irs.is_some() { ACK } else { 0 };
        let is_syn = offset == 0;
        let mut shift = 0;
        if is_syn {
            flags |= SYN;
        } else {
            shift = self.scale(other);
        }
        let data_end = (offset + u64::from(is_syn) + len).min(self.total + 1).max(offset + u64::from(is_syn));
        // The FIN takes a place in the window, or is a probe.
        let has_room = data_end < self.edge.max(self.una + 1);
        let is_fin = !is_syn && data_end == self.total + 1 && len > 0 && offset <= self.total + 1 && has_room;
        let end = data_end + u64::from(is_fin);
        if is_fin {
            flags |= FIN;
        }
        self.nxt = self.nxt.max(end);
        let window = (self.buffer >> shift).min(65_535);
        let ack = self.irs.map_or(0, |irs| irs.wrapping_add(self.rcv_nxt as u32));
        let mut sack = ack;
        if let (Some(irs), Some((_, right))) = (self.irs, self.beyond.iter().max_by_key(|(_, right)| right)) {
            sack = irs.wrapping_add((*right).max(self.rcv_nxt) as u32);
        }
        self.offered = self.offered.max(self.rcv_nxt + (window << shift));
        self.largest_offered = self.largest_offered.max(window << shift);
        let len = (end - offset) as u32;
        let announced =
            if is_syn && !(self.irs.is_some() && other.shift.is_none()) { self.shift } else { None };
        Segment {
            flags,
            seq: self.seq(offset),
            len,
            ack,
            sack,
            window: window as u16,
            shift: announced,
            is_whole: true,
        }
    }

    /// Something that this end may send now.
    fn speak(&mut self, other: &End, random: &mut Random) -> Option<Segment> {
        if self.una == 0 {
            // SYN or SYN-ACK, perhaps again.
            return (self.irs.is_some() || self.iss & 1 == 0).then(|| self.segment(other, 0, 0));
        }
        let mss = 1 + random.below(self.mss);
        match random.below(8) {
            0 => Some(self.segment(other, self.nxt, 0)),
            // Sent again, joined otherwise than before.
            1 | 2 if self.una < self.nxt => {
                let len = mss.min(self.edge.saturating_sub(self.una)).max(1);
                let from =
                    if random.one_in(3) { self.una + random.below(self.nxt - self.una) } else { self.una };
                let len = len.min(self.nxt.max(from + 1) - from);
                Some(self.segment(other, from, len))
            }
            // Keepalive, probe.
            3 if random.one_in(4) => Some(self.segment_at_rest(other)),
            _ if self.nxt >= self.total + 2 => None,
            _ if self.nxt < self.edge => Some(self.segment(other, self.nxt, mss.min(self.edge - self.nxt))),
            _ if self.una == self.nxt => Some(self.segment(other, self.nxt, 1)),
            _ => None,
        }
    }

    fn segment_at_rest(&mut self, other: &End) -> Segment {
        let mut segment = self.segment(other, self.nxt, 0);
        segment.seq = segment.seq.wrapping_sub(1);
        segment
    }

    /// Whether a segment is of any use; if so it is taken in.
    fn hear(&mut self, other: &End, segment: &Segment) -> bool {
        let is_first = self.irs.is_none();
        if is_first {
            if segment.flags & SYN == 0 {
                return false;
            }
            self.irs = Some(segment.seq);
        }
        let irs = self.irs.unwrap_or(0);
        // As far from what is expected as 32 bits tell.
        let offset = |number: u32, base: u32, near: u64| {
            near as i64 + i64::from(number.wrapping_sub(base.wrapping_add(near as u32)) as i32)
        };
        let start = offset(segment.seq, irs, self.rcv_nxt);
        let end = start + i64::from(segment.len);
        let is_acceptable = start <= self.offered.max(self.rcv_nxt + 1) as i64
            && (end > self.rcv_nxt as i64 || segment.len == 0 && end >= self.rcv_nxt as i64 - 1);
        if !is_acceptable {
            // RFC 9293 section 3.10.7.4: what it acknowledges does not count either.
            return false;
        }
        if segment.flags & ACK != 0 {
            let ack = offset(segment.ack, self.iss, self.una);
            if ack > self.nxt as i64 || ack < self.una as i64 - self.largest as i64 {
                return false;
            }
            if ack >= self.una as i64 {
                self.una = ack as u64;
                let shift = if segment.flags & SYN != 0 { 0 } else { other.scale(self) };
                let window = u64::from(segment.window) << shift;
                self.largest = self.largest.max(window);
                self.edge = self.edge.max(self.una + window);
            }
        }
        if end > self.rcv_nxt as i64 && start >= 0 {
            let (mut start, mut end) = (start as u64, (end as u64).min(self.offered.max(self.rcv_nxt + 1)));
            if start <= end {
                self.beyond.retain(|(left, right)| {
                    let apart = *right < start || *left > end;
                    if !apart {
                        (start, end) = (start.min(*left), end.max(*right));
                    }
                    apart
                });
                if start <= self.rcv_nxt {
                    self.rcv_nxt = self.rcv_nxt.max(end);
                } else {
                    self.beyond.push((start, end));
                }
            }
        }
        true
    }
}

/// What is known of the connection in the middle, and what has been on its way.
struct Middle {
    tracked: Option<Connection>,
    /// Whether segments passed that nobody saw.
    has_missed: bool,
}

impl Middle {
    /// Whether a genuine segment goes on.
    fn pass(&mut self, direction: Direction, segment: Segment, sees: bool) -> bool {
        match &mut self.tracked {
            _ if !sees => {
                self.has_missed = true;
                true
            }
            Some(tracked) => tracked.take(direction, segment) != Verdict::Outside,
            // A SYN that comes after what it began would mislead: the windows offered since then are not known.
            None if direction == Original && !(self.has_missed && segment.flags & SYN != 0) => {
                self.tracked = Some(Connection::begin(&segment));
                true
            }
            None => true,
        }
    }
}

struct Run {
    ends: [End; 2],
    /// On their way to the middle, and behind it; by sender.
    before: [Vec<Segment>; 2],
    behind: [Vec<Segment>; 2],
    middle: Middle,
    random: Random,
    /// How often what is sent is lost, repeated, overtaken: one in so many; 0: never.
    loss: u64,
    sees: bool,
}

const DIRECTIONS: [Direction; 2] = [Original, Reply];

impl Run {
    fn step(&mut self) {
        let n = self.random.below(2) as usize;
        match self.random.below(4) {
            0 => {
                let [client, server] = &mut self.ends;
                let (end, other) = if n == 0 { (client, server) } else { (server, client) };
                if self.random.one_in(10) {
                    end.buffer = self.random.below(end.largest_offered.max(3000) + 1);
                }
                if let Some(segment) = end.speak(other, &mut self.random) {
                    self.before[n].push(segment);
                }
            }
            1 => self.reach_middle(n),
            _ => {
                let Some(segment) = take(&mut self.behind[n], self.loss, &mut self.random) else { return };
                let (client, server) = self.ends.split_at_mut(1);
                let (from, to) =
                    if n == 0 { (&client[0], &mut server[0]) } else { (&server[0], &mut client[0]) };
                to.hear(from, &segment);
            }
        }
    }

    fn reach_middle(&mut self, n: usize) {
        let Some(segment) = take(&mut self.before[n], self.loss, &mut self.random) else { return };
        if self.middle.pass(DIRECTIONS[n], segment, self.sees) {
            self.behind[n].push(segment);
            return;
        }
        let (client, server) = self.ends.split_at_mut(1);
        let (from, to) = if n == 0 { (&client[0], &mut server[0]) } else { (&server[0], &mut client[0]) };
        let known = self
            .middle
            .tracked
            .as_ref()
            .map(|tracked| (tracked.state(), Windows::of_words(&tracked.words, GENERATION)));
        assert!(
            !to.hear(from, &segment),
            "{segment:?} from end {n} is of use and was held to be outside {known:#?}"
        );
    }

    /// Sends something that cannot be this connection's, and something of which only its state must not believe anything.
    fn forge(&mut self) {
        let Some(tracked) = &mut self.middle.tracked else { return };
        if !tracked.is_strict() {
            return;
        }
        let n = self.random.below(2) as usize;
        let [from, to] = [&self.ends[n], &self.ends[1 - n]];
        let Some(irs) = from.irs.or(Some(to.iss)) else { return };
        let good = Segment {
            flags: ACK,
            seq: from.seq(from.nxt),
            len: 10,
            ack: irs.wrapping_add(from.rcv_nxt as u32),
            sack: irs.wrapping_add(from.rcv_nxt as u32),
            window: 500,
            shift: None,
            is_whole: true,
        };
        let windows = Windows::of_words(&tracked.words, GENERATION);
        // Of a connection that was learnt all may be a window more than what is known here.
        let window = |n: usize| match windows.is_learnt {
            true => u64::from(windows.sides[n].largest()),
            false => self.ends[n].largest_offered,
        };
        let more = |n: usize| if windows.is_learnt { 2 * window(n) } else { 0 };
        let (own, others) = (window(n), window(1 - n));
        if own.max(others) > 1 << 27 {
            // More than half of all numbers may be inside.
            return;
        }
        let eighth = |window: u64| window + window / 8 + 2;
        let far = |random: &mut Random| random.below(1 << 24) as u32;
        let random = &mut self.random;
        let edge = to.offered.max(to.rcv_nxt).max(1) + eighth(others) - others + more(1 - n);
        let mut bad = match random.below(4) {
            0 => Segment { seq: from.seq(edge + 1).wrapping_add(far(random)), ..good },
            1 => Segment { ack: to.seq(to.nxt + 1 + more(n)).wrapping_add(far(random)), ..good },
            2 => {
                let old = from.seq(to.rcv_nxt).wrapping_sub((eighth(others) + 12 + more(1 - n)) as u32);
                Segment { seq: old.wrapping_sub(far(random)), ..good }
            }
            _ => {
                let oldest = eighth(2 * own.max(33_000)) as u32 + 1 + more(n) as u32;
                Segment { ack: to.seq(from.rcv_nxt).wrapping_sub(oldest).wrapping_sub(far(random)), ..good }
            }
        };
        bad.sack = bad.ack;
        let opening = matches!(tracked.state(), State::New | State::SynReceived);
        // Who saw the client's SYN, the first or one sent again, can answer it as well as the server.
        let flags = if opening || tcp::shift_again(tracked.state).is_some() { 3 } else { 4 };
        bad.flags |= [0, FIN, RST, SYN][random.below(flags) as usize];
        let verdict = tracked.take(DIRECTIONS[n], bad);
        assert_eq!(verdict, Verdict::Outside, "{bad:?} as of end {n}");
        let reset =
            Segment { flags: RST, seq: from.seq(from.nxt + 1 + random.below(1 << 30)), len: 0, ..good };
        if !opening {
            let before = tracked.state();
            tracked.take(DIRECTIONS[n], reset);
            assert_eq!(tracked.state(), before, "a forged reset was believed");
        }
    }

    /// Nothing is lost or overtaken any more.
    fn end(&mut self) {
        self.loss = 0;
        for _ in 0..END {
            for end in &mut self.ends {
                end.buffer = end.buffer.max(20_000).min(end.largest_offered.max(20_000));
            }
            self.step();
            if self.ends.iter().all(End::is_done) {
                return;
            }
        }
        let [client, server] = &self.ends;
        panic!(
            "the connection does not end: {}/{} and {}/{}",
            client.una, client.total, server.una, server.total
        );
    }
}

/// The next of a queue, or one further back; lost or left there as well, now and then.
fn take(queue: &mut Vec<Segment>, loss: u64, random: &mut Random) -> Option<Segment> {
    let mut at = 0;
    while loss > 0 && at + 1 < queue.len() && random.one_in(loss) {
        at += 1;
    }
    let segment = *queue.get(at)?;
    if loss == 0 || !random.one_in(loss) {
        queue.remove(at);
    }
    (loss == 0 || !random.one_in(loss)).then_some(segment)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn nothing_of_use_is_outside_and_everything_forged_is(
        iss: [u32; 2],
        seed in 1u64..,
        shifts in proptest::array::uniform2(proptest::option::of(0u8..15)),
        totals in proptest::array::uniform2(0u64..60_000),
        buffers in proptest::array::uniform2(500u64..200_000),
        loss in prop_oneof![Just(0u64), 3u64..30],
        unseen in prop_oneof![Just(0..0), (0usize..300, 0usize..150).prop_map(|(from, len)| from..from + len)],
        forges: bool,
    ) {
        // Clients' are even, so that ends know which they are.
        let client = End::new(iss[0] & !1, shifts[0], totals[0], buffers[0]);
        let server = End::new(iss[1] | 1, shifts[1], totals[1], buffers[1]);
        let mut run = Run {
            ends: [client, server],
            before: Default::default(),
            behind: Default::default(),
            middle: Middle { tracked: None, has_missed: false },
            random: Random(seed),
            loss,
            sees: true,
        };
        for step in 0..STEPS {
            run.sees = !unseen.contains(&step);
            if step + 1 == unseen.end && !unseen.is_empty()
                && let Some(tracked) = &mut run.middle.tracked
            {
                tracked.forget();
            }
            run.step();
            if forges && step % 3 == 0 && run.sees {
                run.forge();
            }
        }
        run.sees = true;
        run.end();
    }
}
