//! The connection table. See the folder's head for its rules.

use super::ConntrackError;
use super::chains::{Chains, holds};
use super::entry::{Entry, Facts};
use super::ledger::Ledger;
use super::map::Map;
use super::room::NoRoom;
use super::tcp::{self, State};
use super::timeouts::Timeouts;
use super::tuple::{Direction, Tuple};
use super::value::{Value, tagged, untagged};
use fairway_tables::NextHop;
use std::path::Path;
use std::sync::Arc;

/// A connection's place, and its generation so that a place given to another is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnRef {
    /// Index into the table.
    pub index: u32,
    /// Sequence number of the entry.
    pub generation: u32,
}

/// A connection that a look-up found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub conn: ConnRef,
    /// Which of its directions was asked for.
    pub direction: Direction,
    /// Tuples of its original and reply direction, each as its packets arrive.
    pub tuples: [Tuple; 2],
    /// Its state.
    pub state: State,
    /// The way to the node that it is left to, if it is.
    pub via: Option<NextHop>,
}

impl Found {
    /// The tuple with which a packet of the found direction leaves: the other direction's, reversed.
    pub fn translated(&self) -> Tuple {
        match self.direction {
            Direction::Original => self.tuples[1].reversed(),
            Direction::Reply => self.tuples[0].reversed(),
        }
    }
}

/// A connection as listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Where it is.
    pub conn: ConnRef,
    /// Tuples of both directions.
    pub tuples: [Tuple; 2],
    /// Its state.
    pub state: State,
    /// Whether packets have come back.
    pub replied: bool,
    /// `Service::id` of the service that it was begun to.
    pub service: Option<u32>,
    /// The way to the node that it is left to, which alone sees its replies.
    pub via: Option<NextHop>,
    /// Second of `CLOCK_MONOTONIC` of its first packet.
    pub created_s: u32,
    /// Second of `CLOCK_MONOTONIC` of its last packet known.
    pub last_seen_s: u32,
}

impl Connection {
    /// What a place holds, read whole; `None` if that is nothing, or just changing.
    pub(super) fn read(index: u32, entry: &Entry) -> Option<Connection> {
        let word = entry.word();
        let state = State::from_bits(word);
        if state == State::Free {
            return None;
        }
        let (service, created_s, last_seen_s) = (entry.service(), entry.created_s(), entry.last_seen_s());
        let (tuples, generation) = entry.read_tuples()?;
        // Its tag says whether the word is of the same connection; see `tagged`.
        if word != tagged(word, generation) {
            return None;
        }
        let conn = ConnRef { index, generation };
        let via = if tcp::is_forwarded(word) { Some(entry.read_via(generation)?) } else { None };
        let replied = word & tcp::ONE_WAY == 0 && state != State::New && via.is_none();
        Some(Connection { conn, tuples, state, replied, service, via, created_s, last_seen_s })
    }
}

/// A connection that was inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inserted {
    /// Where it is.
    pub conn: ConnRef,
    /// Whether another had to make room for it.
    pub evicted: bool,
}

/// Why a connection was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// No free place, and everything is worth more than a new flow.
    Full,
    /// The source has as many openings under way as one may have.
    Share,
    /// Another worker inserted the same connection just before.
    Exists(Found),
    /// Another connection's packets come back with the tuple that this one's would; `None` if it is this
    /// very connection's own first tuple.
    Clash(Option<Found>),
}

/// How full the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Connections held.
    pub used: usize,
    /// Connections that fit.
    pub capacity: usize,
}

/// See the module's head. Shared by all workers.
#[derive(Clone)]
pub struct Conntrack {
    inner: Arc<Inner>,
    /// Whether TCP windows are tracked; see the module `strict`.
    pub(super) is_strict: bool,
}

/// What all holders of a [`Conntrack`] share.
pub(super) struct Inner {
    pub(super) map: Map,
    pub(super) chains: Chains,
    pub(super) ledger: Ledger,
    timeouts: Timeouts,
    secret: u64,
}

impl Conntrack {
    /// Opens the table in a file, with the connections that are in it, or makes it.
    ///
    /// # Errors
    /// See [`ConntrackError`]; the file is left as it was.
    pub fn open(path: &Path, capacity: u32, timeouts: Timeouts) -> Result<Conntrack, ConntrackError> {
        Ok(Conntrack::over(Map::open(path, capacity)?, timeouts))
    }

    /// A table on the heap.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn heap(capacity: u32, timeouts: Timeouts) -> std::io::Result<Conntrack> {
        Ok(Conntrack::over(Map::heap(capacity)?, timeouts))
    }

    fn over(map: Map, timeouts: Timeouts) -> Conntrack {
        let capacity = map.entries().len();
        let secret = map.secret();
        let (chains, ledger) = (Chains::new(capacity), Ledger::new(capacity));
        let inner = Inner { chains, ledger, timeouts, secret, map };
        inner.rebuild();
        Conntrack { inner: Arc::new(inner), is_strict: false }
    }

    /// A number that stays with the table, whichever process has it open, and that nobody outside knows.
    pub fn secret(&self) -> u64 {
        self.inner.secret
    }

    /// Finds either direction of a connection. Takes no lock.
    pub fn lookup(&self, tuple: &Tuple) -> Option<Found> {
        self.inner.lookup(tuple)
    }

    /// Inserts a connection whose packets arrive as `original` and whose replies arrive as `reply`. In a full
    /// table something of less worth makes room, if there is such a thing.
    ///
    /// # Errors
    /// See [`InsertError`]; nothing is inserted then.
    pub fn insert(
        &self,
        original: &Tuple,
        reply: &Tuple,
        flags: u8,
        service: Option<u32>,
        now_s: u32,
    ) -> Result<Inserted, InsertError> {
        let tuples = [*original, *reply];
        self.inner.insert(&Facts { tuples, service, now_s, via: None, windows: None }, flags)
    }

    /// Inserts a connection that is left to the node that `via` leads to: its packets pass here as they are, its replies do
    /// not. As [`insert`](Self::insert) else.
    ///
    /// # Errors
    /// As there.
    pub fn insert_forwarded(
        &self,
        original: &Tuple,
        via: NextHop,
        service: Option<u32>,
        now_s: u32,
    ) -> Result<Inserted, InsertError> {
        let tuples = [*original, original.reversed()];
        self.inner.insert(&Facts { tuples, service, now_s, via: Some(via), windows: None }, 0)
    }

    /// Notes a packet with its TCP control bits. `false` if the connection is gone.
    pub fn update(&self, conn: ConnRef, protocol: u8, direction: Direction, flags: u8, now_s: u32) -> bool {
        self.change(conn, protocol, |word| tcp::next(word, protocol, direction, flags), now_s)
    }

    /// Notes a packet after which state and flags are what `next` makes of them. `false` if the connection is gone.
    pub(super) fn change(&self, conn: ConnRef, protocol: u8, next: impl Fn(u32) -> u32, now_s: u32) -> bool {
        let inner = &*self.inner;
        let Some(entry) = inner.entry(conn.index) else { return false };
        if entry.sequence() != conn.generation {
            return false;
        }
        let mut word = entry.word();
        loop {
            if State::from_bits(word) == State::Free || word != tagged(word, conn.generation) {
                return false;
            }
            let next = tagged(next(untagged(word)), conn.generation);
            if next == word {
                break;
            }
            // Read before the word is changed: once it is, this was the connection's and no other's.
            let (from, to) = (Value::of(word, protocol), Value::of(next, protocol));
            let tuples = if from == to { None } else { entry.read_tuples() };
            match entry.change_word(word, next) {
                Ok(_) => {
                    if let Some((tuples, _)) = tuples {
                        let source = inner.source(&tuples);
                        inner.ledger.changed(conn.index, from, to, source, || inner.value(conn.index));
                    }
                    break;
                }
                Err(now) => word = now,
            }
        }
        if entry.last_seen_s() != now_s {
            entry.see(now_s);
        }
        true
    }

    /// Forgets a connection, unless its place already belongs to another; whether it did.
    pub fn remove(&self, conn: ConnRef) -> bool {
        self.inner.remove(conn, |_| true)
    }

    /// Looks at `count` places from `*cursor` on, and forgets connections whose time is over; returns how many.
    pub fn expire(&self, cursor: &mut u32, count: u32, now_s: u32) -> usize {
        let used = self.inner.used_entries().len() as u32;
        let mut expired = 0;
        for _ in 0..count.min(used) {
            let index = *cursor % used;
            *cursor = (index + 1) % used;
            let Some(entry) = self.inner.entry(index) else { continue };
            let (generation, word) = (entry.sequence(), entry.word());
            if State::from_bits(word) == State::Free || !self.inner.is_expired(index, word, now_s) {
                continue;
            }
            let still = |word| self.inner.is_expired(index, word, now_s);
            expired += usize::from(self.inner.remove(ConnRef { index, generation }, still));
        }
        expired
    }

    /// Connections, one place at a time; a snapshot of each, not of all.
    pub fn iter(&self) -> impl Iterator<Item = Connection> + '_ {
        let entries = self.inner.used_entries().iter().enumerate();
        entries.filter_map(|(index, entry)| Connection::read(index as u32, entry))
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// How full the table is.
    pub fn summary(&self) -> Summary {
        Summary { used: self.inner.ledger.used(), capacity: self.inner.map.entries().len() }
    }
}

impl Inner {
    pub(super) fn entry(&self, index: u32) -> Option<&Entry> {
        self.map.entries().get(index as usize)
    }

    /// The places that were ever used.
    pub(super) fn used_entries(&self) -> &[Entry] {
        &self.map.entries()[..self.map.ever_used()]
    }

    pub(super) fn lookup(&self, tuple: &Tuple) -> Option<Found> {
        self.chains.find(self.chains.of(tuple), |index, which| {
            let entry = self.entry(index)?;
            let (tuples, generation) = holds(entry, which, tuple)?;
            let word = entry.word();
            let state = State::from_bits(word);
            let via = if tcp::is_forwarded(word) { Some(entry.read_via(generation)?) } else { None };
            let direction = if which == 0 { Direction::Original } else { Direction::Reply };
            let conn = ConnRef { index, generation };
            (state != State::Free).then_some(Found { conn, direction, tuples, state, via })
        })
    }

    /// Whether a connection stands in the way of one with these tuples.
    pub(super) fn in_the_way(&self, tuples: &[Tuple; 2]) -> Result<(), InsertError> {
        if let Some(found) = self.lookup(&tuples[0]) {
            return Err(InsertError::Exists(found));
        }
        match self.lookup(&tuples[1]) {
            // Without the chains' locks: inserted since the look-up above.
            Some(found) if found.tuples == *tuples => {
                Err(InsertError::Exists(Found { direction: Direction::Original, ..found }))
            }
            Some(found) => Err(InsertError::Clash(Some(found))),
            None => Ok(()),
        }
    }

    pub(super) fn insert(&self, facts: &Facts, flags: u8) -> Result<Inserted, InsertError> {
        let tuples = &facts.tuples;
        if tuples[0] == tuples[1] {
            return Err(InsertError::Clash(None));
        }
        let source = self.source(tuples);
        let free = if self.ledger.has_its_share(source) { None } else { self.ledger.claim_free() };
        let place = match free {
            Some(place) => place,
            None => {
                // Nothing makes room for what will not be inserted.
                self.in_the_way(tuples)?;
                self.make_room(source, facts.now_s).map_err(|none| match none {
                    NoRoom::Full => InsertError::Full,
                    NoRoom::Share => InsertError::Share,
                })?
            }
        };
        let locked = self.chains.lock(tuples);
        if let Err(error) = self.in_the_way(tuples) {
            drop(locked);
            self.ledger.give_back(place);
            return Err(error);
        }
        // Before anything is written there: a process that dies here leaves a place that is looked at.
        self.map.use_up_to(place);
        let state = match facts.via {
            Some(_) => tcp::initial_forwarded(),
            None => tcp::initial(tuples[0].proto, flags),
        };
        let generation =
            self.map.entries()[place as usize].fill(facts, |generation| tagged(state, generation));
        self.ledger.began(place, Value::of(state, tuples[0].proto), source);
        self.chains.link(place, tuples);
        Ok(Inserted { conn: ConnRef { index: place, generation }, evicted: free.is_none() })
    }

    fn is_expired(&self, index: u32, word: u32, now_s: u32) -> bool {
        let Some((tuples, _)) = self.entry(index).and_then(Entry::read_tuples) else { return false };
        self.idle_s(index, now_s) > self.timeouts.of_word(tuples[0].proto, word) as i32
    }

    fn remove(&self, conn: ConnRef, condition: impl Fn(u32) -> bool) -> bool {
        let removed = self.end(conn, condition);
        if removed {
            self.ledger.give_back(conn.index);
        }
        removed
    }

    /// Ends a connection if `condition` on its word holds. Its place then belongs to the caller, who fills it
    /// or gives it back.
    pub(super) fn end(&self, conn: ConnRef, condition: impl Fn(u32) -> bool) -> bool {
        let Some(entry) = self.entry(conn.index) else { return false };
        let Some((tuples, generation)) = entry.read_tuples() else { return false };
        if generation != conn.generation {
            return false;
        }
        let _locked = self.chains.lock(&tuples);
        let mut word = entry.word();
        loop {
            let ended = State::from_bits(word) == State::Free || word != tagged(word, generation);
            if ended || entry.sequence() != generation || !condition(word) {
                return false;
            }
            match entry.change_word(word, 0) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        self.chains.unlink(conn.index, &tuples);
        entry.vacate();
        self.ledger.ended(conn.index, Value::of(word, tuples[0].proto), self.source(&tuples));
        true
    }
}
