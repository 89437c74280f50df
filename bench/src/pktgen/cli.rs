//! The command line of `fairway-pktgen`.

use crate::pktgen::device::DeviceError;
use crate::pktgen::run::{self, RunArgs};
use crate::pktgen::scenario::ScenarioError;
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
    /// JSON output.
    #[error("write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs the command; errors go to standard error.
pub fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway-pktgen: {error}");
            ExitCode::FAILURE
        }
    }
}
