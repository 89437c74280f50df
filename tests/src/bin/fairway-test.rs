//! `fairway-test`: what the end-to-end tests check, for people to look at.

use clap::{Parser, Subcommand};
use fairway_tests::matrix::{self, Mode};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "End-to-end checks of Fairway in network namespaces, as root")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Walk every path in every mode and print a table of ticks.
    Matrix,
}

fn main() -> ExitCode {
    let Command::Matrix = Cli::parse().command;
    match matrix::walk(&Mode::ALL) {
        Ok(results) => {
            print!("{}", matrix::table(&results));
            let is_right = |outcome: &matrix::Outcome| outcome.result.is_ok();
            let all = results.iter().all(|(_, outcomes)| outcomes.iter().all(is_right));
            if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("fairway-test: {error}");
            ExitCode::FAILURE
        }
    }
}
