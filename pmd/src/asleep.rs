//! Whether a thread sleeps, so that others pay for waking it only then.
//!
//! The sleeper says that it sleeps and then looks for work once more; the others leave work and then look whether
//! it sleeps. A fence on each side keeps the two steps apart, so that one of the two sees the other: work is
//! never slept over.

use crate::sync::{AtomicBool, Ordering, fence};

/// See the module. Between the sleeper and all who leave work for it.
#[derive(Default)]
pub struct Asleep(AtomicBool);

impl Asleep {
    /// The sleeper: about to sleep. Whether it may, which it may not if there is work.
    #[inline]
    pub fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !has_work()
    }

    /// The sleeper: awake again.
    #[inline]
    pub fn awake(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// The others, after they left work: whether the sleeper must be woken.
    #[inline]
    pub fn needs_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}
