//! The one place where the connection table takes its atomics from: the standard library's, or the model
//! checker's under `cfg(loom)`. What loom does not cover is listed in docs/conntrack.md.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering, fence};

/// Waiting for a lock that another thread holds for some hundred nanoseconds.
pub(super) struct Wait {
    #[cfg(not(loom))]
    backoff: crossbeam_utils::Backoff,
}

impl Wait {
    pub(super) fn new() -> Wait {
        Wait {
            #[cfg(not(loom))]
            backoff: crossbeam_utils::Backoff::new(),
        }
    }

    pub(super) fn once(&self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        self.backoff.snooze();
    }
}

/// What seeds the hashes: drawn, but always the same for the model checker, which runs everything many times
/// and must find it unchanged.
pub(super) fn seed() -> u64 {
    if cfg!(loom) { 0x9e37_79b9_7f4a_7c15 } else { crate::random_seed() }
}
