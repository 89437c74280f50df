//! What it takes on this machine until a sleeping thread runs on another core, whatever it then does. An adaptive worker's
//! first packet cannot take less, so that `idle` states it beside what it measures: where virtual processors are halted and
//! woken by their hypervisor, it is most of it.

use crate::pktgen::cores::{cores, on_generator_core};
use fairway_dataplane::clock;
use fairway_dataplane::sleep::Sleeper;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest sleep: so late at most is noticed that all is over.
const TIMEOUT_MS: i32 = 1000;

/// Times from asking to running, sorted, in microseconds.
#[derive(Clone, Debug)]
pub struct Wakes(Vec<f64>);

impl Wakes {
    /// Of these times in microseconds.
    pub fn from_us(mut us: Vec<f64>) -> Wakes {
        us.sort_by(f64::total_cmp);
        Wakes(us)
    }

    /// The value that this share of them does not exceed; 0 without any.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }
}

/// Wakes a thread on the device's core from the generator's so many times, by the means that the engine's workers use. Before
/// each, the waker spins for `gap`, as the generator does between packets.
///
/// # Errors
/// If epoll or eventfd cannot be had.
pub fn wakes(times: u32, gap: Duration) -> std::io::Result<Wakes> {
    let sleeper = Sleeper::new()?;
    let waker = sleeper.waker();
    // When the thread was last woken, by its own clock; when it was asked to wake.
    let (asked, woken, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let us = std::thread::scope(|scope| {
        scope.spawn(|| {
            cores().1.map(core_affinity::set_for_current);
            while !over.load(Ordering::Acquire) {
                let before = asked.load(Ordering::Acquire);
                sleeper.sleep(TIMEOUT_MS, || {
                    asked.load(Ordering::Acquire) != before || over.load(Ordering::Acquire)
                });
                let now = clock::tsc();
                if asked.load(Ordering::Acquire) > woken.load(Ordering::Relaxed) {
                    woken.store(now, Ordering::Release);
                }
            }
        });
        let us = on_generator_core(|| {
            (0..times)
                .map(|_| {
                    spin(gap, || false);
                    let start = clock::tsc();
                    asked.store(start, Ordering::Release);
                    waker.wake();
                    spin(Duration::from_millis(TIMEOUT_MS as u64), || woken.load(Ordering::Acquire) >= start);
                    woken.load(Ordering::Acquire).saturating_sub(start) as f64 / clock::tsc_per_ns() / 1e3
                })
                .collect::<Vec<f64>>()
        });
        over.store(true, Ordering::Release);
        waker.wake();
        us
    });
    Ok(Wakes::from_us(us))
}

fn spin(most: Duration, done: impl Fn() -> bool) {
    let start = Instant::now();
    while start.elapsed() < most && !done() {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wake_is_timed() {
        let wakes = wakes(20, Duration::from_millis(2)).unwrap();
        assert_eq!(wakes.0.len(), 20);
        assert!(wakes.0.iter().all(|us| (0.0..1e6).contains(us)), "{wakes:?}");
        assert!(wakes.percentile(0.5) > 0.0 && wakes.percentile(0.5) <= wakes.percentile(0.99), "{wakes:?}");
        assert_eq!(Wakes(Vec::new()).percentile(0.5), 0.0);
    }
}
