//! `fairway demo --memory`: the demo's story without root. The engines, the control process's core, the
//! tables and the manifests are the real ones; queues of the memory driver stand for AF_XDP, smoltcp stacks
//! for pods, and kernel facts are told instead of read. Everything is recorded in a pcapng file.
//!
//! | module | what lives there |
//! |---|---|
//! | [`scenario`] | the topology and the steps |
//! | [`simulation`] | the thread that moves frames between stacks, engines and the wire |
//! | [`node`], [`engine`], [`feed`] | a node: control's core, a worker, the manifests folder |
//! | [`stack`], [`http`] | simulated pods, and what they say to each other |
//! | [`capture`], [`error`] | the recording; what can go wrong |

mod capture;
mod engine;
mod error;
mod feed;
mod http;
mod node;
mod scenario;
mod simulation;
mod stack;

use super::figures::Figures;
use super::screen::Screen;
use error::{MemoryError, Result};
use fairway_tests::{Error, sys};
use scenario::Scenario;
use simulation::Finished;
use std::path::Path;
use std::process::ExitCode;

/// Where the capture goes unless told otherwise.
pub(super) const DEFAULT_PCAP: &str = "fairway-memory.pcapng";

/// Runs the demo over the memory driver and records it in `pcap`.
pub(super) fn run(pcap: &Path) -> ExitCode {
    sys::catch_termination();
    match show(pcap) {
        Ok(true) => ExitCode::SUCCESS,
        // The step itself has said what failed.
        Ok(false) => ExitCode::FAILURE,
        Err(MemoryError::Testbed(Error::Interrupted)) => ExitCode::from(super::EXIT_INTERRUPTED),
        Err(error) => {
            eprintln!("fairway demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every step went well.
fn show(pcap: &Path) -> Result<bool> {
    let screen = Screen::new();
    let system = |source| MemoryError::System { what: "making a temporary folder", source };
    // Deleted at the end, however that comes.
    let dir = tempfile::Builder::new().prefix("fairway-memory-").tempdir().map_err(system)?;
    let mut scenario = Scenario::start(dir.path(), pcap, screen)?;
    let outcome = scenario.steps();
    screen.heading("Taking down");
    let mut left = None;
    let ended = screen.step("orderly shutdown", || {
        let Finished { counters, capture, outcome } = scenario.finish()?;
        left = Some((counters, capture));
        outcome?;
        Ok::<_, MemoryError>(
            "both engines: every frame home (I1), every packet accounted for (I2)".to_owned(),
        )
    });
    if let Some((counters, capture)) = left {
        screen.heading("Counters");
        screen.line(&Figures::of(counters).text());
        screen.heading("Capture");
        screen.line(&format!("  {capture}"));
    }
    match outcome.and(ended) {
        Err(error @ MemoryError::Testbed(Error::Interrupted)) => Err(error),
        outcome => Ok(outcome.is_ok()),
    }
}
