//! Which flow entries still hold after the tables changed.
//!
//! A flow entry says what the tables said when it was compiled. Most changes of a large cluster are endpoints that
//! come and go behind services which a given flow does not use, so an entry notes the service that it went
//! through, and only changes of that one, or of anything but services, make it stale. The rest of the entries
//! stay hits: otherwise a thousand endpoint changes a second would mean a thousand walks per flow and second.

use crate::flow::Binding;
use fairway_tables::{Change, View};

/// What a flow entry depends on beside all that is not a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dependency(u16);

const SLOTS: usize = 1 << 16;

impl Dependency {
    /// No service.
    pub const NONE: Dependency = Dependency(0);
    /// Services that are not there yet, or not any more.
    pub const ANY_SERVICE: Dependency = Dependency(1);

    /// The services of this number. Numbers beyond 65,533 share dependencies, which costs walks, not
    /// correctness.
    pub fn service(id: u32) -> Dependency {
        Dependency(2 + (id % (SLOTS as u32 - 2)) as u16)
    }

    /// As bits of a flow entry.
    pub fn bits(self) -> u16 {
        self.0
    }
}

/// A worker's record of what changed.
pub struct Freshness {
    /// Entries of the tables' list of changes that were taken in; `None` before the first look.
    seen: Option<u64>,
    /// Changes of anything but services.
    everything: u32,
    /// Changes by dependency.
    services: Box<[u32; SLOTS]>,
}

impl Freshness {
    /// Nothing seen yet.
    pub fn new() -> Freshness {
        let services = vec![0; SLOTS].into_boxed_slice();
        // A slice of exactly this length always becomes the array.
        let services = services.try_into().unwrap_or_else(|_| Box::new([0; SLOTS]));
        Freshness { seen: None, everything: 0, services }
    }

    /// The stamp that an entry with these bits of a dependency has if it is fresh. Both parts only grow, so no
    /// stamp comes again before 2^32 changes.
    #[inline(always)]
    pub fn stamp(&self, dependency_bits: u16) -> u32 {
        self.everything.wrapping_add(self.services[usize::from(dependency_bits)])
    }

    /// Whether the tables still say what the entry says.
    #[inline(always)]
    pub fn is_fresh(&self, binding: &Binding) -> bool {
        binding.stamp == self.stamp(binding.dependency())
    }

    /// Whether nothing changed since the last look.
    #[inline(always)]
    pub fn is_current(&self, tables: View<'_>) -> bool {
        self.seen == Some(tables.change_count())
    }

    /// Takes in what changed; whether it was more than services.
    pub fn update(&mut self, tables: View<'_>) -> bool {
        let now = tables.change_count();
        let mut more = self.seen.is_none();
        let services = &mut self.services;
        tables.changes(self.seen.unwrap_or(now), now, |change| match change {
            Change::Everything => more = true,
            Change::Service(id) => {
                for dependency in [Dependency::ANY_SERVICE, Dependency::service(id)] {
                    let count = &mut services[usize::from(dependency.0)];
                    *count = count.wrapping_add(1);
                }
            }
        });
        if more {
            self.outdate();
        }
        self.seen = Some(now);
        more
    }

    /// Makes every entry stale.
    pub fn outdate(&mut self) {
        self.everything = self.everything.wrapping_add(1);
    }

    /// Other tables are read from now on: nothing derived from the former ones holds.
    pub fn forget(&mut self) {
        self.seen = None;
    }
}

impl Default for Freshness {
    fn default() -> Freshness {
        Freshness::new()
    }
}
