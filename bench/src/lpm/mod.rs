//! Longest prefix match, measured: Fairway's tables beside other structures, all holding the same routes and asked
//! for the same addresses.

mod binary;
mod fairway;
mod multibit;
mod peer;
pub mod routes;

pub use binary::Binary;
pub use fairway::{Backing, Fairway};
pub use multibit::Multibit;
pub use peer::PrefixTrie;

use routes::Route;
use std::hint::black_box;
use std::time::Instant;

/// Look-ups that are timed as one: short beside a time slice of the machine.
pub const CHUNK: usize = 1024;
/// Addresses that are known at a time where look-ups are independent.
const BURST: usize = 64;

/// A structure that finds the longest match. Addresses are left-aligned in 128 bits; values are below 2^24.
pub trait Table {
    /// Puts routes in, or gives them another value.
    fn insert(&mut self, routes: &[Route]);
    /// Takes routes out that it holds. Returns false if the structure can't.
    fn remove(&mut self, routes: &[Route]) -> bool;
    /// The value of the longest prefix that holds `key`.
    fn look_up(&self, key: u128) -> Option<u32>;
    /// Tells that `key` will be looked up, where the structure has a use for that.
    #[inline(always)]
    fn announce(&self, _key: u128) {}
}

/// A structure under measurement, whatever its type.
pub trait Contestant {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// The structure.
    fn table(&mut self) -> &mut dyn Table;
    /// Nanoseconds per look-up where each address is known only when the one before is answered. Appends one sample per
    /// [`CHUNK`] addresses, so that moments when something else ran can be told apart.
    fn time_dependent(&self, keys: &[u128], samples: &mut Vec<f64>);
    /// Nanoseconds per look-up of addresses known beforehand, a burst at a time: the processor overlaps them.
    fn time_independent(&self, keys: &[u128], samples: &mut Vec<f64>);
    /// Bytes that it takes, as well as that can be told.
    fn bytes(&self) -> u64;
}

/// A table with its name and size.
pub struct Entry<T> {
    name: &'static str,
    bytes: u64,
    table: T,
}

impl<T: Table> Entry<T> {
    /// Builds the table and notes how much memory that took.
    pub fn build(name: &'static str, make: impl FnOnce() -> T, routes: &[Route]) -> Entry<T> {
        let before = crate::alloc::bytes_in_use();
        let mut table = make();
        table.insert(routes);
        let bytes = crate::alloc::bytes_in_use().saturating_sub(before);
        Entry { name, bytes, table }
    }

    /// The same with another size, for a table that does not lie in this process's heap.
    pub fn with_bytes(mut self, bytes: impl FnOnce(&T) -> u64) -> Entry<T> {
        self.bytes = bytes(&self.table);
        self
    }
}

impl<T: Table> Contestant for Entry<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn table(&mut self) -> &mut dyn Table {
        &mut self.table
    }

    fn time_dependent(&self, keys: &[u128], samples: &mut Vec<f64>) {
        let nothing = black_box(0);
        let mut last = 0;
        samples.extend(keys.chunks_exact(CHUNK).map(|chunk| {
            let start = Instant::now();
            for key in chunk {
                last = self.table.look_up(*key ^ (u128::from(last & nothing) << 96)).unwrap_or(1);
            }
            start.elapsed().as_nanos() as f64 / CHUNK as f64
        }));
        black_box(last);
    }

    fn time_independent(&self, keys: &[u128], samples: &mut Vec<f64>) {
        let mut sum = 0u32;
        samples.extend(keys.chunks_exact(CHUNK).map(|chunk| {
            let start = Instant::now();
            for burst in chunk.chunks_exact(BURST) {
                burst.iter().for_each(|key| self.table.announce(*key));
                for key in burst {
                    sum = sum.wrapping_add(self.table.look_up(*key).unwrap_or(1));
                }
            }
            start.elapsed().as_nanos() as f64 / CHUNK as f64
        }));
        black_box(sum);
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
