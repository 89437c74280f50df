//! What an idle worker catches up with before it sleeps: the sweeps, questions and summaries that a busy one spreads
//! over its loops. They are due once per period, and are done in slices with a look at the queues between them, never
//! between waking and the first packet: a packet waits for one slice at most.

/// Slices of one period: 64 times [`EFFORT`] makes up for a period's loops.
pub(crate) const SLICES: u32 = 64;
/// Effort of housekeeping in a slice.
pub(crate) const EFFORT: u32 = 8;

/// When chores are due, in clocks of the TSC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chores {
    period: u64,
    due: u64,
    left: u32,
}

impl Chores {
    /// Due once per period, the first time at once.
    pub(crate) fn new(period: u64, now: u64) -> Chores {
        Chores { period, due: now, left: 0 }
    }

    /// The slice to do now, from 0 to [`SLICES`] - 1, if there is one.
    #[inline]
    pub(crate) fn next(&mut self, now: u64) -> Option<u32> {
        if self.left == 0 {
            if (now.wrapping_sub(self.due) as i64) < 0 {
                return None;
            }
            (self.due, self.left) = (now.wrapping_add(self.period), SLICES);
        }
        self.left -= 1;
        Some(SLICES - 1 - self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_period_has_all_slices_once_and_then_leave_to_sleep() {
        let start = u64::MAX - 50;
        let mut chores = Chores::new(100, start);
        for period in 0..3u64 {
            let begin = start.wrapping_add(100 * period);
            for slice in 0..SLICES {
                // A slice may take long; it moves nothing.
                assert_eq!(chores.next(begin.wrapping_add(u64::from(slice / 16))), Some(slice));
            }
            assert_eq!(chores.next(begin.wrapping_add(99)), None, "period {period}");
        }
    }

    #[test]
    fn an_interrupted_round_goes_on_where_it_was() {
        let mut chores = Chores::new(1000, 0);
        assert_eq!((chores.next(0), chores.next(1)), (Some(0), Some(1)));
        // Packets came for many periods.
        assert_eq!(chores.next(50_000), Some(2));
        let rest = std::iter::from_fn(|| chores.next(50_001)).take(200).count();
        assert_eq!(rest as u32, SLICES - 3 + SLICES, "the rest, and the round that has come due meanwhile");
    }
}
