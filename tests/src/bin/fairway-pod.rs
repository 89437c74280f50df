//! `fairway-pod`: server and clients that run inside the pods of the testbed.

use clap::{Parser, Subcommand};
use fairway_tests::pod::{client, server, udp};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Server and clients for the pods of Fairway's testbed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP (`/` gives the name, `/bytes/N` gives N bytes) and UDP echo.
    Serve {
        /// Address and port to listen on.
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// The name that `/` answers with.
        #[arg(long)]
        name: String,
    },
    /// Make HTTP requests and print what came of them as JSON.
    Get {
        /// `http://address:port/path`.
        url: String,
        /// Number of requests.
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// Go on for this long, whatever the count.
        #[arg(long)]
        duration_ms: Option<u64>,
        /// Requests under way at once.
        #[arg(long, default_value_t = 1)]
        concurrency: u64,
        /// Open a new connection for every request.
        #[arg(long)]
        no_keepalive: bool,
        /// Compare the bodies with the pattern of `/bytes/N`.
        #[arg(long)]
        verify_bytes: bool,
        /// Longest time for one request.
        #[arg(long, default_value_t = 10_000)]
        timeout_ms: u64,
    },
    /// Send UDP datagrams to an echo server and print what came of them as JSON.
    UdpPing {
        /// Address and port of the server.
        target: SocketAddr,
        /// Number of datagrams.
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// Payload of each.
        #[arg(long, default_value_t = 64)]
        size_bytes: usize,
        /// Longest wait for one echo.
        #[arg(long, default_value_t = 1000)]
        timeout_ms: u64,
    },
}

async fn run(command: Command) -> Result<String, String> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| e.to_string());
    match command {
        Command::Serve { listen, name } => {
            server::serve(listen, name).await.map_err(|e| format!("serve on {listen}: {e}"))?;
            Ok(String::new())
        }
        Command::Get { url, count, duration_ms, concurrency, no_keepalive, verify_bytes, timeout_ms } => {
            let duration = duration_ms.map(Duration::from_millis);
            let count = if duration.is_some() { u64::MAX } else { count };
            let timeout = Duration::from_millis(timeout_ms);
            let keepalive = !no_keepalive;
            let plan = client::Plan { url, count, duration, concurrency, keepalive, verify_bytes, timeout };
            json(serde_json::to_string(&client::run(plan).await?))
        }
        Command::UdpPing { target, count, size_bytes, timeout_ms } => {
            let summary = udp::ping(target, count, size_bytes, Duration::from_millis(timeout_ms)).await;
            json(serde_json::to_string(&summary.map_err(|e| format!("UDP to {target}: {e}"))?))
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(run(cli.command)));
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fairway-pod: {error}");
            ExitCode::FAILURE
        }
    }
}
