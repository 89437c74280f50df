//! One connection as it lies in shared memory: 32 words, every one an atomic.

use super::sync::{AtomicU32, Ordering, fence};
use super::tuple::Tuple;
use super::window::Windows;
use fairway_tables::NextHop;
#[cfg(not(loom))]
use fairway_tables::{Ip, PortId};

/// Words of a tuple that are kept. The model checker looks at every word's every past value; ports and
/// protocol are enough for it, and the addresses in its tests are unspecified.
#[cfg(not(loom))]
const KEPT: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
#[cfg(loom)]
const KEPT: [usize; 2] = [8, 9];

/// See the module's head. Two cache lines. Every store goes through the methods below, which tests can stop.
#[repr(C, align(128))]
pub(super) struct Entry {
    /// Even: stable. Odd: being written, or a writer died here. Each write adds 2.
    sequence: AtomicU32,
    /// See [`Word`](super::word::Word); zero is free.
    word: AtomicU32,
    /// Seconds of `CLOCK_MONOTONIC` of the last packet known.
    last_seen_s: AtomicU32,
    /// Seconds of `CLOCK_MONOTONIC` of the first packet.
    created_s: AtomicU32,
    /// `Service::id` plus one, or zero.
    service: AtomicU32,
    /// Of a connection that is left to another node: address, kind and port of the way there, a word of no meaning, and
    /// zero. Of any other: see [`Windows`]; where the last word is zero, the rest means nothing.
    #[cfg(not(loom))]
    own: [AtomicU32; Windows::WORDS],
    tuples: [[AtomicU32; KEPT.len()]; 2],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 128);

/// What an entry says besides its state.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    pub(super) tuples: [Tuple; 2],
    pub(super) service: Option<u32>,
    pub(super) now_s: u32,
    /// The way to the node that the connection is left to.
    pub(super) via: Option<NextHop>,
    /// What is known of the windows, where they are tracked.
    pub(super) windows: Option<Windows>,
}

impl Entry {
    #[cfg(loom)]
    pub(super) fn new() -> Entry {
        let zero = || AtomicU32::new(0);
        let tuple = || std::array::from_fn(|_| zero());
        Entry {
            sequence: zero(),
            word: zero(),
            last_seen_s: zero(),
            created_s: zero(),
            service: zero(),
            tuples: [tuple(), tuple()],
        }
    }

    /// The sequence number under which what follows is read.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence.load(Ordering::Acquire)
    }

    pub(super) fn word(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    pub(super) fn last_seen_s(&self) -> u32 {
        self.last_seen_s.load(Ordering::Relaxed)
    }

    pub(super) fn created_s(&self) -> u32 {
        self.created_s.load(Ordering::Relaxed)
    }

    pub(super) fn service(&self) -> Option<u32> {
        self.service.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(super) fn see(&self, now_s: u32) {
        before_store();
        self.last_seen_s.store(now_s, Ordering::Relaxed);
    }

    /// Changes the word from what it was, which is returned if it is that no more. It fails only then.
    pub(super) fn change_word(&self, from: u32, to: u32) -> Result<u32, u32> {
        before_store();
        self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Takes the right to write: the sequence number goes odd. Only the holder of a free place does this.
    fn begin_write(&self) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        before_store();
        self.sequence.store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Ends writing: the next even number. Returns it.
    fn end_write(&self) -> u32 {
        let sequence = self.next_generation();
        before_store();
        self.sequence.store(sequence, Ordering::Release);
        sequence
    }

    /// The generation that the next write gives the entry. Only for the holder of the place.
    fn next_generation(&self) -> u32 {
        (self.sequence.load(Ordering::Relaxed) | 1).wrapping_add(1)
    }

    /// Writes a connection into a free place that the caller holds; `word` makes the first word from the
    /// generation, which is returned.
    pub(super) fn fill(&self, facts: &Facts, word: impl FnOnce(u32) -> u32) -> u32 {
        self.begin_write();
        for (words, tuple) in self.tuples.iter().zip(&facts.tuples) {
            let values = tuple.to_words();
            for (word, kept) in words.iter().zip(KEPT) {
                before_store();
                word.store(values[kept], Ordering::Relaxed);
            }
        }
        self.see(facts.now_s);
        before_store();
        self.created_s.store(facts.now_s, Ordering::Relaxed);
        before_store();
        self.service.store(facts.service.map_or(0, |id| id.wrapping_add(1)), Ordering::Relaxed);
        self.store_own(facts);
        before_store();
        self.word.store(word(self.next_generation()), Ordering::Release);
        self.end_write()
    }

    /// The last word always: zero says that nothing is known of the windows.
    #[cfg(not(loom))]
    fn store_own(&self, facts: &Facts) {
        let mut words = [0; Windows::WORDS];
        let from = match (&facts.via, &facts.windows) {
            (Some(via), _) => {
                for (word, part) in words.iter_mut().zip(via.addr.0.chunks_exact(4)) {
                    *word = u32::from_ne_bytes([part[0], part[1], part[2], part[3]]);
                }
                words[4] = u32::from(via.kind) << 16 | u32::from(via.port.0);
                0
            }
            (None, Some(windows)) => {
                words = windows.to_words(self.next_generation());
                0
            }
            (None, None) => Windows::WORDS - 1,
        };
        for (word, value) in self.own.iter().zip(words).skip(from) {
            before_store();
            word.store(value, Ordering::Relaxed);
        }
    }

    /// The words of the windows, if the place still is of this generation.
    #[cfg(not(loom))]
    pub(super) fn read_windows(&self, generation: u32) -> Option<[u32; Windows::WORDS]> {
        let words = std::array::from_fn(|n| self.own[n].load(Ordering::Acquire));
        (self.sequence.load(Ordering::Relaxed) == generation).then_some(words)
    }

    /// Changes the words of the windows from what they were, the last one last; `false` if one is that no more, and what
    /// was not changed by then stays.
    #[cfg(not(loom))]
    pub(super) fn change_windows(&self, from: &[u32; Windows::WORDS], to: &[u32; Windows::WORDS]) -> bool {
        self.own.iter().zip(from.iter().zip(to)).all(|(word, (from, to))| {
            if from == to {
                return true;
            }
            before_store();
            word.compare_exchange(*from, *to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Forgets of the windows all that packets change, since some may have passed unseen; only before the table is shared.
    #[cfg(not(loom))]
    pub(super) fn forget_windows(&self) {
        let mark = self.own[Windows::WORDS - 1].load(Ordering::Relaxed);
        let rest = Windows::forget(mark);
        if rest != mark {
            before_store();
            self.own[Windows::WORDS - 1].store(rest, Ordering::Relaxed);
        }
    }

    /// The way of a forwarded connection, if its place still is of this generation.
    #[cfg(not(loom))]
    pub(super) fn read_via(&self, generation: u32) -> Option<NextHop> {
        let mut addr = Ip::UNSPECIFIED;
        for (bytes, word) in addr.0.chunks_exact_mut(4).zip(&self.own) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let rest = self.own[4].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let via = NextHop { addr, kind: (rest >> 16) as u16, port: PortId(rest as u16) };
        (self.sequence.load(Ordering::Relaxed) == generation).then_some(via)
    }

    /// The model checker's connections have no words of their own.
    #[cfg(loom)]
    fn store_own(&self, facts: &Facts) {
        let _ = facts.windows;
    }

    #[cfg(loom)]
    pub(super) fn read_windows(&self, _: u32) -> Option<[u32; Windows::WORDS]> {
        None
    }

    #[cfg(loom)]
    pub(super) fn change_windows(&self, _: &[u32; Windows::WORDS], _: &[u32; Windows::WORDS]) -> bool {
        true
    }

    #[cfg(loom)]
    pub(super) fn forget_windows(&self) {
        let _ = Windows::forget(0);
    }

    #[cfg(loom)]
    pub(super) fn read_via(&self, _: u32) -> Option<NextHop> {
        None
    }

    /// Makes a place's word zero and its generation another. Only for the place's holder.
    pub(super) fn vacate(&self) {
        self.begin_write();
        before_store();
        self.word.store(0, Ordering::Release);
        self.end_write();
    }

    /// Both tuples and the sequence number under which they were read; `None` if they are being written.
    pub(super) fn read_tuples(&self) -> Option<([Tuple; 2], u32)> {
        let before = self.sequence();
        if before & 1 == 1 {
            return None;
        }
        let read = |which: usize| {
            let mut words = [0; 10];
            for (word, kept) in self.tuples[which].iter().zip(KEPT) {
                words[kept] = word.load(Ordering::Relaxed);
            }
            Tuple::from_words(words)
        };
        let tuples = [read(0), read(1)];
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == before).then_some((tuples, before))
    }
}

/// Where tests stop the process, as a kill would: before each store to shared memory.
#[inline(always)]
pub(super) fn before_store() {
    #[cfg(all(test, not(loom)))]
    super::fault::before_store();
}
