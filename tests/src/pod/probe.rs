//! A stream of numbered UDP datagrams at an even rate to an echo server: how many do not come back, and
//! for how long nothing does.

use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;

const PAYLOAD_BYTES: usize = 64;
/// How long the last echoes may take.
const DRAIN: Duration = Duration::from_millis(500);

/// What a probe gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProbeSummary {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that came back.
    pub received: u64,
    /// Datagrams that came back once more.
    pub duplicates: u64,
    /// Datagrams that did not come back.
    pub lost: u64,
    /// Most datagrams lost in a row.
    pub longest_loss: u64,
    /// Errors that the socket reported: ICMP errors about earlier datagrams.
    pub socket_errors: u64,
    /// Longest time without an echo, from the first datagram to the last.
    pub longest_gap_ms: f64,
}

/// Which datagrams have come back, and when the last one did.
struct Echoes {
    seen: Vec<bool>,
    duplicates: u64,
    last: Instant,
    gap: Duration,
}

impl Echoes {
    fn note(&mut self, datagram: &[u8], now: Instant) {
        let Some(number) = datagram.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) else { return };
        let Some(seen) = usize::try_from(number).ok().and_then(|i| self.seen.get_mut(i)) else { return };
        self.duplicates += u64::from(*seen);
        *seen = true;
        self.silent_until(now);
        self.last = now;
    }

    fn silent_until(&mut self, now: Instant) {
        self.gap = self.gap.max(now.saturating_duration_since(self.last));
    }

    fn summary(&self, socket_errors: u64) -> ProbeSummary {
        let sent = self.seen.len() as u64;
        let received = self.seen.iter().filter(|seen| **seen).count() as u64;
        let losses = self.seen.split(|seen| *seen).map(|run| run.len() as u64);
        ProbeSummary {
            sent,
            received,
            duplicates: self.duplicates,
            lost: sent - received,
            longest_loss: losses.max().unwrap_or(0),
            socket_errors,
            longest_gap_ms: self.gap.as_secs_f64() * 1000.0,
        }
    }
}

/// Sends `rate_pps` datagrams a second for `duration`; one that was held up is sent late, not left out.
pub async fn run(target: SocketAddr, rate_pps: u32, duration: Duration) -> io::Result<ProbeSummary> {
    let local: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(target).await?;
    let count = (duration.as_secs_f64() * f64::from(rate_pps)) as usize;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate_pps.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut echoes =
        Echoes { seen: Vec::with_capacity(count), duplicates: 0, last: Instant::now(), gap: Duration::ZERO };
    let (mut payload, mut buffer, mut socket_errors) = ([0; PAYLOAD_BYTES], [0; 2048], 0);
    while echoes.seen.len() < count {
        tokio::select! {
            _ = ticks.tick() => {
                payload[..8].copy_from_slice(&(echoes.seen.len() as u64).to_be_bytes());
                echoes.seen.push(false);
                // An error here is about an earlier datagram; this one was not sent and counts as lost.
                socket_errors += u64::from(socket.send(&payload).await.is_err());
            }
            received = socket.recv(&mut buffer) => match received {
                Ok(len) => echoes.note(&buffer[..len], Instant::now()),
                Err(_) => socket_errors += 1,
            }
        }
    }
    let end = Instant::now();
    while let Ok(received) =
        tokio::time::timeout(DRAIN.saturating_sub(end.elapsed()), socket.recv(&mut buffer)).await
    {
        match received {
            Ok(len) => echoes.note(&buffer[..len], Instant::now()),
            Err(_) => socket_errors += 1,
        }
    }
    if echoes.last < end {
        echoes.silent_until(end);
    }
    Ok(echoes.summary(socket_errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_where_everything_comes_back() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let target = server.local_addr().expect("address");
        tokio::spawn(super::super::udp::echo(server));
        let summary = run(target, 1000, Duration::from_millis(200)).await.expect("summary");
        assert_eq!((summary.sent, summary.received, summary.lost, summary.duplicates), (200, 200, 0, 0));
    }

    #[tokio::test]
    async fn a_silence_is_counted_in_datagrams_and_in_time() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let target = server.local_addr().expect("address");
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (len, from) = server.recv_from(&mut buffer).await.expect("receive");
                let number = u64::from_be_bytes(*buffer.first_chunk().expect("number"));
                if !(50..150).contains(&number) && number != 160 {
                    server.send_to(&buffer[..len], from).await.expect("send");
                }
            }
        });
        let summary = run(target, 1000, Duration::from_millis(200)).await.expect("summary");
        assert_eq!((summary.lost, summary.longest_loss), (101, 100));
        assert!(summary.longest_gap_ms > 50.0, "{summary:?}");
    }
}
