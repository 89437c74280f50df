//! Changes of tables while packets flow: how many are due, and whether they are wanted just now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the thread that makes changes is told. Clones tell the same thread.
#[derive(Clone)]
pub struct Orders {
    stop: Arc<AtomicBool>,
    on: Arc<AtomicBool>,
}

impl Orders {
    /// Changes are wanted from the start.
    pub fn new() -> Orders {
        Orders { stop: Arc::default(), on: Arc::new(AtomicBool::new(true)) }
    }

    /// No more changes, or changes again.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Default for Orders {
    fn default() -> Orders {
        Orders::new()
    }
}

/// Changes of one kind, so many a second.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    per_s: u32,
    since: Instant,
    /// Made since then.
    done: u64,
    /// Made altogether.
    pub made: u64,
}

impl Pace {
    /// From now on.
    pub fn new(per_s: u32) -> Pace {
        Pace { per_s, since: Instant::now(), done: 0, made: 0 }
    }

    /// Numbers of the changes that are due, which count as made. While changes are not wanted, none become due.
    pub fn due(&mut self, orders: &Orders) -> std::ops::Range<u64> {
        let now = Instant::now();
        if !orders.on.load(Ordering::Relaxed) {
            (self.since, self.done) = (now, 0);
            return self.made..self.made;
        }
        let due = (now.duration_since(self.since).as_secs_f64() * f64::from(self.per_s)) as u64;
        let first = self.made;
        self.made += due.saturating_sub(self.done);
        self.done = self.done.max(due);
        first..self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn changes_come_at_their_rate_and_a_pause_is_not_made_up_for() {
        let (orders, mut pace) = (Orders::new(), Pace::new(1000));
        pace.since -= Duration::from_millis(500);
        let first = pace.due(&orders);
        assert!(first.start == 0 && (500..5000).contains(&first.end), "{first:?}");
        orders.set(false);
        pace.since -= Duration::from_secs(3600);
        assert!(pace.due(&orders).is_empty());
        orders.set(true);
        let after = pace.due(&orders);
        assert!(after.start == first.end && after.end < first.end + 5000, "{after:?}");
        assert_eq!(pace.made, after.end);
        assert!(!orders.stopped());
        orders.clone().stop();
        assert!(orders.stopped());
    }
}
