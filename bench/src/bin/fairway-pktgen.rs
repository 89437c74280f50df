//! `fairway-pktgen`: see docs/pktgen.md.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairway_bench::pktgen::cli::main()
}
