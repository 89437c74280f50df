//! The command line of `fairway-pktgen`.

use crate::pktgen::cost::{self, CostArgs};
use crate::pktgen::device::DeviceError;
use crate::pktgen::handoff::{self, HandoffArgs};
use crate::pktgen::idle::{self, IdleArgs};
use crate::pktgen::page::{self, ReportArgs};
use crate::pktgen::peers::{self, PeersArgs};
use crate::pktgen::rfc2544::command::{self as rfc2544, Rfc2544Args};
use crate::pktgen::run::{self, RunArgs};
use crate::pktgen::scenario::ScenarioError;
use crate::pktgen::slowdown::{self, ChurnArgs};
use crate::pktgen::targets::{self, TargetsArgs};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Sends packets through the engine or a peer, receives them, and measures rate, loss, order, latency and cost.
#[derive(Parser)]
#[command(name = "fairway-pktgen", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario once
    Run(RunArgs),
    /// Throughput, latency, frame loss and back-to-back frames by size (RFC 2544, RFC 9004)
    Rfc2544(Rfc2544Args),
    /// Compare Fairway with the kernel, testpmd and a bare wire, interleaved
    Peers(PeersArgs),
    /// Nanoseconds per packet in the engine alone, by flows, Services and cores
    Cost(CostArgs),
    /// What changes of tables cost while packets flow
    Churn(ChurnArgs),
    /// What a packet costs more whose output port belongs to another worker
    Handoff(HandoffArgs),
    /// What adaptive polling takes when idle, and adds to the first packet after that (root)
    Idle(IdleArgs),
    /// Say which targets the figures of a run meet
    Targets(TargetsArgs),
    /// Make one HTML page of collected figures
    Report(ReportArgs),
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The scenario file.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The device under test.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Figures or the testbed.
    #[error(transparent)]
    Testbed(#[from] fairway_tests::Error),
    /// Arguments that make no sense.
    #[error("{0}")]
    Usage(&'static str),
    /// JSON output.
    #[error("write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs the command; errors go to standard error.
pub fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Rfc2544(args) => rfc2544::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Cost(args) => cost::run(&args),
        Command::Churn(args) => slowdown::run(&args),
        Command::Handoff(args) => handoff::run(&args),
        Command::Idle(args) => idle::run(&args),
        Command::Targets(args) => targets::run(&args),
        Command::Report(args) => page::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway-pktgen: {error}");
            ExitCode::FAILURE
        }
    }
}
