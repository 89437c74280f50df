//! CPU time of the whole machine, softirq included, from `/proc/stat` (proc_stat(5)): what is not idle. The kernel measures how long a CPU
//! idles, while it finds out by ticks what else one does; and a CPU that is woken from idleness by an interrupt has none. What the
//! kernel forwards at less than full load, ticks mostly miss.

use std::time::{Duration, Instant};

/// A reading of the machine's clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuTime {
    at: Instant,
    /// Time since boot of all CPUs in which they had nothing to do, or were somebody else's (steal).
    idle_s: f64,
    softirq_s: f64,
    cpus: usize,
}

/// CPU time spent between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Of all CPUs.
    pub busy_s: f64,
    /// Of that, softirq, as far as ticks have seen it.
    pub softirq_s: f64,
}

impl CpuTime {
    /// Reads the counters. Their resolution is a hundredth of a second.
    pub fn read() -> std::io::Result<CpuTime> {
        let (text, at) = (std::fs::read_to_string("/proc/stat")?, Instant::now());
        CpuTime::parse(&text, at).ok_or_else(|| std::io::Error::other("/proc/stat has no line of all CPUs"))
    }

    fn parse(text: &str, at: Instant) -> Option<CpuTime> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let &[_, _, _, idle, iowait, _, softirq, steal, ..] = ticks.as_slice() else { return None };
        let cpus = text.lines().filter(|line| line.starts_with("cpu")).count() - 1;
        let idle_s = (idle + iowait + steal) / TICKS_PER_SECOND;
        Some(CpuTime { at, idle_s, softirq_s: softirq / TICKS_PER_SECOND, cpus })
    }

    /// What was spent since an earlier reading.
    pub fn since(&self, earlier: &CpuTime) -> Spent {
        let all_s = self.at.duration_since(earlier.at).as_secs_f64() * self.cpus as f64;
        Spent {
            busy_s: (all_s - (self.idle_s - earlier.idle_s)).clamp(0.0, all_s),
            softirq_s: (self.softirq_s - earlier.softirq_s).max(0.0),
        }
    }
}

/// Unit of `/proc/stat`: `USER_HZ`, which is 100 on every architecture that Fairway runs on
/// (`include/asm-generic/param.h`).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPUs that are busy while this process sleeps: what else runs on the machine.
pub fn others(over: Duration) -> std::io::Result<f64> {
    let before = CpuTime::read()?;
    std::thread::sleep(over);
    Ok(CpuTime::read()?.since(&before).busy_s / over.as_secs_f64())
}

/// CPU time of a process's threads so far, in nanoseconds, as the scheduler accounts it (`/proc/PID/task/*/schedstat`):
/// exact, where ticks miss what runs between two of them. Interrupts that it is charged for are in it.
pub fn of_process(pid: u32) -> std::io::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let ran = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        sum += ran.ok_or_else(|| std::io::Error::other("schedstat does not begin with a number"))?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_waiting_nor_stolen() {
        let start = Instant::now();
        let at = |text: &str, ms| CpuTime::parse(text, start + Duration::from_millis(ms)).expect("a line");
        let cpus = "cpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        let before = at(&format!("cpu  100 20 300 5000 70 5 45 9 0 0\n{cpus}"), 0);
        // Of 2 s, ticks have seen 0.1 s of work; 0.9 s were idle, 0.2 s waited, 0.1 s stolen.
        let after = at(&format!("cpu  105 20 302 5090 90 5 48 19 0 0\n{cpus}"), 1000);
        let spent = after.since(&before);
        assert!((spent.busy_s - 0.8).abs() < 1e-9 && (spent.softirq_s - 0.03).abs() < 1e-9, "{spent:?}");
        assert_eq!(before.since(&before), Spent::default());
        assert_eq!(CpuTime::parse("cpu0 1 2", start), None);
    }

    #[test]
    fn a_process_is_charged_for_what_its_threads_run() {
        let own = || of_process(std::process::id()).expect("schedstat");
        let before = own();
        let end = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < end {
            std::hint::spin_loop();
        }
        let ran = own() - before;
        // The machine may be shared; other tests of this process run beside this one.
        assert!(ran > 20_000_000, "{ran} ns");
        assert!(of_process(u32::MAX).is_err());
    }

    #[test]
    fn a_busy_thread_shows() {
        let before = CpuTime::read().expect("/proc/stat");
        let end = std::time::Instant::now() + Duration::from_millis(300);
        while std::time::Instant::now() < end {
            std::hint::spin_loop();
        }
        let spent = CpuTime::read().expect("/proc/stat").since(&before).busy_s;
        assert!(spent > 0.05, "{spent} s");
    }
}
