//! `fairway-dataplane`: the engine's process.

use clap::Parser;
use fairway_dataplane::clock;
use fairway_dataplane::conntrack::Timeouts;
use fairway_dataplane::engine::{self, Config, Handover, Process, Program, parse_cores};
use fairway_dataplane::worker::PollMode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// Fairway's forwarding engine. Serves the ports that fairway-control lists in the run folder's tables.
#[derive(Parser)]
#[command(name = "fairway-dataplane", version)]
struct Args {
    /// Folder shared with fairway-control: tables, connections, counters
    #[arg(long, default_value = "/run/fairway")]
    run_dir: PathBuf,
    /// Number of workers, on the highest-numbered cores
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Cores to pin workers to, one worker each, such as 2,3 or 2-5; instead of --workers
    #[arg(long)]
    cores: Option<String>,
    /// When workers may sleep: adaptive spins for --spin-us and then sleeps; busy never sleeps
    #[arg(long, value_enum, default_value_t = Poll::Adaptive)]
    poll: Poll,
    /// Idle microseconds before an adaptive worker sleeps
    #[arg(long, default_value_t = 50)]
    spin_us: u32,
    /// Frames of 2 KiB for packets; each costs 128 bytes more for every port (docs/af_xdp.md)
    #[arg(long, default_value_t = 16_384)]
    frames: u32,
    /// Use 4 KiB pages for packets even where larger ones are to be had
    #[arg(long)]
    no_huge_pages: bool,
    /// Flows per worker at best speed (128 bytes each)
    #[arg(long, default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    flows: u32,
    /// Connections that can be tracked (160 bytes each)
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(64..=67_108_864))]
    connections: u32,
    /// How long connections last without a packet, as NAME=SECONDS; may be repeated (docs/conntrack.md has the names)
    #[arg(long)]
    conntrack_timeout: Vec<String>,
    /// Whether TCP is tracked liberally: false drops what is outside of its connection's windows (docs/conntrack.md)
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    conntrack_tcp_liberal: bool,
    /// Say whether this program could take over from a running one with these options, and end
    #[arg(long, hide = true)]
    check_restart: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Poll {
    Adaptive,
    Busy,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("FAIRWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let check = args.check_restart;
    let config = config(args)?;
    if check {
        println!("{}", serde_json::to_string(&engine::can_take_over(&config)?)?);
        return Ok(());
    }
    let program = Program::of_this_process()?;
    let left = match Handover::receive() {
        Ok(left) => left,
        Err(reason) => return Err(engine::begin_anew(&program, &reason).into()),
    };
    if left.is_none() {
        // Takes 20 ms of doing nothing, which others need not wait for.
        std::thread::spawn(clock::tsc_per_ns);
    }
    let process = Process { stop: Arc::default(), restart: Arc::default(), program };
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, process.stop.clone())?;
    }
    signal_hook::flag::register(SIGHUP, process.restart.clone())?;
    engine::hold_back_hangup(false);
    engine::run(&config, &process, left)?;
    Ok(())
}

fn config(args: Args) -> Result<Config, Box<dyn std::error::Error>> {
    let mut timeouts = Timeouts::default();
    args.conntrack_timeout.iter().try_for_each(|text| timeouts.set(text))?;
    Ok(Config {
        run_dir: args.run_dir,
        cores: args.cores.as_deref().map(parse_cores).transpose()?.unwrap_or_default(),
        workers: args.workers,
        poll: match args.poll {
            Poll::Busy => PollMode::Busy,
            Poll::Adaptive => PollMode::Adaptive { spin_us: args.spin_us },
        },
        frames: args.frames,
        huge_pages: !args.no_huge_pages,
        flows: args.flows as usize,
        connections: args.connections,
        timeouts,
        tcp_liberal: args.conntrack_tcp_liberal,
    })
}
