//! The `fairway` command line.

mod demo;
mod flows;
mod query;
mod restart;
mod table;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Fairway, a Kubernetes node gateway on AF_XDP.
#[derive(Parser, Debug)]
#[command(name = "fairway", version)]
struct Cli {
    /// Run directory of the node's fairway-control and fairway-dataplane.
    #[arg(long, global = true, default_value = "/run/fairway")]
    run_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show the main job: two nodes, real pods, a Service over VXLAN.
    Demo(demo::DemoArgs),
    /// Restart the dataplane in place with the program now at its path, connections and packets kept.
    Restart(restart::RestartArgs),
    /// Show, count or delete the connections that the engine tracks.
    Flows(flows::FlowsArgs),
    #[command(flatten)]
    Query(query::Query),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Restart(args) => restart::run(args, &cli.run_dir),
        Command::Flows(args) => flows::run(args, &cli.run_dir),
        Command::Query(query) => query::run(query, &cli.run_dir),
    }
}
