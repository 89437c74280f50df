//! What became of the last request for a restart: `<run-dir>/restart`, for `fairway restart` to show.

use super::handover;
use crate::clock::monotonic_ns;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const FILE: &str = "restart";

/// How a restart went, or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has not ended.
    UnderWay,
    /// The new image runs with the former one's ports.
    HandedOver,
    /// The new image runs, but had to open its ports anew.
    Reopened,
    /// Nothing was stopped.
    Refused,
    /// The former image had stopped, could not be replaced, and goes on.
    Failed,
}

/// The last restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestartReport {
    /// Counts requests, from one on.
    pub attempt: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Why not better.
    pub reason: Option<String>,
    /// Version of the program that runs.
    pub version: String,
    /// Milliseconds for which no packet was forwarded.
    pub gap_ms: Option<f64>,
    /// Starts counted when it was over (see the counters file).
    pub starts: u64,
    /// When the workers stopped, by `CLOCK_MONOTONIC`.
    stopped_ns: Option<u64>,
}

impl RestartReport {
    /// The last one, if there was any.
    pub fn read(run_dir: &Path) -> Option<RestartReport> {
        serde_json::from_slice(&std::fs::read(run_dir.join(FILE)).ok()?).ok()
    }

    /// Begins one.
    pub(super) fn begin(run_dir: &Path, starts: u64) -> RestartReport {
        let attempt = RestartReport::read(run_dir).map_or(0, |last| last.attempt) + 1;
        let report = RestartReport {
            attempt,
            outcome: Outcome::UnderWay,
            reason: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gap_ms: None,
            starts,
            stopped_ns: None,
        };
        report.write(run_dir);
        report
    }

    /// Notes when the workers stopped.
    pub(super) fn stopped(&mut self, run_dir: &Path, stopped_ns: u64) {
        self.stopped_ns = Some(stopped_ns);
        self.write(run_dir);
    }

    /// Notes that packets are forwarded again as of now.
    pub(super) fn forwarding_again(mut self) -> RestartReport {
        self.gap_ms = self.stopped_ns.map(|from| monotonic_ns().saturating_sub(from) as f64 / 1e6);
        self
    }

    /// Ends it.
    pub(super) fn end(mut self, run_dir: &Path, outcome: Outcome, reason: Option<String>, starts: u64) {
        if self.gap_ms.is_none() {
            self = self.forwarding_again();
        }
        let gap_ms = self.gap_ms;
        match (outcome, &reason) {
            (Outcome::HandedOver, _) => tracing::info!(gap_ms, "restarted in place"),
            (_, reason) => tracing::warn!(?outcome, reason, gap_ms, "restart"),
        }
        (self.outcome, self.reason, self.starts) = (outcome, reason, starts);
        self.version = env!("CARGO_PKG_VERSION").to_owned();
        self.write(run_dir);
    }

    /// Ends the one that a former image began, if it left one: this image has opened its ports itself.
    pub(super) fn end_reopened(run_dir: &Path, starts: u64) {
        let Some(report) = RestartReport::read(run_dir) else { return };
        if report.outcome == Outcome::UnderWay {
            let unknown = || "the image that was to take over did not come up".to_owned();
            let reason = handover::why_anew().unwrap_or_else(unknown);
            report.end(run_dir, Outcome::Reopened, Some(reason), starts);
        }
    }

    fn write(&self, run_dir: &Path) {
        let new = run_dir.join(format!("{FILE}.new"));
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|bytes| std::fs::write(&new, bytes))
            .and_then(|()| std::fs::rename(&new, run_dir.join(FILE)));
        if let Err(error) = written {
            tracing::warn!(%error, "the outcome of the restart cannot be written to the run folder");
        }
    }
}
