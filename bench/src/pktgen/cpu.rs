//! CPU time of the whole machine, softirq included, from `/proc/stat` (proc_stat(5)).

use std::time::Duration;

/// Busy time of all CPUs since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTime {
    /// Everything but idle and iowait; guests are in user time already.
    pub busy_s: f64,
    /// Of that, softirq.
    pub softirq_s: f64,
}

impl CpuTime {
    /// Reads the counters. Their resolution is one tick per CPU, usually 10 ms.
    pub fn read() -> std::io::Result<CpuTime> {
        let text = std::fs::read_to_string("/proc/stat")?;
        CpuTime::parse(&text).ok_or_else(|| std::io::Error::other("/proc/stat has no line of all CPUs"))
    }

    fn parse(text: &str) -> Option<CpuTime> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let &[user, nice, system, _, _, irq, softirq, ..] = ticks.as_slice() else { return None };
        let busy = user + nice + system + irq + softirq;
        Some(CpuTime { busy_s: busy / TICKS_PER_SECOND, softirq_s: softirq / TICKS_PER_SECOND })
    }

    /// What was spent since an earlier reading.
    pub fn since(&self, earlier: &CpuTime) -> CpuTime {
        CpuTime {
            busy_s: (self.busy_s - earlier.busy_s).max(0.0),
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
    fn busy_time_is_all_but_idle_and_waiting() {
        let text = "cpu  100 20 300 5000 70 5 45 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let time = CpuTime::parse(text).expect("a line");
        assert_eq!(time, CpuTime { busy_s: 4.7, softirq_s: 0.45 });
        assert_eq!(CpuTime::parse("cpu0 1 2"), None);
        assert_eq!(time.since(&time).busy_s, 0.0);
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
