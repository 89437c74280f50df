//! `fairway demo`: the main job, shown step by step. Here are its options and how it ends; [`scenario`] has
//! the steps, [`edits`] those that change the cluster while it runs, [`screen`] what the terminal shows,
//! [`figures`] the closing table, [`memory`] the variant without root.

mod edits;
mod figures;
mod memory;
mod scenario;
mod screen;

use fairway_tests::{Error, Options, Testbed, kept, sys};
use scenario::Scenario;
use screen::Screen;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code after SIGINT, as a shell would give it.
const EXIT_INTERRUPTED: u8 = 130;

/// Options of `fairway demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// Run without root: the same engine over the memory driver, with simulated pods
    #[arg(long, conflicts_with_all = ["keep", "down"])]
    memory: bool,
    /// Where --memory records every frame, for Wireshark
    #[arg(long, value_name = "FILE", default_value = memory::DEFAULT_PCAP, requires = "memory")]
    pcap: PathBuf,
    /// Leave everything running at the end, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Take down a demo that was left running with --keep
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    if args.memory {
        memory::run(&args.pcap)
    } else if args.down {
        take_down()
    } else {
        show(args.keep)
    }
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("fairway demo: {error}");
    ExitCode::FAILURE
}

fn take_down() -> ExitCode {
    let uid = sys::effective_uid();
    if uid != 0 {
        return fail(&Error::NotRoot { uid });
    }
    match kept::take_down() {
        Ok(names) => {
            println!("demo taken down: {} namespaces deleted, their processes stopped", names.len());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn show(keep: bool) -> ExitCode {
    let screen = Screen::new();
    let testbed = match Testbed::new(Options { keep, ..Options::default() }) {
        Ok(testbed) => testbed,
        Err(error) => return fail(&error),
    };
    let mut scenario = match Scenario::build(testbed, screen) {
        Ok(scenario) => scenario,
        Err(error) => return fail(&error),
    };
    let outcome = scenario.steps();
    let (mut testbed, screen) = scenario.into_parts();
    match outcome {
        Ok(()) if keep => {
            screen.how_to_look_around(&testbed);
            testbed.leave_running();
            ExitCode::SUCCESS
        }
        Ok(()) => match screen.take_down(testbed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Err(Error::Interrupted) => {
            eprintln!("\ninterrupted; taking everything down");
            drop(testbed);
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(_) => {
            // The step itself has said what failed.
            eprintln!("\nthe end of the logs:\n{}", testbed.log_tails());
            if keep {
                screen.how_to_look_around(&testbed);
                testbed.leave_running();
            }
            ExitCode::FAILURE
        }
    }
}
