//! Time: the TSC for costs, `CLOCK_MONOTONIC` for what outlives the process.

// UNSAFETY: reading the TSC and the kernel's clock are calls into the CPU and libc.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Time stamp counter, in clocks.
#[inline(always)]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC reads a counter and changes nothing.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        monotonic_ns()
    }
}

/// As [`tsc`], read after everything before it is done and before anything after it begins. For measuring what takes less
/// than a few hundred clocks, of which the processor overlaps what lies on both sides.
#[inline(always)]
pub fn tsc_fenced() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: fences and RDTSC change nothing.
    unsafe {
        use std::arch::x86_64::{_mm_lfence, _mm_mfence};
        _mm_mfence();
        _mm_lfence();
        let clocks = tsc();
        _mm_lfence();
        clocks
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        tsc()
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`: time since boot, the same for every process.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which we own.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

static RATE: OnceLock<f64> = OnceLock::new();

/// Says what [`tsc_per_ns`] is, as measured by a former image of this process; ignored if it makes no sense or
/// was measured here already.
pub fn set_tsc_per_ns(rate: f64) {
    if rate.is_finite() && rate > 0.0 {
        let _ = RATE.set(rate);
    }
}

/// Clocks per nanosecond, measured once over 20 ms.
pub fn tsc_per_ns() -> f64 {
    *RATE.get_or_init(|| {
        let (start, clocks) = (Instant::now(), tsc());
        std::thread::sleep(Duration::from_millis(20));
        (tsc() - clocks) as f64 / start.elapsed().as_nanos() as f64
    })
}

/// The time that [`process`](crate::process) is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Seconds of `CLOCK_MONOTONIC`.
    pub seconds: u32,
}

impl Now {
    /// Reads the clock.
    pub fn read() -> Now {
        Now { seconds: (monotonic_ns() / 1_000_000_000) as u32 }
    }

    /// What flow entries are stamped with: steps of four seconds, so that a busy flow tells the connection
    /// table that it lives at most that often.
    #[inline(always)]
    pub fn tick(self) -> u32 {
        self.seconds >> 2
    }
}
