//! Stops a thread before one of its stores to shared memory, as a kill would. Only in tests.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static STORES_LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What a stopped thread unwinds with.
struct FaultStop;

pub(super) fn before_store() {
    STORES_LEFT.with(|left| match left.get() {
        u64::MAX => {}
        0 => {
            left.set(u64::MAX);
            resume_unwind(Box::new(FaultStop));
        }
        n => left.set(n - 1),
    });
}

/// Runs `action` up to so many stores of this thread; its result, or `None` if it was stopped.
pub(super) fn stop_after_stores<T>(stores: u64, action: impl FnOnce() -> T) -> Option<T> {
    STORES_LEFT.set(stores);
    let outcome = catch_unwind(AssertUnwindSafe(action));
    STORES_LEFT.set(u64::MAX);
    match outcome {
        Ok(value) => Some(value),
        Err(cause) if cause.is::<FaultStop>() => None,
        Err(cause) => resume_unwind(cause),
    }
}
