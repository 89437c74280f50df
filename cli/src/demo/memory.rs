//! `fairway demo --memory`: the same engine over the memory driver, without root.

use std::process::ExitCode;

/// Runs the demo over the memory driver.
pub(super) fn run() -> ExitCode {
    eprintln!("fairway demo: this build holds no memory driver demo; run `fairway demo` as root");
    ExitCode::FAILURE
}
