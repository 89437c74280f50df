//! How long a connection lasts without a packet (RFC 4787 section 4.3, RFC 5382 section 5, RFC 5508 section 3.2).

use super::tcp::{ONE_WAY, State, is_forwarded};
use crate::wire::proto;

/// Seconds without a packet after which a connection is forgotten. Defaults are the kernel's
/// (`nf_conntrack_*_timeout*`), but for established TCP, of which it is kube-proxy's one day, and ICMP, of which RFC
/// 5508 REQ-2 wants twice as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before the handshake is answered.
    pub tcp_syn_s: u32,
    /// TCP between SYN-ACK and ACK.
    pub tcp_syn_received_s: u32,
    /// Established TCP.
    pub tcp_established_s: u32,
    /// TCP found under way, of which one side has been silent.
    pub tcp_unacknowledged_s: u32,
    /// TCP after the first FIN.
    pub tcp_fin_s: u32,
    /// TCP after both FINs.
    pub tcp_time_wait_s: u32,
    /// TCP after RST.
    pub tcp_closed_s: u32,
    /// UDP without a reply.
    pub udp_s: u32,
    /// UDP with replies.
    pub udp_stream_s: u32,
    /// ICMP echoes.
    pub icmp_s: u32,
    /// Everything else.
    pub other_s: u32,
    /// SCTP without a reply.
    pub sctp_s: u32,
    /// SCTP with replies: several times the 30 seconds between heartbeats (RFC 9260 section 16).
    pub sctp_established_s: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            tcp_syn_s: 120,
            tcp_syn_received_s: 60,
            tcp_established_s: 86_400,
            tcp_unacknowledged_s: 300,
            tcp_fin_s: 120,
            tcp_time_wait_s: 120,
            tcp_closed_s: 10,
            udp_s: 30,
            udp_stream_s: 120,
            icmp_s: 60,
            other_s: 30,
            sctp_s: 30,
            sctp_established_s: 210,
        }
    }
}

/// A text does not set a timeout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' sets no timeout; write NAME=SECONDS with 1 to 31536000 seconds and one of the names {}", Timeouts::NAMES.join(", "))]
pub struct TimeoutError {
    text: String,
}

impl Timeouts {
    /// What [`set`](Self::set) knows, after the kernel's `nf_conntrack_*_timeout*`.
    pub const NAMES: [&'static str; 13] = [
        "tcp-syn-sent",
        "tcp-syn-recv",
        "tcp-established",
        "tcp-unacknowledged",
        "tcp-fin-wait",
        "tcp-time-wait",
        "tcp-close",
        "udp",
        "udp-stream",
        "icmp",
        "generic",
        "sctp",
        "sctp-established",
    ];

    /// Sets one of them, given as `NAME=SECONDS`.
    ///
    /// # Errors
    /// If there is no such name, or the number makes no sense.
    pub fn set(&mut self, text: &str) -> Result<(), TimeoutError> {
        const YEAR_S: u32 = 31_536_000;
        let error = || TimeoutError { text: text.to_owned() };
        let (name, seconds) = text.split_once('=').ok_or_else(error)?;
        let seconds: u32 = seconds.trim().parse().map_err(|_| error())?;
        let field = match name.trim() {
            "tcp-syn-sent" => &mut self.tcp_syn_s,
            "tcp-syn-recv" => &mut self.tcp_syn_received_s,
            "tcp-established" => &mut self.tcp_established_s,
            "tcp-unacknowledged" => &mut self.tcp_unacknowledged_s,
            "tcp-fin-wait" => &mut self.tcp_fin_s,
            "tcp-time-wait" => &mut self.tcp_time_wait_s,
            "tcp-close" => &mut self.tcp_closed_s,
            "udp" => &mut self.udp_s,
            "udp-stream" => &mut self.udp_stream_s,
            "icmp" => &mut self.icmp_s,
            "generic" => &mut self.other_s,
            "sctp" => &mut self.sctp_s,
            "sctp-established" => &mut self.sctp_established_s,
            _ => return Err(error()),
        };
        if !(1..=YEAR_S).contains(&seconds) {
            return Err(error());
        }
        *field = seconds;
        Ok(())
    }

    /// How long a connection with this word lasts.
    pub(super) fn of_word(&self, protocol: u8, word: u32) -> u32 {
        let lasts_s = self.of(protocol, State::from_bits(word));
        let silent = protocol == proto::TCP && word & ONE_WAY != 0 && !is_forwarded(word);
        if silent { lasts_s.min(self.tcp_unacknowledged_s) } else { lasts_s }
    }

    /// How long a connection in this state lasts.
    pub fn of(&self, protocol: u8, state: State) -> u32 {
        match (protocol, state) {
            (_, State::Free) => 0,
            (proto::TCP, State::New) => self.tcp_syn_s,
            (proto::TCP, State::SynReceived) => self.tcp_syn_received_s,
            (proto::TCP, State::Established) => self.tcp_established_s,
            (proto::TCP, State::FinWait) => self.tcp_fin_s,
            (proto::TCP, State::TimeWait) => self.tcp_time_wait_s,
            (proto::TCP, State::Closed) => self.tcp_closed_s,
            (proto::UDP, State::New) => self.udp_s,
            (proto::UDP, _) => self.udp_stream_s,
            (proto::ICMP | proto::ICMPV6, _) => self.icmp_s,
            (proto::SCTP, State::New) => self.sctp_s,
            (proto::SCTP, _) => self.sctp_established_s,
            _ => self.other_s,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Direction::Reply;
    use super::super::tcp::{initial, next};
    use super::*;
    use crate::wire::tcp_flags::ACK;

    #[test]
    fn a_connection_begun_before_we_looked_lasts_once_both_sides_spoke() {
        let timeouts = Timeouts::default();
        let word = initial(proto::TCP, ACK);
        assert_eq!(timeouts.of_word(proto::TCP, word), timeouts.tcp_unacknowledged_s);
        let word = next(word, proto::TCP, Reply, ACK);
        assert_eq!(timeouts.of_word(proto::TCP, word), timeouts.tcp_established_s);
    }

    #[test]
    fn every_name_sets_a_timeout_of_its_own_and_others_are_refused() {
        let mut timeouts = Timeouts::default();
        for (n, name) in (1000..).zip(Timeouts::NAMES) {
            timeouts.set(&format!("{name}={n}")).unwrap();
        }
        let Timeouts { tcp_syn_s, tcp_established_s, udp_stream_s, icmp_s, other_s, .. } = timeouts;
        assert_eq!(
            (tcp_syn_s, tcp_established_s, udp_stream_s, icmp_s, other_s),
            (1000, 1002, 1008, 1009, 1010)
        );
        for bad in ["udp", "udp=", "udp=0", "udp=-1", "udp=99999999999", "dccp=1", "=5"] {
            let error = timeouts.set(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("tcp-established"), "{error}");
        }
    }
}
