//! TCP windows of the connections in the table: where they are kept, and who may change them.
//!
//! Each number is a word of its own that any worker changes by compare-and-swap; several of them are not changed at once.
//! That is enough: a segment is noted before it goes on, so what answers it finds it noted, and all numbers only grow. One
//! that is read before another worker has noted the next is as good as a segment that came a moment earlier.

use super::entry::{Entry, Facts};
use super::table::{ConnRef, Conntrack, InsertError, Inserted};
use super::tcp::{self, State};
use super::tuple::{Direction, Tuple};
use super::value::{tagged, untagged};
use super::window::{Verdict, Windows};
use crate::wire::proto;
use crate::wire::tcp::Segment;

/// What a segment is to the connection whose tuple it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracked {
    /// It goes on, and was noted.
    Fine,
    /// It is outside of the connection's windows, and changed nothing.
    Outside,
    /// The connection is gone.
    Gone,
}

/// How often a change is tried again when other workers change the same connection. Then the segment goes on unnoted, as if
/// it had taken another way.
const TRIES: usize = 64;

impl Conntrack {
    /// Says whether TCP is tracked liberally, as it is by default: no window is looked at. Else a segment that is outside of
    /// its connection's windows is none of it (`nf_conntrack_tcp_be_liberal`).
    pub fn tcp_liberal(mut self, liberal: bool) -> Conntrack {
        self.is_strict = !liberal;
        self
    }

    /// Whether the windows of TCP connections are tracked.
    #[inline(always)]
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// As [`insert`](Conntrack::insert), for a TCP connection whose windows are tracked from its first segment on.
    ///
    /// # Errors
    /// As there.
    pub fn insert_tracked(
        &self,
        original: &Tuple,
        reply: &Tuple,
        segment: &Segment,
        service: Option<u32>,
        now_s: u32,
    ) -> Result<Inserted, InsertError> {
        let windows = Some(Windows::begin(Some(segment)));
        let facts = Facts { tuples: [*original, *reply], service, now_s, via: None, windows };
        self.inner().insert(&facts, segment.flags)
    }

    /// Notes a segment of a connection whose windows are tracked, unless it is outside of them.
    pub fn track(&self, conn: ConnRef, direction: Direction, segment: &Segment, now_s: u32) -> Tracked {
        match self.judge(conn, direction, segment) {
            None => Tracked::Gone,
            Some(Verdict::Outside) => Tracked::Outside,
            Some(Verdict::Counts(flags)) => {
                self.note(conn, now_s, |word| tcp::next(word, proto::TCP, direction, flags))
            }
            Some(Verdict::Passes) => self.note(conn, now_s, |word| word),
            Some(Verdict::Again(_)) if direction == Direction::Reply => self.note(conn, now_s, |word| word),
            Some(Verdict::Again(shift)) => self.note(conn, now_s, |word| tcp::syn_again(word, shift)),
            Some(Verdict::Anew) => self.note(conn, now_s, |_| tcp::begun_anew()),
        }
    }

    /// Notes a packet of a connection that says nothing of its own, a later fragment.
    pub fn touch(&self, conn: ConnRef, now_s: u32) -> Tracked {
        self.note(conn, now_s, |word| word)
    }

    /// Loads what [`track`](Conntrack::track) looks at first of each of these places. None of the loads waits for another.
    pub fn load(&self, places: impl Iterator<Item = u32>) {
        let words = places.filter_map(|place| self.inner().entry(place)).map(Entry::word);
        std::hint::black_box(words.fold(0, |all, word| all ^ word));
    }

    fn note(&self, conn: ConnRef, now_s: u32, next: impl Fn(u32) -> u32) -> Tracked {
        if self.change(conn, proto::TCP, next, now_s) { Tracked::Fine } else { Tracked::Gone }
    }

    /// What the windows say of a segment, which is taken in; `None` if the connection is gone.
    fn judge(&self, conn: ConnRef, direction: Direction, segment: &Segment) -> Option<Verdict> {
        let entry = self.inner().entry(conn.index)?;
        for _ in 0..TRIES {
            let word = entry.word();
            if State::from_bits(word) == State::Free
                || word != tagged(word, conn.generation)
                || tcp::is_forwarded(word)
            {
                return None;
            }
            let before = entry.read_windows(conn.generation)?;
            let mut windows = Windows::of_words(&before, conn.generation);
            let verdict = windows.take(direction, segment, untagged(word));
            if verdict == Verdict::Outside
                || entry.change_windows(&before, &windows.to_words(conn.generation))
            {
                return Some(verdict);
            }
        }
        Some(Verdict::Passes)
    }
}
