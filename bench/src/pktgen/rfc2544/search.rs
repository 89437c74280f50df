//! The search for the highest rate that a device carries (RFC 2544 section 26.1), and for the longest burst
//! (RFC 9004 section 6.2), as functions of a measurement: without packets, so that they can be tested against devices
//! whose answer is known.

/// What a trial at some rate showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Lost packets as a share of those sent.
    pub loss: f64,
    /// Whether the rate was really offered; if not, the trial fails whatever was lost.
    pub offered: bool,
}

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Lowest rate of interest.
    pub min: f64,
    /// Highest rate that can be offered.
    pub max: f64,
    /// The result is exact to this share of itself.
    pub precision: f64,
    /// Highest share of loss that passes; 0 in RFC 2544.
    pub loss_limit: f64,
    /// A rate fails when so many trials in a row have failed: one passing suffices, as a disturbance by
    /// other users of the machine only ever adds loss.
    pub attempts: u32,
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Highest rate that passed; 0 if not even the lowest did.
    pub rate: f64,
    /// Lowest rate that failed, if any did.
    pub failed_at: Option<f64>,
    /// Trials made.
    pub trials: u32,
}

impl Search {
    /// Finds the highest passing rate between `min` and `max`, for a device that carries every rate below one
    /// that it carries. Tries `max` first, then `min`, then halves the (geometric) interval between the highest rate that
    /// passed and the lowest that failed.
    pub fn highest<E>(&self, mut measure: impl FnMut(f64) -> Result<Verdict, E>) -> Result<Found, E> {
        let mut trials = 0;
        let mut passes = |rate: f64| -> Result<bool, E> {
            for _ in 0..self.attempts.max(1) {
                trials += 1;
                let verdict = measure(rate)?;
                if verdict.offered && verdict.loss <= self.loss_limit {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let (mut low, mut high) = (self.min, self.max);
        if passes(high)? {
            return Ok(Found { rate: high, failed_at: None, trials });
        }
        if low >= high || !passes(low)? {
            return Ok(Found { rate: 0.0, failed_at: Some(low.min(high)), trials });
        }
        while high / low > 1.0 + self.precision.max(1e-6) {
            let middle = (low * high).sqrt();
            if passes(middle)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(Found { rate: low, failed_at: Some(high), trials })
    }

    /// The same over whole numbers, such as packets in a burst: exact, without a precision.
    pub fn longest<E>(min: u32, max: u32, mut passes: impl FnMut(u32) -> Result<bool, E>) -> Result<u32, E> {
        if passes(max)? {
            return Ok(max);
        }
        if min >= max || !passes(min)? {
            return Ok(0);
        }
        let (mut low, mut high) = (min, max);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if passes(middle)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
