//! `fairway flows`: the connections that the engine tracks, read from its file whether it runs or not; and
//! `fairway flows delete`, which asks the engine.

mod filter;
mod names;
mod show;

use clap::{Args, Subcommand, ValueEnum};
use fairway_control::api::client::ClientError;
use fairway_dataplane::Now;
use fairway_dataplane::conntrack::{Connection, ConntrackError, ConntrackReader};
use fairway_dataplane::engine::requests::{self, Answer, BATCH, Request, RequestError};
use filter::{Filter, FilterArgs};
use names::Names;
use std::path::Path;
use std::process::ExitCode;

/// How connections are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// Columns for people.
    Table,
    /// More columns: names, age, the place in the table.
    Wide,
    /// For programs.
    Json,
}

/// What connections are counted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum CountBy {
    /// Pods of this node: connections that each began, and those that it serves.
    Pod,
    /// The service that a connection was begun to.
    Service,
    /// Protocol and state.
    State,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct FlowsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Show at most so many
    #[arg(long)]
    limit: Option<usize>,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Count them instead of listing them
    #[arg(long, value_enum, conflicts_with = "limit")]
    count_by: Option<CountBy>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Have the engine forget connections; the next packet of each begins a new one
    Delete(DeleteArgs),
}

#[derive(Args, Clone, Debug)]
struct DeleteArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Delete all connections: needed where nothing says which
    #[arg(long)]
    all: bool,
}

/// Why connections were not shown or deleted.
#[derive(Debug, thiserror::Error)]
enum FlowsError {
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error("names are needed for --pod and --service: {0}")]
    Names(#[from] ClientError),
    #[error("no pod of this node is called {0}; `fairway endpoints` lists them")]
    NoSuchPod(String),
    #[error("no service is called {0}; `fairway services` lists them")]
    NoSuchService(String),
    #[error(
        "nothing says which connections to delete; give --pod, --service, --ip, --port, --proto or --state, or --all"
    )]
    DeleteWhat,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("cannot write the answer: {0}")]
    Json(#[from] serde_json::Error),
}

/// Lists, counts or deletes connections.
pub(crate) fn run(args: &FlowsArgs, run_dir: &Path) -> ExitCode {
    let result = match &args.command {
        Some(Command::Delete(delete)) => self::delete(delete, run_dir),
        None => list(args, run_dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list(args: &FlowsArgs, run_dir: &Path) -> Result<(), FlowsError> {
    let (names, filter) = resolve(&args.filter, run_dir)?;
    let table = ConntrackReader::open(&run_dir.join("conntrack"))?;
    let now = Now::read();
    let matching = table.iter().filter(|connection| filter.matches(connection));
    if let Some(count_by) = args.count_by {
        let counts = show::count(matching, count_by, &names);
        return show::counts(&counts, count_by, args.output);
    }
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut shown = Vec::new();
    let mut total = 0;
    for connection in matching {
        total += 1;
        if total <= limit {
            shown.push(show::Flow::new(&connection, &names, now));
        }
    }
    show::flows(&shown, args.output)?;
    if total > shown.len() {
        eprintln!("{} of {total} connections shown; --limit shows more", shown.len());
    }
    Ok(())
}

fn delete(args: &DeleteArgs, run_dir: &Path) -> Result<(), FlowsError> {
    if args.filter.is_empty() && !args.all {
        return Err(FlowsError::DeleteWhat);
    }
    let (_, filter) = resolve(&args.filter, run_dir)?;
    let table = ConntrackReader::open(&run_dir.join("conntrack"))?;
    let matching: Vec<Connection> = table.iter().filter(|connection| filter.matches(connection)).collect();
    let mut deleted = 0;
    // Asked even if there are none, so that a dead engine is noticed.
    let batches = matching.chunks(BATCH).chain(matching.is_empty().then_some(&[][..]));
    for batch in batches {
        let request = Request::delete(batch.iter().map(|connection| connection.conn));
        match requests::ask(run_dir, &request)? {
            Answer::Deleted(count) => deleted += count,
            Answer::Refused(why) => return Err(RequestError::Misunderstood(why).into()),
        }
    }
    println!("{deleted} connections deleted");
    Ok(())
}

/// Names, as far as control tells them, and the filter in terms of addresses.
fn resolve(args: &FilterArgs, run_dir: &Path) -> Result<(Names, Filter), FlowsError> {
    let names = match Names::ask(run_dir) {
        Ok(names) => names,
        Err(error) if args.needs_names() => return Err(error.into()),
        Err(_) => Names::default(),
    };
    let filter = Filter::new(args, &names)?;
    Ok((names, filter))
}
