//! Which core does what: generator and sink on the first that this process may use, the device on the last. On a
//! machine with one core they share it.

use core_affinity::CoreId;

/// The generator's core and the device's.
pub fn cores() -> (Option<CoreId>, Option<CoreId>) {
    let all = fairway_tests::sys::cores();
    let core = |id: Option<&usize>| id.map(|id| CoreId { id: *id });
    (core(all.first()), core(all.last()))
}

/// Cores of so many senders after the first: in turn all but the device's, which a device that takes no core of its own
/// (`shared`) leaves to them too.
pub fn of_further_senders(count: usize, shared: bool) -> Vec<Option<CoreId>> {
    let all = fairway_tests::sys::cores();
    let usable = if shared || all.len() < 2 { &all[..] } else { &all[..all.len() - 1] };
    (1..=count).map(|n| Some(CoreId { id: usable[n % usable.len()] })).collect()
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
    fn further_senders_leave_the_device_its_core() {
        let all = fairway_tests::sys::cores();
        let device = cores().1.map(|core| core.id);
        let of = |shared| {
            of_further_senders(3, shared).into_iter().flatten().map(|core| core.id).collect::<Vec<_>>()
        };
        assert_eq!((of(false).len(), of(true).len()), (3, 3));
        if all.len() > 1 {
            assert!(of(false).iter().all(|core| Some(*core) != device), "{:?}", of(false));
            assert_eq!(of(true)[0], all[1]);
        }
    }

    #[test]
    fn the_generator_is_pinned_and_its_caller_is_not() {
        let before = fairway_tests::sys::cores();
        let inside = on_generator_core(fairway_tests::sys::cores);
        assert_eq!(inside, before[..1]);
        assert_eq!(fairway_tests::sys::cores(), before);
    }
}
