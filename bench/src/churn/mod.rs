//! The cost of change: clusters of a given size, what a full sync and a single change cost in control, and what
//! both cost the workers that read the tables meanwhile.

pub mod cluster;
pub mod control;
pub mod folder;
pub mod maglev;
pub mod slowdown;
pub mod witness;

use fairway_tests::report::Figure;
use std::time::Duration;

/// What a part of the benchmark could not do.
#[derive(Debug, thiserror::Error)]
pub enum ChurnError {
    /// The system refuses something.
    #[error("can't {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A generated object that control does not accept, or that cannot be written down.
    #[error("the generated {object} is refused: {reason}")]
    Object {
        /// Which.
        object: String,
        /// Why.
        reason: String,
    },
    /// The tables.
    #[error(transparent)]
    Tables(#[from] fairway_tables::OpenError),
    /// Something was expected to happen and did not.
    #[error("{what} did not happen within {waited_s} s")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited_s: u64,
    },
    /// A figure that contradicts what control promises.
    #[error("{0}")]
    Broken(String),
}

impl ChurnError {
    /// An I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ChurnError {
        let what = what.into();
        move |source| ChurnError::Io { what, source }
    }
}

/// Times of one kind of change.
#[derive(Default)]
pub struct Times(Vec<f64>);

impl Times {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.add_us(time.as_secs_f64() * 1e6);
    }

    /// Adds one in microseconds.
    pub fn add_us(&mut self, time_us: f64) {
        self.0.push(time_us);
    }

    /// Adds all of another's.
    pub fn extend(&mut self, other: &Times) {
        self.0.extend(&other.0);
    }

    /// The time in microseconds that this share of all does not exceed; 0 if there are none.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number, median, 99th percentile and maximum as figures.
    pub fn figures(&self, case: &str, params: &serde_json::Value) -> Vec<Figure> {
        [("p50_us", 0.5), ("p99_us", 0.99), ("max_us", 1.0)]
            .map(|(metric, share)| Figure::new(case, params.clone(), metric, self.quantile_us(share), "us"))
            .into_iter()
            .chain([Figure::new(case, params.clone(), "changes", self.len() as f64, "1")])
            .collect()
    }
}

/// A small generator of repeatable choices (xorshift64*).
pub struct Choices(u64);

impl Choices {
    /// Choices that a seed determines.
    pub fn new(seed: u64) -> Choices {
        Choices(seed | 1)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128) >> 64) as usize
    }
}

/// A line of `/proc/self/status` (or of another process) in MiB; 0 if there is none.
pub fn status_mib(pid: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
