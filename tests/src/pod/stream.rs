//! Many slow TCP connections at once, each verified to the byte in both directions: the server sends its
//! name, then everything that it gets back to the sender, then its name again.

use super::pattern::{self, Verifier};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What `fairway-pod streams` prints once every connection is open.
pub const ALL_OPEN: &str = "all streams are open";

/// Longest name in bytes.
const MAX_NAME_BYTES: u64 = 64;
const BUFFER_BYTES: usize = 16 * 1024;
/// How many failures are described in words.
const MAX_ERRORS: usize = 5;

/// What to send.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Address and port of the server.
    pub target: SocketAddr,
    /// Number of connections.
    pub count: u64,
    /// Records that each sends.
    pub records: u64,
    /// Size of a record.
    pub record_bytes: usize,
    /// Time from one record to the next.
    pub interval: Duration,
    /// Longest time for all connections to be opened, and then for all to end.
    pub timeout: Duration,
}

/// What a run of streams gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamSummary {
    /// Connections.
    pub streams: u64,
    /// Connections of which every byte came back right, from one and the same server, up to an orderly end.
    pub byte_exact: u64,
    /// The first failures of others in words.
    pub errors: Vec<String>,
    /// Connections by the name that their server gave.
    pub backends: BTreeMap<String, u64>,
    /// Bytes that came back.
    pub bytes: u64,
    /// Longest time, on any connection, from one arrival of bytes to the next.
    pub longest_stall_ms: u64,
    /// Time from the first record to the end of the last connection.
    pub seconds: f64,
}

/// Serves such connections until the process ends.
pub async fn serve(listener: TcpListener, name: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let name = name.clone();
                tokio::spawn(async move {
                    if let Err(error) = echo(stream, &name).await {
                        eprintln!("stream: {error}");
                    }
                });
            }
            // A connection that was reset before it was accepted is no reason to stop serving.
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

async fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Opens a connection and reads its server's name.
async fn open(target: SocketAddr) -> Result<(TcpStream, String), String> {
    let mut stream = TcpStream::connect(target).await.map_err(|e| format!("connect: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let name = read_name(&mut stream).await?;
    Ok((stream, name))
}

async fn read_name(from: &mut (impl AsyncRead + Unpin)) -> Result<String, String> {
    let mut name = Vec::new();
    loop {
        match from.read_u8().await {
            Ok(b'\n') => return String::from_utf8(name).map_err(|e| format!("name: {e}")),
            Ok(byte) if (name.len() as u64) < MAX_NAME_BYTES => name.push(byte),
            Ok(_) => return Err(format!("no name ends within {MAX_NAME_BYTES} bytes")),
            Err(error) => return Err(format!("name: {error}")),
        }
    }
}

/// Sends the records at their times, and the end.
async fn send(mut to: OwnedWriteHalf, plan: Plan, number: u64) -> Result<(), String> {
    // Connections take turns, so that some are in the middle of a record at any time.
    tokio::time::sleep(plan.interval.mul_f64(number as f64 / plan.count as f64)).await;
    let mut ticks = tokio::time::interval(plan.interval);
    let mut record = vec![0; plan.record_bytes];
    for i in 0..plan.records {
        ticks.tick().await;
        pattern::fill(i * plan.record_bytes as u64, &mut record);
        to.write_all(&record).await.map_err(|e| format!("send record {i}: {e}"))?;
    }
    to.shutdown().await.map_err(|e| format!("send the end: {e}"))
}

/// What one connection gave back.
#[derive(Default)]
struct Echo {
    bytes: u64,
    stall: Duration,
}

async fn receive(mut from: OwnedReadHalf, total: u64, name: &str, echo: &mut Echo) -> Result<(), String> {
    let mut verifier = Verifier::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut last = Instant::now();
    while verifier.len() < total {
        let room = buffer.len().min((total - verifier.len()) as usize);
        let n =
            from.read(&mut buffer[..room]).await.map_err(|e| format!("after {} bytes: {e}", echo.bytes))?;
        if n == 0 {
            return Err(format!("ended after {} bytes of {total}", verifier.len()));
        }
        verifier.push(&buffer[..n]);
        echo.bytes += n as u64;
        echo.stall = echo.stall.max(last.elapsed());
        last = Instant::now();
    }
    if let Some(at) = verifier.first_wrong() {
        return Err(format!("byte {at} of {total} is wrong"));
    }
    let trailer = read_name(&mut from).await?;
    if trailer != name {
        return Err(format!("it began with {name} and ended with {trailer}"));
    }
    match from.read(&mut buffer).await {
        Ok(0) => Ok(()),
        Ok(n) => Err(format!("{n} bytes more than {total} came")),
        Err(error) => Err(format!("at the end: {error}")),
    }
}

/// Runs one opened connection to its end.
async fn work(stream: TcpStream, name: String, plan: Plan, number: u64) -> (Echo, Result<(), String>) {
    let (from, to) = stream.into_split();
    let (timeout, total) = (plan.timeout, plan.records * plan.record_bytes as u64);
    let mut echo = Echo::default();
    let both = async { tokio::try_join!(send(to, plan, number), receive(from, total, &name, &mut echo)) };
    let outcome = tokio::time::timeout(timeout, both).await;
    let late = || Err(format!("did not end within {} ms", timeout.as_millis()));
    let outcome = outcome.unwrap_or_else(|_| late()).map(drop);
    (echo, outcome.map_err(|error| format!("stream {number} to {name}: {error}")))
}

/// Opens all connections, calls `opened`, and runs all to their end. Failed connections are part of the
/// summary; an error is one that could not even be opened.
pub async fn run(plan: Plan, opened: impl FnOnce()) -> Result<StreamSummary, String> {
    let opening: Vec<_> = (0..plan.count)
        .map(|_| tokio::spawn(tokio::time::timeout(plan.timeout, open(plan.target))))
        .collect();
    let mut summary = StreamSummary { streams: plan.count, ..StreamSummary::default() };
    let mut streams = Vec::new();
    for handle in opening {
        let in_time = handle.await.map_err(|e| e.to_string())?;
        let (stream, name) = in_time.map_err(|_| format!("no connection to {} in time", plan.target))??;
        *summary.backends.entry(name.clone()).or_default() += 1;
        streams.push((stream, name));
    }
    opened();
    let start = Instant::now();
    let numbered = (0u64..).zip(streams);
    let running: Vec<_> = numbered
        .map(|(number, (stream, name))| tokio::spawn(work(stream, name, plan.clone(), number)))
        .collect();
    for handle in running {
        let (echo, outcome) = handle.await.map_err(|e| e.to_string())?;
        summary.bytes += echo.bytes;
        summary.longest_stall_ms = summary.longest_stall_ms.max(echo.stall.as_millis() as u64);
        match outcome {
            Ok(()) => summary.byte_exact += 1,
            Err(error) if summary.errors.len() < MAX_ERRORS => summary.errors.push(error),
            Err(_) => {}
        }
    }
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(target: SocketAddr) -> Plan {
        let (interval, timeout) = (Duration::from_millis(2), Duration::from_secs(10));
        Plan { target, count: 20, records: 10, record_bytes: 1000, interval, timeout }
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        (listener, address)
    }

    #[tokio::test]
    async fn streams_that_come_back_whole_are_byte_exact() {
        let (listener, target) = listen().await;
        tokio::spawn(serve(listener, "pod-a".into()));
        let mut told = false;
        let summary = run(plan(target), || told = true).await.expect("summary");
        assert_eq!((summary.streams, summary.byte_exact, summary.bytes), (20, 20, 200_000));
        assert_eq!((summary.backends.get("pod-a"), told), (Some(&20), true));
        assert!(summary.errors.is_empty(), "{:?}", summary.errors);
    }

    type Spoiler = fn(Vec<u8>) -> Vec<u8>;

    /// A server that treats what it got in a wrong way.
    async fn spoil(listener: TcpListener, how: Spoiler) {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"pod-a\n").await.expect("name");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.expect("read");
                stream.write_all(&how(all)).await.expect("write");
            });
        }
    }

    #[tokio::test]
    async fn a_changed_byte_a_missing_end_another_name_and_too_much_all_show() {
        let cases: [(Spoiler, &str); 4] = [
            (
                |mut all| {
                    all[777] ^= 1;
                    [all, b"pod-a\n".to_vec()].concat()
                },
                "byte 777",
            ),
            (
                |mut all| {
                    all.truncate(9_999);
                    all
                },
                "ended after 9999",
            ),
            (|all| [all, b"pod-b\n".to_vec()].concat(), "ended with pod-b"),
            (|all| [all, b"pod-a\nmore".to_vec()].concat(), "4 bytes more"),
        ];
        for (how, says) in cases {
            let (listener, target) = listen().await;
            tokio::spawn(spoil(listener, how));
            let summary = run(Plan { count: 3, ..plan(target) }, || {}).await.expect("summary");
            assert_eq!(summary.byte_exact, 0);
            assert!(summary.errors[0].contains(says), "{:?}", summary.errors);
        }
    }
}
