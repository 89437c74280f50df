//! Making room in a full table. docs/conntrack.md has the rules and why they are so.

use super::ledger::Source;
use super::table::{ConnRef, Inner};
use super::tuple::Tuple;
use super::value::Value;

/// Places looked at for one victim, at most, in each set.
pub(super) const LOOKS: usize = 16;
/// Candidates among which the longest idle is chosen, at most.
const CANDIDATES: usize = 4;
/// What was seen less long ago is not idle. Running flows report every four seconds.
const IDLE_S: i32 = 9;
/// Established TCP is given up for a new flow after so long at the earliest: 2 hours and 4 minutes, the
/// least that RFC 5382 REQ-5 lets a translator keep it.
const ESTABLISHED_IDLE_S: i32 = 7440;

/// Why there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoRoom {
    /// Everything is worth more than a new flow.
    Full,
    /// The source has its share of openings, and none of them was found to give way.
    Share,
}

/// A connection that may give way.
struct Victim {
    conn: ConnRef,
    word: u32,
    idle_s: i32,
    /// Openings of its source.
    weight: i32,
}

impl Inner {
    /// Takes a place out of use for a new flow of `source`. The caller fills it or gives it back.
    pub(super) fn make_room(&self, source: Source, now_s: u32) -> Result<u32, NoRoom> {
        if self.ledger.has_its_share(source) {
            let own = |_: &Victim, other: Source| other == source;
            return self.evict(Value::Opening, now_s, own).ok_or(NoRoom::Share);
        }
        let weight = self.ledger.openings(source);
        for value in Value::CHEAP {
            let place = self.evict(value, now_s, |victim, other| match value {
                Value::Over => true,
                // An opening under way gives way to its own source, and to one that has fewer even then.
                Value::Opening => other == source || victim.weight > weight + 1 || victim.idle_s >= IDLE_S,
                _ => victim.idle_s >= IDLE_S,
            });
            if let Some(place) = place {
                return Ok(place);
            }
        }
        if !Value::CHEAP.into_iter().all(|value| self.ledger.is_empty(value)) {
            return Err(NoRoom::Full);
        }
        let long_idle = |victim: &Victim, _| victim.idle_s >= ESTABLISHED_IDLE_S;
        self.evict(Value::Established, now_s, long_idle).ok_or(NoRoom::Full)
    }

    /// Ends the best of a few connections of this worth: of the source with the most openings, and then the
    /// longest idle. Returns its place.
    fn evict(&self, value: Value, now_s: u32, may: impl Fn(&Victim, Source) -> bool) -> Option<u32> {
        let mut best: Option<Victim> = None;
        let mut candidates = 0;
        self.ledger.in_turn(value, LOOKS, |place| {
            let Some((victim, source)) = self.victim(place, value, now_s) else { return false };
            if !may(&victim, source) {
                return false;
            }
            candidates += 1;
            let rank = |victim: &Victim| (victim.weight, victim.idle_s);
            if best.as_ref().is_none_or(|best| rank(&victim) > rank(best)) {
                best = Some(victim);
            }
            candidates == CANDIDATES
        });
        let victim = best?;
        // Not if it has changed its state since, or has been seen.
        let idle = |now: i32| now >= victim.idle_s;
        let same = |word| word == victim.word && idle(self.idle_s(victim.conn.index, now_s));
        self.end(victim.conn, same).then_some(victim.conn.index)
    }

    /// What lies in a place, if it is of this worth.
    fn victim(&self, place: u32, value: Value, now_s: u32) -> Option<(Victim, Source)> {
        let entry = self.entry(place)?;
        let (tuples, generation) = entry.read_tuples()?;
        let word = entry.word();
        if Value::of(word, tuples[0].proto) != value {
            self.ledger.misplaced(place, value, || self.value(place));
            return None;
        }
        let source = self.source(&tuples);
        let weight = if value == Value::Opening { self.ledger.openings(source) } else { 0 };
        let conn = ConnRef { index: place, generation };
        Some((Victim { conn, word, idle_s: self.idle_s(place, now_s), weight }, source))
    }

    /// Seconds since a connection was last seen.
    pub(super) fn idle_s(&self, place: u32, now_s: u32) -> i32 {
        self.entry(place).map_or(0, |entry| now_s.wrapping_sub(entry.last_seen_s()) as i32)
    }

    /// What a place is worth at this moment.
    pub(super) fn value(&self, place: u32) -> Value {
        let tuples = |entry: &super::entry::Entry| entry.read_tuples();
        match self.entry(place).and_then(|entry| Some((tuples(entry)?.0, entry.word()))) {
            Some((tuples, word)) => Value::of(word, tuples[0].proto),
            None => Value::Free,
        }
    }

    /// Who is answerable for a connection: where its first packet came from.
    pub(super) fn source(&self, tuples: &[Tuple; 2]) -> Source {
        self.ledger.source(&tuples[0].src)
    }
}
