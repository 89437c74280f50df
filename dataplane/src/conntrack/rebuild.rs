//! Finding connections again in the entries that a former process left: chains and sets are made from them.
//!
//! Forwarding waits for this. A million connections are two million looks and as many stores at random places of
//! memory far larger than a cache, so what decides is how many of these are under way at once: several threads
//! take a stretch of places each, and go through it in groups, whose memory is loaded before it is needed.

use super::entry::Entry;
use super::table::Inner;
use super::tcp::State;
use super::tuple::Tuple;
use super::value::{Value, tagged};
use crate::clock::Now;
use std::ops::Range;

/// Places looked at together.
const GROUP: usize = 32;
/// A thread is begun for so many places at least: starting it takes as long as some hundred of them.
const STRETCH: usize = 1 << 15;
/// More threads than this only wait for memory.
const THREADS: usize = 8;

/// What lies in a place and is to be chained, if no other has its tuples.
struct Candidate {
    index: u32,
    tuples: [Tuple; 2],
    generation: u32,
}

impl Inner {
    /// Chains what the file holds, and lists the rest as free.
    pub(super) fn rebuild(&self) {
        let (used, now_s) = (self.used_entries().len(), Now::read().seconds);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(THREADS).min(used / STRETCH).max(1);
        // Whole words of the sets' bits, so that no two threads store to one.
        let stretch = used.div_ceil(threads).next_multiple_of(64);
        let stretches = (0..threads).map(|n| (n * stretch).min(used)..((n + 1) * stretch).min(used));
        if threads == 1 {
            self.rebuild_stretch(0..used, now_s);
        } else {
            std::thread::scope(|scope| {
                let rebuild = |stretch| scope.spawn(move || self.rebuild_stretch(stretch, now_s));
                let threads: Vec<_> = stretches.map(rebuild).collect();
                // Each by itself, which ThreadSanitizer sees; the end of a scope it does not.
                for thread in threads {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                }
            });
        }
        self.ledger.free_range(used, self.map.entries().len());
    }

    fn rebuild_stretch(&self, stretch: Range<usize>, now_s: u32) {
        let mut found = 0;
        let mut group = Vec::with_capacity(GROUP);
        for start in stretch.clone().step_by(GROUP) {
            for index in start..(start + GROUP).min(stretch.end) {
                match candidate(index as u32, &self.used_entries()[index]) {
                    Some(candidate) => group.push(candidate),
                    None => self.free(index as u32),
                }
            }
            self.touch(&group);
            for candidate in group.drain(..) {
                if self.chain(&candidate, now_s) {
                    found += 1;
                } else {
                    self.free(candidate.index);
                }
            }
        }
        self.ledger.found(found);
    }

    /// Loads what chaining these will look at. No load waits for another, as it would there.
    fn touch(&self, group: &[Candidate]) {
        let mut firsts = [None; 2 * GROUP];
        let tuples = group.iter().flat_map(|candidate| &candidate.tuples);
        for (first, tuple) in firsts.iter_mut().zip(tuples) {
            *first = self.chains.first(self.chains.of(tuple));
        }
        for entry in firsts.into_iter().flatten().filter_map(|first| self.entry(first)) {
            std::hint::black_box((entry.sequence(), entry.service()));
        }
    }

    /// Chains a connection, unless one of its tuples is there already: a hostile file may hold one twice.
    fn chain(&self, candidate: &Candidate, now_s: u32) -> bool {
        let Candidate { index, tuples, generation } = candidate;
        let Some(entry) = self.entry(*index) else { return false };
        let _locked = self.chains.lock(tuples);
        if tuples[0] == tuples[1] || tuples.iter().any(|tuple| self.lookup(tuple).is_some()) {
            return false;
        }
        let word = entry.word();
        if word != tagged(word, *generation) {
            let _ = entry.change_word(word, tagged(word, *generation));
        }
        // Seen in the future: before the machine was started anew. It would outlive its time.
        if self.idle_s(*index, now_s) < 0 {
            entry.see(now_s);
        }
        // Packets may have passed by the kernel meanwhile, or an engine that did not look at them.
        entry.forget_windows();
        self.chains.link(*index, tuples);
        self.ledger.list(*index, Value::of(word, tuples[0].proto), self.source(tuples));
        true
    }

    fn free(&self, index: u32) {
        if let Some(entry) = self.entry(index) {
            entry.vacate();
            self.ledger.free_range(index as usize, index as usize + 1);
        }
    }
}

fn candidate(index: u32, entry: &Entry) -> Option<Candidate> {
    if State::from_bits(entry.word()) == State::Free {
        return None;
    }
    let (tuples, generation) = entry.read_tuples()?;
    Some(Candidate { index, tuples, generation })
}
