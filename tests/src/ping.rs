//! ICMP echo with the system's `ping`.

use crate::error::{Error, Result};
use crate::netns::Netns;
use std::net::Ipv4Addr;
use std::time::Duration;

/// What one run of `ping` gave.
#[derive(Debug, Clone, PartialEq)]
pub struct PingSummary {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// Mean round-trip time in microseconds; `None` without a reply.
    pub mean_us: Option<f64>,
    /// What ping printed, for messages.
    pub output: String,
}

impl PingSummary {
    /// Whether every request was answered.
    pub fn complete(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }
}

/// Sends `count` echo requests of `packet_bytes` (IP header included) that may not be fragmented.
/// Unanswered requests are part of the summary, not an error.
pub fn ping(netns: &Netns, target: Ipv4Addr, count: u32, packet_bytes: u32) -> Result<PingSummary> {
    let payload = packet_bytes.saturating_sub(28).to_string();
    let (target, count_text) = (target.to_string(), count.to_string());
    // -W is the longest wait after the last request, in seconds.
    let args = ["-n", "-c", &count_text, "-i", "0.02", "-W", "1", "-M", "do", "-s", &payload, &target];
    let output = netns.run("ping", &args, Duration::from_secs(5 + u64::from(count)))?;
    parse(&output.stdout).ok_or_else(|| Error::Answer {
        what: output.command.clone(),
        reason: format!("no statistics in: {}{}", output.stdout, output.stderr),
    })
}

fn parse(text: &str) -> Option<PingSummary> {
    let counts = text.lines().find(|line| line.contains("packets transmitted"))?;
    let number_before = |word: &str| -> Option<u32> {
        counts.split(',').find(|part| part.contains(word))?.split_whitespace().next()?.parse().ok()
    };
    let (sent, received) = (number_before("transmitted")?, number_before("received")?);
    let mean_us = text
        .lines()
        .find(|line| line.starts_with("rtt"))
        .and_then(|line| line.split(" = ").nth(1)?.split('/').nth(1)?.parse::<f64>().ok())
        .map(|ms| ms * 1000.0);
    Some(PingSummary { sent, received, mean_us, output: text.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_answered_and_unanswered_runs_are_read() {
        let good = "5 packets transmitted, 5 received, 0% packet loss, time 80ms\n\
                    rtt min/avg/max/mdev = 0.031/0.045/0.059/0.010 ms\n";
        let summary = parse(good).expect("good");
        assert_eq!((summary.sent, summary.received, summary.complete()), (5, 5, true));
        assert!((summary.mean_us.expect("mean") - 45.0).abs() < 1e-9);
        let lost = "3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 40ms\n";
        let summary = parse(lost).expect("lost");
        assert_eq!((summary.sent, summary.received, summary.mean_us), (3, 0, None));
        assert!(parse("ping: unknown host").is_none());
    }
}
