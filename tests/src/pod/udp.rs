//! UDP echo, both sides.

use super::client::{Latency, latency_of};
use super::pattern;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

/// What a run of UDP echoes gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UdpSummary {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that came back with the right bytes.
    pub received: u64,
    /// Datagrams that came back changed.
    pub damaged: u64,
    /// Round-trip times.
    pub latency: Latency,
}

/// Sends every datagram back to where it came from, for as long as the process lives.
pub async fn echo(socket: UdpSocket) {
    let mut buffer = vec![0; 65536];
    loop {
        // Errors here are ICMP errors about earlier answers: the next datagram may do better.
        if let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    }
}

/// Sends `count` datagrams of `size_bytes` one after the other, each waiting up to `timeout` for its echo.
pub async fn ping(
    target: SocketAddr,
    count: u64,
    size_bytes: usize,
    timeout: Duration,
) -> io::Result<UdpSummary> {
    let local: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(target).await?;
    let (mut received, mut damaged, mut times) = (0, 0, Vec::new());
    let mut sent_bytes = vec![0; size_bytes];
    let mut buffer = vec![0; 65536];
    for i in 0..count {
        pattern::fill(i * size_bytes as u64, &mut sent_bytes);
        let start = Instant::now();
        socket.send(&sent_bytes).await?;
        match tokio::time::timeout(timeout, socket.recv(&mut buffer)).await {
            Ok(Ok(len)) if buffer[..len] == sent_bytes[..] => {
                received += 1;
                times.push(start.elapsed());
            }
            Ok(Ok(_)) => damaged += 1,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Ok(UdpSummary { sent: count, received, damaged, latency: latency_of(&mut times) })
}
