//! When packets are due: nanoseconds since the start of a trial, without a clock.

use crate::pktgen::random::Random;
use crate::pktgen::scenario::Arrival;

/// The times of one trial, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrival: Arrival,
    gap_ns: f64,
    /// When the next packet is due.
    due_ns: f64,
    /// Packets of the present burst that are still to come.
    in_burst: u32,
}

impl Schedule {
    /// Begins at 0 ns; a Poisson process a random gap later.
    pub fn new(arrival: Arrival, random: &mut Random) -> Schedule {
        let gap_ns = arrival.rate_pps().map_or(0.0, |rate| 1e9 / rate);
        let mut schedule = Schedule { arrival, gap_ns, due_ns: 0.0, in_burst: 0 };
        match arrival {
            Arrival::Poisson { .. } => schedule.advance(random),
            Arrival::Bursts { burst, .. } => schedule.in_burst = burst,
            _ => {}
        }
        schedule
    }

    /// When the next packet is due.
    #[inline]
    pub fn due_ns(&self) -> u64 {
        self.due_ns as u64
    }

    /// Goes on to the packet after that.
    #[inline]
    pub fn advance(&mut self, random: &mut Random) {
        match self.arrival {
            Arrival::LineRate => {}
            Arrival::Paced { .. } => self.due_ns += self.gap_ns,
            Arrival::Bursts { burst, .. } => {
                self.in_burst -= 1;
                if self.in_burst == 0 {
                    self.in_burst = burst;
                    self.due_ns += self.gap_ns * f64::from(burst);
                }
            }
            Arrival::Poisson { .. } => self.due_ns -= random.unit().ln() * self.gap_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(arrival: Arrival, count: usize) -> Vec<u64> {
        let mut random = Random::new(7);
        let mut schedule = Schedule::new(arrival, &mut random);
        let next = |_| {
            let due = schedule.due_ns();
            schedule.advance(&mut random);
            due
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn paced_packets_come_at_equal_distances_and_do_not_drift() {
        let paced = times(Arrival::Paced { rate_pps: 3e6 }, 3_000_001);
        assert_eq!(paced[..4], [0, 333, 666, 1000]);
        assert!(paced[3_000_000].abs_diff(1_000_000_000) < 10, "{}", paced[3_000_000]);
    }

    #[test]
    fn bursts_come_whole_and_keep_the_average_rate() {
        let bursts = times(Arrival::Bursts { rate_pps: 1e6, burst: 3 }, 7);
        assert_eq!(bursts, [0, 0, 0, 3000, 3000, 3000, 6000]);
        assert_eq!(times(Arrival::LineRate, 3), [0; 3]);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_their_rate() {
        let all = times(Arrival::Poisson { rate_pps: 1e6 }, 200_001);
        let mean = all[200_000] as f64 / 200_001.0;
        assert!((mean / 1000.0 - 1.0).abs() < 0.02, "{mean}");
        // An exponential gap exceeds its mean with probability 1/e.
        let long = all.windows(2).filter(|pair| pair[1] - pair[0] > 1000).count() as f64 / 200_000.0;
        assert!((long - 0.3679).abs() < 0.01, "{long}");
    }
}
