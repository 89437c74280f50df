//! The connection table. See the folder's head for its rules.

use super::entry::Entry;
use super::map::{ConntrackError, Map};
use super::tcp::{self, State, Timeouts};
use super::tuple::{Direction, Tuple};
use crossbeam_queue::ArrayQueue;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

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
    /// Second of its last packet known.
    pub last_seen_s: u32,
}

/// Why a connection was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// No free place.
    Full,
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

const LOCKS: usize = 1024;
const END: u32 = 0;

/// See the module's head. Shared by all workers.
#[derive(Clone)]
pub struct Conntrack {
    inner: Arc<Inner>,
}

struct Inner {
    map: Map,
    /// First link of each chain: `(index << 1 | direction) + 1`, or [`END`].
    heads: Box<[AtomicU32]>,
    /// Next link of each entry's two chains.
    links: Box<[[AtomicU32; 2]]>,
    locks: Box<[AtomicBool]>,
    free: ArrayQueue<u32>,
    timeouts: Timeouts,
    seed: u64,
    expired: AtomicU64,
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
        let chains = (capacity * 2).next_power_of_two().max(LOCKS);
        let inner = Inner {
            heads: (0..chains).map(|_| AtomicU32::new(END)).collect(),
            links: (0..capacity).map(|_| [AtomicU32::new(END), AtomicU32::new(END)]).collect(),
            locks: (0..LOCKS).map(|_| AtomicBool::new(false)).collect(),
            free: ArrayQueue::new(capacity.max(1)),
            timeouts,
            seed: crate::random_seed(),
            expired: AtomicU64::new(0),
            map,
        };
        inner.rebuild();
        Conntrack { inner: Arc::new(inner) }
    }

    /// Finds either direction of a connection. Takes no lock.
    pub fn lookup(&self, tuple: &Tuple) -> Option<Found> {
        self.inner.lookup(self.inner.chain(tuple), tuple)
    }

    /// Inserts a connection whose packets arrive as `original` and whose replies arrive as `reply`.
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
    ) -> Result<ConnRef, InsertError> {
        self.inner.insert([*original, *reply], flags, service, now_s)
    }

    /// Notes a packet with its TCP control bits. `false` if the connection is gone.
    pub fn update(&self, conn: ConnRef, protocol: u8, direction: Direction, flags: u8, now_s: u32) -> bool {
        let Some(entry) = self.inner.map.entries().get(conn.index as usize) else { return false };
        if entry.sequence.load(Ordering::Acquire) != conn.generation {
            return false;
        }
        let mut word = entry.state.load(Ordering::Relaxed);
        loop {
            let next = tcp::next(word, protocol, direction, flags);
            if State::from_bits(word) == State::Free {
                return false;
            }
            if next == word {
                break;
            }
            match entry.state.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        entry.last_seen_s.store(now_s, Ordering::Relaxed);
        true
    }

    /// Notes that packets are seen. `false` if the connection is gone.
    #[inline]
    pub fn touch(&self, conn: ConnRef, now_s: u32) -> bool {
        let Some(entry) = self.inner.map.entries().get(conn.index as usize) else { return false };
        if entry.sequence.load(Ordering::Acquire) != conn.generation {
            return false;
        }
        entry.last_seen_s.store(now_s, Ordering::Relaxed);
        true
    }

    /// Forgets a connection, unless its place already belongs to another.
    pub fn remove(&self, conn: ConnRef) {
        self.inner.remove(conn, |_| true);
    }

    /// Looks at `count` places from `*cursor` on, and forgets connections whose time is over; returns how many.
    pub fn expire(&self, cursor: &mut u32, count: u32, now_s: u32) -> usize {
        let entries = self.inner.used_entries();
        let mut expired = 0;
        for _ in 0..count.min(entries.len() as u32) {
            let index = *cursor % entries.len() as u32;
            *cursor = (index + 1) % entries.len() as u32;
            let entry = &entries[index as usize];
            let state = entry.state.load(Ordering::Relaxed);
            if state == State::Free as u32 || !self.inner.is_expired(index, state, now_s) {
                continue;
            }
            let conn = ConnRef { index, generation: entry.sequence.load(Ordering::Acquire) };
            let still = |state| self.inner.is_expired(index, state, now_s);
            expired += usize::from(self.inner.remove(conn, still));
        }
        self.inner.expired.fetch_add(expired as u64, Ordering::Relaxed);
        expired
    }

    /// Connections, one place at a time; a snapshot of each, not of all.
    pub fn iter(&self) -> impl Iterator<Item = Connection> + '_ {
        self.inner.used_entries().iter().enumerate().filter_map(|(index, entry)| {
            let state = State::from_bits(entry.state.load(Ordering::Acquire));
            let (tuples, generation) = entry.read_tuples()?;
            if state == State::Free {
                return None;
            }
            let conn = ConnRef { index: index as u32, generation };
            Some(Connection { conn, tuples, state, last_seen_s: entry.last_seen_s.load(Ordering::Relaxed) })
        })
    }

    /// How full the table is.
    pub fn summary(&self) -> Summary {
        let capacity = self.inner.map.entries().len();
        Summary { used: capacity - self.inner.free.len(), capacity }
    }
}

impl Inner {
    /// The places that were ever used.
    fn used_entries(&self) -> &[Entry] {
        let entries = self.map.entries();
        let used = self.map.ever_used().load(Ordering::Relaxed) as usize;
        &entries[..used.min(entries.len())]
    }

    /// Chains what the file holds, and lists the rest as free.
    fn rebuild(&self) {
        for (index, entry) in self.used_entries().iter().enumerate() {
            let alive = State::from_bits(entry.state.load(Ordering::Relaxed)) != State::Free;
            let tuples = if alive { entry.read_tuples() } else { None };
            let known = |tuple: &Tuple| self.lookup(self.chain(tuple), tuple).is_some();
            match tuples {
                // A hostile file may hold one tuple twice; the first is kept.
                Some((tuples, _)) if tuples[0] != tuples[1] && !known(&tuples[0]) && !known(&tuples[1]) => {
                    self.link(index as u32, &tuples);
                }
                _ => {
                    entry.begin_write();
                    entry.state.store(State::Free as u32, Ordering::Relaxed);
                    entry.end_write();
                    let _ = self.free.push(index as u32);
                }
            }
        }
        for index in self.used_entries().len()..self.map.entries().len() {
            let _ = self.free.push(index as u32);
        }
    }

    fn chain(&self, tuple: &Tuple) -> usize {
        tuple.hash(self.seed) as usize & (self.heads.len() - 1)
    }

    fn lookup(&self, chain: usize, tuple: &Tuple) -> Option<Found> {
        let entries = self.map.entries();
        let mut link = self.heads[chain].load(Ordering::Acquire);
        // A chain that changes under us may lead elsewhere; it cannot be longer than the table twice over,
        // and a miss is made good under the lock.
        for _ in 0..256 {
            if link == END {
                return None;
            }
            let (index, which) = ((link - 1) >> 1, (link - 1) as usize & 1);
            let entry = entries.get(index as usize)?;
            if let Some((tuples, generation)) = entry.read_tuples() {
                let state = State::from_bits(entry.state.load(Ordering::Relaxed));
                if tuples[which] == *tuple && state != State::Free {
                    let direction = if which == 0 { Direction::Original } else { Direction::Reply };
                    return Some(Found { conn: ConnRef { index, generation }, direction, tuples, state });
                }
            }
            link = self.links[index as usize][which].load(Ordering::Acquire);
        }
        None
    }

    fn insert(
        &self,
        tuples: [Tuple; 2],
        flags: u8,
        service: Option<u32>,
        now_s: u32,
    ) -> Result<ConnRef, InsertError> {
        if tuples[0] == tuples[1] {
            return Err(InsertError::Clash(None));
        }
        let chains = [self.chain(&tuples[0]), self.chain(&tuples[1])];
        let _locked = self.lock(chains);
        if let Some(found) = self.lookup(chains[0], &tuples[0]) {
            return Err(InsertError::Exists(found));
        }
        if let Some(found) = self.lookup(chains[1], &tuples[1]) {
            return Err(InsertError::Clash(Some(found)));
        }
        let Some(index) = self.free.pop() else { return Err(InsertError::Full) };
        // Before anything is written there: a process that dies here leaves a place that is looked at.
        self.map.ever_used().fetch_max(index + 1, Ordering::Release);
        let entry = &self.map.entries()[index as usize];
        entry.begin_write();
        entry.write_tuples(&tuples);
        entry.last_seen_s.store(now_s, Ordering::Relaxed);
        entry.created_s.store(now_s, Ordering::Relaxed);
        entry.service.store(service.map_or(0, |id| id.wrapping_add(1)), Ordering::Relaxed);
        entry.state.store(tcp::initial(tuples[0].proto, flags), Ordering::Relaxed);
        let generation = entry.end_write();
        self.link(index, &tuples);
        Ok(ConnRef { index, generation })
    }

    fn link(&self, index: u32, tuples: &[Tuple; 2]) {
        for (which, tuple) in tuples.iter().enumerate() {
            let head = &self.heads[self.chain(tuple)];
            self.links[index as usize][which].store(head.load(Ordering::Relaxed), Ordering::Relaxed);
            head.store((index << 1 | which as u32) + 1, Ordering::Release);
        }
    }

    fn is_expired(&self, index: u32, state: u32, now_s: u32) -> bool {
        let entry = &self.map.entries()[index as usize];
        let Some((tuples, _)) = entry.read_tuples() else { return false };
        let idle_s = now_s.wrapping_sub(entry.last_seen_s.load(Ordering::Relaxed)) as i32;
        idle_s > self.timeouts.of(tuples[0].proto, State::from_bits(state)) as i32
    }

    /// Unlinks a connection and frees its place, if `condition` on its state still holds under the locks.
    fn remove(&self, conn: ConnRef, condition: impl Fn(u32) -> bool) -> bool {
        let Some(entry) = self.map.entries().get(conn.index as usize) else { return false };
        let Some((tuples, generation)) = entry.read_tuples() else { return false };
        if generation != conn.generation {
            return false;
        }
        let _locked = self.lock([self.chain(&tuples[0]), self.chain(&tuples[1])]);
        let state = entry.state.load(Ordering::Relaxed);
        if entry.sequence.load(Ordering::Relaxed) != conn.generation
            || state == State::Free as u32
            || !condition(state)
        {
            return false;
        }
        for (which, tuple) in tuples.iter().enumerate() {
            self.unlink(self.chain(tuple), (conn.index << 1 | which as u32) + 1);
        }
        entry.begin_write();
        entry.state.store(State::Free as u32, Ordering::Relaxed);
        entry.end_write();
        let _ = self.free.push(conn.index);
        true
    }

    fn unlink(&self, chain: usize, target: u32) {
        let mut place = &self.heads[chain];
        loop {
            let link = place.load(Ordering::Relaxed);
            if link == END {
                return;
            }
            let (index, which) = ((link - 1) >> 1, (link - 1) as usize & 1);
            let next = &self.links[index as usize][which];
            if link == target {
                place.store(next.load(Ordering::Relaxed), Ordering::Release);
                return;
            }
            place = next;
        }
    }

    fn lock(&self, chains: [usize; 2]) -> Locked<'_> {
        let (a, b) = (chains[0] % LOCKS, chains[1] % LOCKS);
        let (low, high) = (a.min(b), a.max(b));
        self.acquire(low);
        if high != low {
            self.acquire(high);
        }
        Locked { inner: self, low, high }
    }

    fn acquire(&self, lock: usize) {
        let backoff = crossbeam_utils::Backoff::new();
        while self.locks[lock]
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            backoff.snooze();
        }
    }
}

/// Two chains' locks, given back on drop.
struct Locked<'a> {
    inner: &'a Inner,
    low: usize,
    high: usize,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.inner.locks[self.low].store(false, Ordering::Release);
        self.inner.locks[self.high].store(false, Ordering::Release);
    }
}
