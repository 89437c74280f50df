//! `fairway demo`: the main job, shown step by step.

use std::process::ExitCode;

/// Options of `fairway demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {}

/// Runs the demo.
pub(crate) fn run(_args: &DemoArgs) -> ExitCode {
    eprintln!("fairway: the demo is not part of this build");
    ExitCode::FAILURE
}
