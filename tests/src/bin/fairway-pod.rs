//! `fairway-pod`: server and clients that run inside the pods of the testbed.

use clap::{Parser, Subcommand};
use fairway_tests::pod::{client, probe, server, stream, udp, witness};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
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
        /// Address and port on which TCP streams are sent back.
        #[arg(long)]
        streams: Option<SocketAddr>,
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
    /// Keep many slow TCP streams to a server open at once, say so when all are, and print as the last line
    /// what came of them as JSON.
    Streams {
        /// Address and port of the server.
        target: SocketAddr,
        /// Number of connections.
        #[arg(long, default_value_t = 200)]
        count: u64,
        /// Records that each sends.
        #[arg(long, default_value_t = 50)]
        records: u64,
        /// Size of a record.
        #[arg(long, default_value_t = 1000)]
        record_bytes: usize,
        /// Time from one record to the next.
        #[arg(long, default_value_t = 100)]
        interval_ms: u64,
        /// Longest time for all to be opened, and then for all to end.
        #[arg(long, default_value_t = 30_000)]
        timeout_ms: u64,
    },
    /// Send numbered UDP datagrams at an even rate to an echo server and print what came back as JSON.
    Probe {
        /// Address and port of the server.
        target: SocketAddr,
        /// Datagrams a second.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate_pps: u32,
        /// How long.
        #[arg(long, default_value_t = 1000)]
        duration_ms: u64,
    },
    /// Tell every client, over TCP, UDP and SCTP, its own address and the client's.
    Witness {
        /// Addresses and ports to listen on.
        #[arg(long, required = true, value_delimiter = ',')]
        listen: Vec<SocketAddr>,
    },
    /// Ask addresses behind which are witnesses who answers, and print what came of it as JSON.
    Ask {
        /// File with a JSON list of `{"transport": "tcp", "target": "10.96.0.10:80"}`.
        questions: PathBuf,
        /// Source ports are counted up from this one.
        #[arg(long)]
        first_port: u16,
        /// Address of its own from which to ask; one of each family at most.
        #[arg(long)]
        from: Vec<IpAddr>,
    },
}

async fn run(command: Command) -> Result<String, String> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| e.to_string());
    match command {
        Command::Serve { listen, streams, name } => {
            if let Some(address) = streams {
                let listener = tokio::net::TcpListener::bind(address);
                let listener = listener.await.map_err(|e| format!("streams on {address}: {e}"))?;
                tokio::spawn(stream::serve(listener, name.as_str().into()));
            }
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
        Command::Streams { target, count, records, record_bytes, interval_ms, timeout_ms } => {
            let (interval, timeout) = (Duration::from_millis(interval_ms), Duration::from_millis(timeout_ms));
            let plan = stream::Plan { target, count, records, record_bytes, interval, timeout };
            json(serde_json::to_string(&stream::run(plan, || println!("{}", stream::ALL_OPEN)).await?))
        }
        Command::Probe { target, rate_pps, duration_ms } => {
            let summary = probe::run(target, rate_pps, Duration::from_millis(duration_ms)).await;
            json(serde_json::to_string(&summary.map_err(|e| format!("probe of {target}: {e}"))?))
        }
        Command::Witness { listen } => {
            witness::serve(&listen).await.map_err(|e| format!("listen on {listen:?}: {e}"))?;
            Ok(String::new())
        }
        Command::Ask { questions: file, first_port, from } => {
            let text = std::fs::read(&file).map_err(|e| format!("read {}: {e}", file.display()))?;
            let questions: Vec<witness::Question> =
                serde_json::from_slice(&text).map_err(|e| format!("questions in {}: {e}", file.display()))?;
            json(serde_json::to_string(&witness::ask(&questions, first_port, &from).await))
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
