//! What the kill tests share: moments to strike at, and figures of many strikes.

use std::time::Duration;

/// Spreads the moments; the same in every run, as their effect is random enough.
pub(crate) struct Spread(pub(crate) u64);

impl Spread {
    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        limit.mul_f64((self.0 >> 40) as f64 / (1u64 << 24) as f64)
    }
}

/// The value below which `percent` of 100 values are; 0 if there are none.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// How many kills an environment variable asks for.
pub(crate) fn kills(variable: &str, otherwise: u16) -> u16 {
    std::env::var(variable)
        .map_or(otherwise, |n| n.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}
