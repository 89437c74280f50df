//! TCP windows as seen from the middle, after G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter", and what
//! Linux's nf_conntrack makes of it. Pure: numbers in, verdict and numbers out; docs/conntrack.md has the rules in words.
//!
//! Of each side three numbers are kept: behind the last that it has sent (`end`), the last that it may send, by what the
//! other has acknowledged and offered (`limit`), and what it has acknowledged itself (`ack`); besides the largest window
//! that it has offered, and its shift. A segment is in the window if
//! 1. it does not begin behind what its sender may send,
//! 2. it does not end before what the receiver may still want again: a window before the sender's end,
//! 3. it acknowledges nothing that the receiver has not sent,
//! 4. nor less than what the receiver would take for an old acknowledgement (RFC 5961 section 5.2).
//!
//! That holds once both sides are known to each other. A connection whose beginning was not seen, or that packets may have
//! passed by, is *learnt*: all its segments pass, the latest of each side are remembered, and when one agrees with what the
//! other side has sent, the windows hold from there, as large as the shift allows, since what was offered and what was sent
//! is not all known. Who forges one side's segments can put that off, but not mislead.

use super::tcp::{self, State};
use super::tuple::Direction;
use crate::wire::tcp::{MAX_SHIFT, Segment};
use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};

/// Acknowledgements so far behind are passed in any case (`MAXACKWINDOW` of nf_conntrack).
const OLD_ACK: u32 = 66_000;
/// Windows are at most so large (RFC 7323 section 2.3).
const LARGEST: u32 = 1 << 30;
/// While a connection is learnt, its sides agree if they are at most so far apart, and not further than their windows; forged
/// numbers are so by one chance in 2^11, twice.
const NEAR: u32 = 1 << 20;

/// One side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    /// Whether the rest means anything, but for the shift.
    is_known: bool,
    end: u32,
    limit: u32,
    ack: u32,
    /// Bytes; kept with three bits behind the first, rounded up.
    window: u32,
    /// `None`: not known.
    shift: Option<u8>,
}

impl Side {
    const UNKNOWN: Side = Side { is_known: false, end: 0, limit: 0, ack: 0, window: 0, shift: None };

    /// The window that a segment of this side offers, in bytes. Where the shift is not known it may be the largest.
    fn offered(&self, segment: &Segment) -> u32 {
        let shift = if segment.flags & SYN != 0 { 0 } else { self.shift.unwrap_or(MAX_SHIFT) };
        u32::from(segment.window) << shift
    }

    /// The largest window that this side can have offered unseen.
    fn largest(&self) -> u32 {
        0xffff << self.shift.unwrap_or(MAX_SHIFT)
    }
}

/// What is known of a connection's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    sides: [Side; 2],
    /// Both sides are known to each other: what is outside of the windows does not belong to the connection.
    is_strict: bool,
    /// Not since its beginning: what was sent and offered before may be more than is known.
    is_learnt: bool,
    /// Segments came in fragments, which do not say what numbers they take: nothing is checked any more.
    is_exempt: bool,
}

/// What a segment is to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It belongs to it, and these of its control bits count.
    Counts(u8),
    /// It may go on, but says nothing that can be relied on.
    Passes,
    /// A SYN that may begin a live connection anew, and the shift that it offers.
    Again(Option<u8>),
    /// The server's agreement to that.
    Anew,
    /// It does not belong to it.
    Outside,
}

fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

fn later(a: u32, b: u32) -> u32 {
    if is_after(a, b) { a } else { b }
}

fn is_near(a: u32, b: u32, distance: u32) -> bool {
    (a.wrapping_sub(b) as i32).unsigned_abs() <= distance
}

/// The last number that may be sent to one who acknowledges `ack` and offers `window` bytes: with none, one for a probe.
fn limit(ack: u32, window: u32) -> u32 {
    ack.wrapping_add(window.max(1))
}

impl Windows {
    /// Words in which a connection's windows are kept: the numbers of both sides, and one for all the rest.
    pub(super) const WORDS: usize = 7;
    /// Of the last word: what does not change in a connection's life, shifts and exemption; and of which generation it is.
    const LASTING: u32 = 0xe8ff_0000;
    const STRICT: u32 = 1 << 26;
    const EXEMPT: u32 = 1 << 27;
    const LEARNT: u32 = 1 << 28;
    const TAG: u32 = 29;

    const NOTHING: Windows =
        Windows { sides: [Side::UNKNOWN; 2], is_strict: false, is_learnt: false, is_exempt: false };

    /// Of a connection's first segment, if it was one of which that can be read.
    pub(super) fn begin(segment: Option<&Segment>) -> Windows {
        let Some(segment) = segment else { return Windows::NOTHING };
        let mut windows = Windows { is_exempt: !segment.is_whole, ..Windows::NOTHING };
        let side = &mut windows.sides[0];
        side.window = side.offered(segment).max(1);
        (side.is_known, side.end, side.ack) = (true, segment.end(), segment.ack);
        if segment.flags & SYN != 0 {
            side.shift = Some(segment.shift.unwrap_or(0));
            side.limit = segment.seq.wrapping_add(1);
            if segment.shift.is_none() {
                // No option, no scaling on either side.
                windows.sides[1].shift = Some(0);
            }
        }
        windows
    }

    pub(super) fn of_words(words: &[u32; Windows::WORDS], generation: u32) -> Windows {
        let mark = words[6];
        if mark == 0 || mark >> Windows::TAG != generation >> 1 & 7 {
            return Windows::NOTHING;
        }
        let side = |n: usize| Side {
            is_known: mark & 1 << (24 + n) != 0,
            end: words[n],
            limit: words[2 + n],
            ack: words[4 + n],
            window: decode(mark >> (8 * n)),
            shift: (mark >> (16 + 4 * n) & 0xf).checked_sub(1).map(|shift| shift as u8),
        };
        Windows {
            sides: [side(0), side(1)],
            is_strict: mark & Windows::STRICT != 0,
            is_learnt: mark & Windows::LEARNT != 0,
            is_exempt: mark & Windows::EXEMPT != 0,
        }
    }

    /// The words under which a place of this generation keeps them. What is not known yet is the generation, so that nobody
    /// who means a former connection of the place takes it for what he saw there.
    pub(super) fn to_words(self, generation: u32) -> [u32; Windows::WORDS] {
        let mut words = [generation; Windows::WORDS];
        let mut mark = (generation >> 1) << Windows::TAG;
        for (n, side) in self.sides.iter().enumerate() {
            mark |= side.shift.map_or(0, |shift| u32::from(shift.min(MAX_SHIFT)) + 1) << (16 + 4 * n);
            if side.is_known {
                (words[n], words[2 + n], words[4 + n]) = (side.end, side.limit, side.ack);
                mark |= 1 << (24 + n) | encode(side.window) << (8 * n);
            }
        }
        mark |= if self.is_strict { Windows::STRICT } else { 0 };
        mark |= if self.is_learnt { Windows::LEARNT } else { 0 };
        mark |= if self.is_exempt { Windows::EXEMPT } else { 0 };
        words[6] = mark;
        words
    }

    /// The last word, when packets may have passed unseen: to be learnt anew, but for what does not change.
    pub(super) fn forget(mark: u32) -> u32 {
        mark & Windows::LASTING
    }

    /// Takes in a segment of a connection whose state this word says.
    pub(super) fn take(&mut self, direction: Direction, segment: &Segment, word: u32) -> Verdict {
        let flags = segment.flags;
        if segment.is_nonsense() {
            return Verdict::Outside;
        }
        if self.is_exempt {
            return Verdict::Counts(flags);
        }
        let is_new = State::from_bits(word) == State::New;
        match (direction, is_new) {
            _ if flags & (SYN | ACK) == SYN => self.syn(direction, segment, is_new),
            (Direction::Reply, true) if self.sides[0].is_known => self.answer(segment),
            (Direction::Reply, _) if !self.is_strict && flags & SYN != 0 => {
                self.agree(direction, segment, word)
            }
            _ if !self.is_strict => self.learn(direction, segment, is_new),
            _ => match self.check(direction, segment, word) {
                Verdict::Outside if flags & SYN != 0 => self.agree(direction, segment, word),
                verdict => verdict,
            },
        }
    }

    /// A SYN without ACK.
    fn syn(&mut self, direction: Direction, segment: &Segment, is_new: bool) -> Verdict {
        if !is_new {
            // Its number may be any: the server challenges it (RFC 5961 section 4), or agrees.
            return Verdict::Again(segment.shift);
        }
        let [client, server] = &mut self.sides;
        let shift = segment.shift.unwrap_or(0);
        match direction {
            Direction::Original if client.is_known && client.end == segment.end() => {
                client.shift = client.shift.max(Some(shift));
                client.window = client.window.max(u32::from(segment.window));
            }
            // Of another connection attempt, or forged: the answer tells which one is answered.
            Direction::Original => {
                client.is_known = false;
                client.shift = client.shift.max(Some(shift));
            }
            // Both at once (RFC 9293 section 3.5).
            Direction::Reply => {
                *server = Windows::begin(Some(segment)).sides[0];
                if segment.shift.is_none() {
                    (client.shift, server.shift) = (Some(0), Some(0));
                }
                // None acknowledges less than the other's SYN.
                (client.ack, server.ack) = (segment.seq.wrapping_add(1), client.limit);
                client.limit = limit(client.limit, server.window);
                server.limit = limit(segment.seq.wrapping_add(1), client.window);
                self.is_strict = client.is_known;
            }
        }
        Verdict::Counts(segment.flags)
    }

    /// The answer to a SYN of which nothing else is known.
    fn answer(&mut self, segment: &Segment) -> Verdict {
        let [client, server] = &mut self.sides;
        let has = |flag| segment.flags & flag != 0;
        let answers = has(ACK) && !is_after(client.limit, segment.ack) && !is_after(segment.ack, client.end);
        if has(RST) {
            // RFC 9293 section 3.10.7.3.
            return if answers { Verdict::Counts(segment.flags) } else { Verdict::Outside };
        }
        if !answers {
            // An ACK may be the challenge of a server that remembers the connection before; the client will reset that.
            return if has(SYN) { Verdict::Outside } else { Verdict::Passes };
        }
        if has(SYN) {
            server.shift = Some(segment.shift.unwrap_or(0));
            if segment.shift.is_none() {
                client.shift = Some(0);
            }
        }
        server.window = server.offered(segment).max(1);
        (server.is_known, server.end, server.ack) = (true, segment.end(), segment.ack);
        server.limit = later(server.end, limit(segment.seq.wrapping_add(1), client.window));
        client.limit = limit(segment.ack, server.window);
        client.ack = segment.seq.wrapping_add(1);
        self.is_strict = true;
        Verdict::Counts(segment.flags)
    }

    /// A server's SYN-ACK that does not fit what is known.
    fn agree(&mut self, direction: Direction, segment: &Segment, word: u32) -> Verdict {
        let [Side { shift, end, is_known, .. }, _] = self.sides;
        let offered = match (tcp::shift_again(word), State::from_bits(word)) {
            (Some(again), _) => Some(again),
            // Of several SYNs, or from a server that has forgotten that it answered this one.
            (None, State::New) => Some(shift),
            (None, State::SynReceived) if !is_known || segment.ack == end => Some(shift),
            _ => None,
        };
        let Some(offered) = offered.filter(|_| direction == Direction::Reply) else {
            return if self.is_strict { Verdict::Outside } else { Verdict::Passes };
        };
        // The SYN's number was not kept; the client's next segment agrees with this one, or does not.
        *self = Windows::NOTHING;
        let [client, server] = &mut self.sides;
        (client.shift, server.shift) = match segment.shift {
            Some(_) => (offered, segment.shift),
            None => (Some(0), Some(0)),
        };
        server.window = server.offered(segment).max(1);
        (server.is_known, server.end, server.ack) = (true, segment.end(), segment.ack);
        Verdict::Anew
    }

    /// Remembers a segment of a connection that is not known well, and knows it if the other side agrees.
    fn learn(&mut self, direction: Direction, segment: &Segment, is_new: bool) -> Verdict {
        let (sender, receiver) = by_direction(&mut self.sides, direction);
        let has = |flag| segment.flags & flag != 0;
        if has(RST) {
            let exact = receiver.is_known && segment.seq == receiver.ack
                || sender.is_known && segment.seq == sender.end;
            return if exact { Verdict::Counts(segment.flags) } else { Verdict::Passes };
        }
        if !segment.is_whole {
            // It says less than it takes.
            return Verdict::Counts(segment.flags & !FIN);
        }
        let end = segment.end();
        let tolerance = |side: &Side| side.largest().clamp(OLD_ACK, NEAR);
        let agrees = receiver.is_known
            && is_near(segment.ack, receiver.end, tolerance(sender))
            && is_near(end, receiver.ack, tolerance(receiver));
        let follows = sender.is_known && is_near(end, sender.end, NEAR);
        if is_new && direction == Direction::Original && !follows {
            // What is known of the client then is its SYN, by which the answer will be known.
            return Verdict::Passes;
        }
        if follows {
            // What came out of order does not take back what was learnt.
            (sender.end, sender.ack) = (later(end, sender.end), later(segment.ack, sender.ack));
        } else {
            (sender.end, sender.ack) = (end, segment.ack);
        }
        sender.is_known = true;
        if !agrees {
            // Who is silent so far must not be ended by what may be forged.
            return Verdict::Counts(segment.flags & !FIN);
        }
        // That it was acknowledged shows that it was sent.
        (sender.end, receiver.end) = (later(sender.end, receiver.ack), later(receiver.end, sender.ack));
        (sender.window, receiver.window) = (sender.largest(), receiver.largest());
        sender.limit = later(sender.end, limit(receiver.ack, receiver.window));
        receiver.limit = later(receiver.end, limit(sender.ack, sender.window));
        (self.is_strict, self.is_learnt) = (true, true);
        Verdict::Counts(segment.flags)
    }

    /// Compares a segment with the windows, and takes it in if it is inside.
    fn check(&mut self, direction: Direction, segment: &Segment, word: u32) -> Verdict {
        let (sender, receiver) = by_direction(&mut self.sides, direction);
        let has = |flag| segment.flags & flag != 0;
        // Some stacks reset with ACK and nothing acknowledged.
        let acknowledges = has(ACK) && !(has(RST) && segment.ack == 0);
        let (ack, sack) =
            if acknowledges { (segment.ack, segment.sack) } else { (receiver.end, receiver.end) };
        let end = segment.end();
        // Of what was sent unseen, what the receiver was allowed to; and what was learnt may be off by a window.
        let (newest, windows) = match self.is_learnt {
            true => (later(receiver.end, receiver.limit), 2),
            false => (receiver.end, 1),
        };
        let back = receiver.window.saturating_mul(windows).min(LARGEST) + 1;
        let oldest = receiver.end.wrapping_sub(sender.window.saturating_mul(2).clamp(OLD_ACK, LARGEST));
        let inside = !is_after(segment.seq, sender.limit)
            && !is_after(sender.end.wrapping_sub(back), end)
            && !is_after(sack, newest)
            && !is_after(oldest, sack);
        if !inside {
            return Verdict::Outside;
        }
        if has(RST) {
            return reset(sender, receiver, segment, word);
        }
        (sender.end, receiver.end) = (later(sender.end, end), later(receiver.end, sack));
        if is_after(end, sender.limit) {
            // The receiver takes more than it offered.
            let more = end.wrapping_sub(sender.limit);
            receiver.window = receiver.window.saturating_add(more).min(LARGEST);
        }
        if has(ACK) {
            let window = sender.offered(segment);
            sender.window = sender.window.max(window);
            sender.ack = later(sender.ack, ack);
            receiver.limit = later(receiver.limit, limit(ack, window));
        }
        self.is_exempt = !segment.is_whole;
        Verdict::Counts(segment.flags)
    }
}

/// The side that sends in this direction, and the other.
fn by_direction([client, server]: &mut [Side; 2], direction: Direction) -> (&mut Side, &mut Side) {
    match direction {
        Direction::Original => (client, server),
        Direction::Reply => (server, client),
    }
}

/// A reset within the window. RFC 5961 section 3.2: the receiver believes it if it has the very next number that it
/// expects, and else asks its sender, who would then send one that has. What was acknowledged is the most that is known of
/// what the receiver expects; what it has been sent is all that it may have got meanwhile.
fn reset(sender: &Side, receiver: &Side, segment: &Segment, word: u32) -> Verdict {
    if is_after(receiver.ack, segment.seq) {
        return Verdict::Outside;
    }
    let opening = matches!(State::from_bits(word), State::New | State::SynReceived);
    if opening || segment.seq == receiver.ack || segment.seq == sender.end {
        Verdict::Counts(segment.flags)
    } else {
        Verdict::Passes
    }
}

/// A window as eight bits, not less than it is: five for its highest bit, three for what follows.
fn encode(window: u32) -> u32 {
    let window = u64::from(window.clamp(1, LARGEST));
    let power = window.ilog2();
    let rest = ((window - (1 << power)) * 8 + (1 << power) - 1) >> power;
    // Eight of them are the next power.
    (power << 3) + rest as u32
}

fn decode(code: u32) -> u32 {
    let (power, rest) = (code >> 3 & 0x1f, code & 7);
    (u64::from(8 + rest) << power >> 3).min(u64::from(u32::MAX)) as u32
}

#[cfg(all(test, not(loom)))]
#[path = "tests/window.rs"]
mod tests;

#[cfg(all(test, not(loom)))]
#[path = "tests/window_model.rs"]
mod model;
