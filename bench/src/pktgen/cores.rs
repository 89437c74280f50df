//! Which core does what: generator and sink on the first that this process may use, the device on the last. On a
//! machine with one core they share it.

use core_affinity::CoreId;

/// The generator's core and the device's.
pub fn cores() -> (Option<CoreId>, Option<CoreId>) {
    let all = fairway_tests::sys::cores();
    let core = |id: Option<&usize>| id.map(|id| CoreId { id: *id });
    (core(all.first()), core(all.last()))
}

/// Does `work` on a thread that is pinned to the generator's core. The calling thread stays as it is: a device
/// that it starts later would inherit a pinning, and could not have a core of its own.
pub fn on_generator_core<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let (core, _) = cores();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Unpinned it works too, less steadily.
            core.map(core_affinity::set_for_current);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_pinned_and_its_caller_is_not() {
        let before = fairway_tests::sys::cores();
        let inside = on_generator_core(fairway_tests::sys::cores);
        assert_eq!(inside, before[..1]);
        assert_eq!(fairway_tests::sys::cores(), before);
    }
}
