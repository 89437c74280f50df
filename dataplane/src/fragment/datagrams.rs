//! The datagrams of which fragments are under way: what is known of each transport header, what has come, and which
//! fragments wait for the first.
//!
//! The table is of fixed size. Where in it a datagram may be depends on its source alone, and on a pod's port rather than
//! on the address that it claims, so that one source can take nothing from most others. In a full set the oldest
//! datagram gives way: those that are whole have left, so it is most likely one that lost a fragment.

use super::coverage::{Coverage, Misfit, Piece};
use super::shelf::{Bin, List, Shelf, Stored};
use crate::Now;
use crate::flow::FlowKey;
use crate::hash::fold_multiply;
use crate::wire::proto;
use fairway_pmd::Frame;
use fairway_tables::{DropReason, Ip};

/// Sets of datagrams; the source chooses.
const SETS: usize = 128;
/// Datagrams of a set.
const WAYS: usize = 16;
/// Fragments that may wait for their first, of all sources together. Each occupies a frame.
pub const MAX_WAITING: u16 = 256;
/// The same for one source (one set): a datagram of 65,535 bytes on the smallest IPv6 link has 54 fragments.
pub const MAX_WAITING_PER_SOURCE: u8 = 64;
/// Seconds until a datagram of which fragments are missing is forgotten. Hosts wait for 30 to 120 (RFC 1122 section 3.3.2),
/// but a router's are either close together or lost.
pub const LIFETIME_SECONDS: u32 = 5;

/// What the fragments of one datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5), and where they came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Identification.
    pub id: u32,
    /// As in a [`FlowKey`].
    pub outer: u32,
    /// As in a [`FlowKey`].
    pub ingress: u16,
    /// IPv4's protocol; IPv6 tells datagrams apart without.
    pub proto: u8,
    /// Whether the ingress port has one sender only.
    pub from_pod: bool,
}

impl DatagramKey {
    fn set(&self, seed: u64) -> usize {
        let src = if self.from_pod { Ip::UNSPECIFIED } else { self.src };
        let (high, low) = src.0.split_at(8);
        let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let port = u64::from(self.ingress) | u64::from(self.outer) << 32;
        let hash = fold_multiply(word(low) ^ seed, port ^ 0x9e37_79b9_7f4a_7c15);
        (fold_multiply(hash ^ word(high), 0xa076_1d64_78bd_642f) >> 32) as usize % SETS
    }
}

/// What a first fragment tells of those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Protocol of the transport header.
    pub proto: u8,
    /// Raw ports, as in [`FlowKey::ports`].
    pub ports: u32,
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It goes the way of packets with this transport header.
    Pass(Transport),
    /// It waits, with those of the datagram in this place.
    Wait(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Vacant,
    /// Without the first fragment.
    Waiting,
    Known(Transport),
    /// Fragments overlapped: all others are dropped too (RFC 5722 section 4).
    Broken,
}

#[derive(Clone)]
struct Datagram {
    key: DatagramKey,
    state: State,
    since_s: u32,
    /// In which order datagrams began.
    order: u64,
    waiting: List,
}

const NOBODY: Datagram = Datagram {
    key: DatagramKey {
        src: Ip::UNSPECIFIED,
        dst: Ip::UNSPECIFIED,
        id: 0,
        outer: 0,
        ingress: FlowKey::TUNNEL,
        proto: 0,
        from_pod: false,
    },
    state: State::Vacant,
    since_s: 0,
    order: 0,
    waiting: List::EMPTY,
};

impl Datagram {
    fn is_over(&self, now: Now) -> bool {
        now.seconds.wrapping_sub(self.since_s) > LIFETIME_SECONDS
    }
}

/// See the module's head.
pub struct Fragments {
    datagrams: Box<[Datagram]>,
    /// Beside each datagram.
    coverage: Box<[Coverage]>,
    shelf: Shelf,
    /// Of each set.
    waiting: [u8; SETS],
    /// Fragments whose first has come, on their way out.
    released: List,
    begun: u64,
    swept_s: u32,
    seed: u64,
}

impl Fragments {
    /// No fragment has come.
    pub fn new(seed: u64) -> Fragments {
        Fragments {
            datagrams: vec![NOBODY; SETS * WAYS].into(),
            coverage: vec![Coverage::NOTHING; SETS * WAYS].into(),
            shelf: Shelf::new(MAX_WAITING),
            waiting: [0; SETS],
            released: List::EMPTY,
            begun: 0,
            swept_s: 0,
            seed,
        }
    }

    /// Fragments that wait for their first.
    pub fn waiting(&self) -> usize {
        self.shelf.len()
    }

    /// Says what becomes of a fragment; `transport` is what it tells if it is a first one. After that of a first
    /// fragment, those that waited for it are [released](Fragments::released).
    ///
    /// # Errors
    /// [`DropReason::BadFragment`] or [`DropReason::FragmentLimit`].
    pub(crate) fn admit(
        &mut self,
        key: &DatagramKey,
        piece: &Piece,
        transport: Option<Transport>,
        now: Now,
        bin: &mut Bin<'_>,
    ) -> Result<Admission, DropReason> {
        // RFC 3128: a fragment that begins within the TCP header.
        let within_tcp = key.proto == proto::TCP && piece.offset == 1;
        if !piece.is_possible() || within_tcp {
            return Err(DropReason::BadFragment);
        }
        let index = self.find_or_begin(key, now, bin);
        let state = self.datagrams[index].state;
        match (state, transport) {
            (State::Broken, _) => return Err(DropReason::BadFragment),
            (State::Known(_), Some(_)) if self.coverage[index].has_first() => {
                // A new datagram with an identification used before, while the old one lacks a fragment.
                self.begin(index, key, now);
            }
            (State::Waiting, None) if self.has_no_room(index / WAYS) => {
                return Err(DropReason::FragmentLimit);
            }
            _ => {}
        }
        match self.coverage[index].add(piece) {
            Ok(()) => {}
            Err(Misfit::Duplicate) => return Err(DropReason::BadFragment),
            Err(Misfit::Overlap) => {
                self.end(index, DropReason::BadFragment, bin);
                self.datagrams[index].state = State::Broken;
                return Err(DropReason::BadFragment);
            }
        }
        let datagram = &mut self.datagrams[index];
        if let Some(transport) = transport {
            datagram.state = State::Known(transport);
            self.released = std::mem::replace(&mut datagram.waiting, List::EMPTY);
        }
        match datagram.state {
            State::Known(transport) => {
                if self.coverage[index].is_complete() {
                    datagram.state = State::Vacant;
                }
                Ok(Admission::Pass(transport))
            }
            _ => Ok(Admission::Wait(index)),
        }
    }

    /// Keeps a fragment that shall [wait](Admission::Wait).
    pub(crate) fn hold(&mut self, place: usize, stored: Stored, frame: Frame) -> Result<(), Frame> {
        self.shelf.put(&mut self.datagrams[place].waiting, stored, frame)?;
        self.waiting[place / WAYS] += 1;
        Ok(())
    }

    /// The next fragment that waited for the first one admitted last.
    pub(crate) fn released(&mut self, key: &DatagramKey) -> Option<(Stored, Frame)> {
        let next = self.shelf.take(&mut self.released)?;
        self.waiting[key.set(self.seed)] -= 1;
        Some(next)
    }

    /// Drops fragments that have waited too long. To be called at least once per second.
    pub(crate) fn expire(&mut self, now: Now, bin: &mut Bin<'_>) {
        if self.shelf.len() == 0 || self.swept_s == now.seconds {
            return;
        }
        self.swept_s = now.seconds;
        for index in 0..self.datagrams.len() {
            let datagram = &self.datagrams[index];
            if datagram.state == State::Waiting && datagram.is_over(now) {
                self.end(index, DropReason::FragmentTimeout, bin);
            }
        }
    }

    /// Forgets everything, and drops what waits.
    pub(crate) fn clear(&mut self, bin: &mut Bin<'_>) {
        (0..self.datagrams.len()).for_each(|index| self.end(index, DropReason::FragmentTimeout, bin));
    }

    fn has_no_room(&self, set: usize) -> bool {
        self.shelf.is_full() || self.waiting[set] >= MAX_WAITING_PER_SOURCE
    }

    /// The place of a datagram, which in a new one's case was the oldest's of its set.
    fn find_or_begin(&mut self, key: &DatagramKey, now: Now, bin: &mut Bin<'_>) -> usize {
        let first = key.set(self.seed) * WAYS;
        let set = &self.datagrams[first..first + WAYS];
        let is_it = |datagram: &Datagram| datagram.state != State::Vacant && datagram.key == *key;
        let place = set.iter().position(is_it);
        if let Some(place) = place
            && !set[place].is_over(now)
        {
            return first + place;
        }
        // A vacant place is older than any.
        let age = |datagram: &Datagram| if datagram.state == State::Vacant { 0 } else { datagram.order };
        let oldest = || (0..WAYS).min_by_key(|place| age(&set[*place])).unwrap_or(0);
        let place = place.unwrap_or_else(oldest);
        let reason =
            if set[place].is_over(now) { DropReason::FragmentTimeout } else { DropReason::FragmentLimit };
        self.end(first + place, reason, bin);
        self.begin(first + place, key, now);
        first + place
    }

    fn begin(&mut self, index: usize, key: &DatagramKey, now: Now) {
        self.begun += 1;
        self.coverage[index] = Coverage::NOTHING;
        self.datagrams[index] = Datagram {
            key: *key,
            state: State::Waiting,
            since_s: now.seconds,
            order: self.begun,
            waiting: List::EMPTY,
        };
    }

    fn end(&mut self, index: usize, reason: DropReason, bin: &mut Bin<'_>) {
        let datagram = &mut self.datagrams[index];
        let dropped = self.shelf.discard(&mut datagram.waiting, reason, bin);
        self.waiting[index / WAYS] -= dropped as u8;
        datagram.state = State::Vacant;
    }
}
