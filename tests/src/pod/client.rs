//! The HTTP client in a pod: many requests, each checked, with figures of how they went.

use super::pattern::Verifier;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;

/// How many failures are described in words.
const MAX_ERRORS: usize = 5;

/// What to request.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `http://address:port/path`.
    pub url: String,
    /// Number of requests; with `duration` set, the most.
    pub count: u64,
    /// Go on for this long.
    pub duration: Option<Duration>,
    /// Requests under way at once.
    pub concurrency: u64,
    /// Whether a connection serves more than one request.
    pub keepalive: bool,
    /// Whether bodies are compared with the pattern, instead of being read as names.
    pub verify_bytes: bool,
    /// Longest time for one request.
    pub timeout: Duration,
}

/// Round-trip or request times in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Fastest.
    pub min_us: u64,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Slowest.
    pub max_us: u64,
}

/// How often and when one backend answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendSummary {
    /// Requests that it answered.
    pub requests: u64,
    /// Start of the first such request, in microseconds since 1970.
    pub first_us: u64,
    /// Start of the last such request, in microseconds since 1970.
    pub last_us: u64,
}

/// What a run of requests gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Requests made.
    pub requests: u64,
    /// Requests without a complete, right answer.
    pub failures: u64,
    /// The first failures in words.
    pub errors: Vec<String>,
    /// Answers by the name that the backend gave.
    pub backends: BTreeMap<String, BackendSummary>,
    /// Body bytes received.
    pub bytes: u64,
    /// Duration of the whole run in seconds.
    pub seconds: f64,
    /// Times of whole requests, connection set-up included.
    pub latency: Latency,
    /// With `verify_bytes`: whether every byte of every body was right.
    pub byte_exact: Option<bool>,
}

/// Microseconds since 1970, the clock shared by testbed and pods.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// Percentiles of a set of times, which it sorts.
pub(super) fn latency_of(times: &mut [Duration]) -> Latency {
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
        times.get(index).map_or(0, |t| t.as_micros() as u64)
    };
    Latency { min_us: at(0.0), p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0) }
}

/// Where a URL points: the address to connect to and the path to ask for.
fn parse(url: &str) -> Result<(String, Uri), String> {
    let bad = || format!("'{url}' is not of the form http://address:port/path");
    let uri: Uri = url.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") {
        return Err(bad());
    }
    let authority = uri.authority().ok_or_else(bad)?;
    Ok((format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)), uri))
}

/// One task's share of the run.
#[derive(Default)]
struct Tally {
    summary: Summary,
    times: Vec<Duration>,
    wrong_bytes: bool,
}

type Connection = SendRequest<Empty<Bytes>>;

struct Client {
    plan: Plan,
    authority: String,
    uri: Uri,
    connection: Option<Connection>,
}

impl Client {
    async fn connect(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One request and its answer; the connection is kept only after a complete answer.
    async fn request(&mut self, tally: &mut Tally) -> Result<(), String> {
        let started_us = now_us();
        let mut sender = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        let close = if self.plan.keepalive { "keep-alive" } else { "close" };
        let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
        let request = Request::get(path).header("host", &self.authority).header("connection", close);
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status()));
        }
        let length = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok());
        let mut body = response.into_body();
        let mut name = Vec::new();
        let mut verifier = Verifier::default();
        let mut received = 0u64;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| format!("body after {received} bytes: {e}"))?;
            if let Ok(piece) = frame.into_data() {
                received += piece.len() as u64;
                tally.summary.bytes += piece.len() as u64;
                if self.plan.verify_bytes {
                    verifier.push(&piece);
                } else {
                    name.extend_from_slice(&piece);
                    name.truncate(256);
                }
            }
        }
        if length != Some(received) {
            return Err(format!("{received} bytes came, {length:?} were announced"));
        }
        if let Some(at) = verifier.first_wrong() {
            tally.wrong_bytes = true;
            return Err(format!("byte {at} of {received} is wrong"));
        }
        if !self.plan.verify_bytes {
            let name = String::from_utf8_lossy(&name).into_owned();
            note_backend(&mut tally.summary.backends, name, 1, started_us, started_us);
        }
        if self.plan.keepalive {
            self.connection = Some(sender);
        }
        Ok(())
    }

    /// Requests until its share of the count is used up or `end` passes.
    async fn work(mut self, share: u64, end: Option<Instant>) -> Tally {
        let mut tally = Tally::default();
        for _ in 0..share {
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            let start = Instant::now();
            let timeout = self.plan.timeout;
            let outcome = tokio::time::timeout(timeout, self.request(&mut tally)).await;
            tally.summary.requests += 1;
            match outcome.unwrap_or_else(|_| Err(format!("no answer within {} ms", timeout.as_millis()))) {
                Ok(()) => tally.times.push(start.elapsed()),
                Err(error) => {
                    tally.summary.failures += 1;
                    if tally.summary.errors.len() < MAX_ERRORS {
                        tally.summary.errors.push(format!("at {started} us: {error}", started = now_us()));
                    }
                }
            }
        }
        tally
    }
}

fn note_backend(
    backends: &mut BTreeMap<String, BackendSummary>,
    name: String,
    requests: u64,
    first_us: u64,
    last_us: u64,
) {
    let entry = backends.entry(name).or_insert(BackendSummary { requests: 0, first_us, last_us });
    entry.requests += requests;
    entry.first_us = entry.first_us.min(first_us);
    entry.last_us = entry.last_us.max(last_us);
}

/// Makes the requests of a plan. Failed requests are part of the summary; an error is a plan that makes
/// no sense.
pub async fn run(plan: Plan) -> Result<Summary, String> {
    let (authority, uri) = parse(&plan.url)?;
    let start = Instant::now();
    let end = plan.duration.map(|d| start + d);
    let tasks = plan.concurrency.clamp(1, plan.count.max(1));
    let mut handles = Vec::new();
    for task in 0..tasks {
        let share = plan.count / tasks + u64::from(task < plan.count % tasks);
        let client =
            Client { plan: plan.clone(), authority: authority.clone(), uri: uri.clone(), connection: None };
        handles.push(tokio::spawn(client.work(share, end)));
    }
    let mut total = Tally::default();
    for handle in handles {
        let tally = handle.await.map_err(|e| e.to_string())?;
        total.summary.requests += tally.summary.requests;
        total.summary.failures += tally.summary.failures;
        total.summary.bytes += tally.summary.bytes;
        total.summary.errors.extend(tally.summary.errors);
        total.wrong_bytes |= tally.wrong_bytes;
        total.times.extend(tally.times);
        for (name, b) in tally.summary.backends {
            note_backend(&mut total.summary.backends, name, b.requests, b.first_us, b.last_us);
        }
    }
    let mut summary = total.summary;
    summary.errors.truncate(MAX_ERRORS);
    summary.seconds = start.elapsed().as_secs_f64();
    summary.latency = latency_of(&mut total.times);
    // A body that broke off is not byte-exact either.
    summary.byte_exact = plan.verify_bytes.then_some(!total.wrong_bytes && summary.failures == 0);
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::super::server;
    use super::*;
    use std::net::SocketAddr;

    fn plan(url: String, count: u64) -> Plan {
        let timeout = Duration::from_secs(10);
        Plan { url, count, duration: None, concurrency: 4, keepalive: true, verify_bytes: false, timeout }
    }

    async fn start_server() -> SocketAddr {
        // The port is free a moment ago; the test retries the bind through a fresh port otherwise.
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let listen = probe.local_addr().expect("address");
        drop(probe);
        tokio::spawn(async move { server::serve(listen, "pod-a".to_owned()).await.expect("serve") });
        for _ in 0..200 {
            if TcpStream::connect(listen).await.is_ok() {
                return listen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the server does not listen on {listen}");
    }

    #[tokio::test]
    async fn every_answer_is_counted_under_its_backend() {
        let listen = start_server().await;
        for keepalive in [true, false] {
            let summary =
                run(Plan { keepalive, ..plan(format!("http://{listen}/"), 30) }).await.expect("summary");
            assert_eq!((summary.requests, summary.failures), (30, 0), "{:?}", summary.errors);
            assert_eq!(summary.backends["pod-a"].requests, 30);
            assert!(summary.latency.min_us <= summary.latency.p99_us);
        }
    }

    #[tokio::test]
    async fn a_download_is_verified_to_the_byte() {
        let listen = start_server().await;
        let download = Plan { verify_bytes: true, ..plan(format!("http://{listen}/bytes/1000003"), 1) };
        let summary = run(download).await.expect("summary");
        assert_eq!((summary.bytes, summary.byte_exact), (1_000_003, Some(true)), "{:?}", summary.errors);
        // The answer of `/` is not the pattern, and must be noticed.
        let wrong = Plan { verify_bytes: true, ..plan(format!("http://{listen}/"), 1) };
        let summary = run(wrong).await.expect("summary");
        assert_eq!((summary.failures, summary.byte_exact), (1, Some(false)));
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_failure_with_a_reason() {
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let closed = probe.local_addr().expect("address");
        drop(probe);
        let summary = run(plan(format!("http://{closed}/"), 2)).await.expect("summary");
        assert_eq!((summary.requests, summary.failures), (2, 2));
        assert!(summary.errors[0].contains("connect"), "{:?}", summary.errors);
    }

    #[tokio::test]
    async fn a_url_without_an_address_is_refused() {
        for url in ["ftp://10.0.0.1/", "10.0.0.1", "/bytes/3"] {
            assert!(run(plan(url.to_owned(), 1)).await.is_err(), "{url}");
        }
    }
}
