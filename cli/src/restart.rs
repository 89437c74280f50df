//! `fairway restart`: has the running engine replace itself by the program at its path, and waits for it.

// UNSAFETY: kill(2) takes two integers.
#![allow(unsafe_code)]

use clap::Args;
use fairway_dataplane::engine::{Outcome, RestartReport};
use fairway_tables::OpenError;
use fairway_tables::stats::StatsReader;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often to look whether it is over.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Args, Clone, Debug)]
pub(crate) struct RestartArgs {
    /// Longest time to wait for the new program, in milliseconds
    #[arg(long, default_value_t = 30_000)]
    timeout_ms: u64,
}

#[derive(Debug, thiserror::Error)]
enum RestartError {
    #[error(transparent)]
    Counters(#[from] OpenError),
    #[error(
        "no dataplane runs on this run directory; start fairway-dataplane, or name another with --run-dir"
    )]
    NotRunning,
    #[error(
        "the dataplane that runs is of a version that cannot be restarted in place; stop it and start the new one"
    )]
    TooOld,
    #[error("process {pid} here is not the dataplane; run this in its container (its PID namespace)")]
    OtherProcess { pid: u32 },
    #[error("asking process {pid} to restart: {source}; it takes the same user, or root")]
    Signal { pid: u32, source: std::io::Error },
    #[error("refused, and nothing was stopped: {0}")]
    Refused(String),
    #[error("the old program goes on, after a gap of {gap_ms:.1} ms: {reason}")]
    Failed { gap_ms: f64, reason: String },
    #[error("the dataplane ended and did not come back within {0} ms; its log says why")]
    Gone(u64),
    #[error("not over after {0} ms; the dataplane's log says how far it is")]
    TimedOut(u64),
}

/// Restarts, and says how it went.
pub(crate) fn run(args: &RestartArgs, run_dir: &Path) -> ExitCode {
    match restart(args, run_dir) {
        Ok(report) => {
            let RestartReport { version, starts, reason, gap_ms, .. } = report;
            let how = match reason {
                None => "restarted in place".to_owned(),
                Some(reason) => format!("restarted with ports opened anew ({reason})"),
            };
            let gap_ms = gap_ms.unwrap_or_default();
            println!("{how}: version {version}, start {starts}, gap {gap_ms:.1} ms");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fairway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn restart(args: &RestartArgs, run_dir: &Path) -> Result<RestartReport, RestartError> {
    let counters = StatsReader::open(run_dir)?;
    let snapshot = counters.snapshot();
    if !snapshot.alive {
        return Err(RestartError::NotRunning);
    }
    if snapshot.starts == 0 {
        return Err(RestartError::TooOld);
    }
    let pid = snapshot.pid;
    if start_time(pid) != Some(snapshot.start_time_ticks) {
        return Err(RestartError::OtherProcess { pid });
    }
    let before = RestartReport::read(run_dir).map_or(0, |report| report.attempt);
    // SAFETY: two integers; the pid is one process's, which was just seen to be the dataplane.
    if unsafe { libc::kill(pid as libc::pid_t, libc::SIGHUP) } != 0 {
        return Err(RestartError::Signal { pid, source: std::io::Error::last_os_error() });
    }
    let until = Instant::now() + Duration::from_millis(args.timeout_ms);
    loop {
        let report = RestartReport::read(run_dir).filter(|report| report.attempt > before);
        if let Some(report) = report.filter(|report| report.outcome != Outcome::UnderWay) {
            let gap_ms = report.gap_ms.unwrap_or_default();
            let reason = report.reason.clone().unwrap_or_default();
            return match report.outcome {
                Outcome::Refused => Err(RestartError::Refused(reason)),
                Outcome::Failed => Err(RestartError::Failed { gap_ms, reason }),
                _ => Ok(report),
            };
        }
        if Instant::now() >= until {
            let alive = StatsReader::open(run_dir).is_ok_and(|counters| counters.snapshot().alive);
            let error = if alive { RestartError::TimedOut } else { RestartError::Gone };
            return Err(error(args.timeout_ms));
        }
        std::thread::sleep(LOOK);
    }
}

/// When a process started, in clock ticks since boot (proc(5), `stat` field 22).
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}
