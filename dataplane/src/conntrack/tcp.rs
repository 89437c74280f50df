//! States of a connection.
//!
//! TCP states follow RFC 9293 section 3.3.2 as seen from the middle, simplified to what decides a timeout.
//! UDP and ICMP conversations are unreplied or replied (RFC 4787 section 4.3, RFC 5508 section 3.2).

use super::Direction;
use crate::wire::{proto, tcp_flags};

/// See the module's head. The numbers are part of the file's layout.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum State {
    /// A place that holds no connection.
    Free = 0,
    /// Packets seen one way only; for TCP a SYN.
    New = 1,
    /// TCP: SYN-ACK seen.
    SynReceived = 2,
    /// Packets seen both ways; for TCP the handshake is complete, or was before we looked.
    Established = 3,
    /// TCP: one side has sent FIN.
    FinWait = 4,
    /// TCP: both sides have sent FIN.
    TimeWait = 5,
    /// TCP: RST seen.
    Closed = 6,
}

impl State {
    pub(super) fn from_bits(bits: u32) -> State {
        match bits & 0xff {
            1 => State::New,
            2 => State::SynReceived,
            3 => State::Established,
            4 => State::FinWait,
            5 => State::TimeWait,
            6 => State::Closed,
            _ => State::Free,
        }
    }

    /// Whether a SYN on the same tuple begins a new connection (RFC 9293 section 3.6.1).
    pub fn may_be_reused(self) -> bool {
        matches!(self, State::Free | State::TimeWait | State::Closed)
    }
}

/// The direction that sent the first FIN is remembered beside the state.
const FIN_FROM_REPLY: u32 = 1 << 8;
/// A SYN was seen after a FIN.
const SYN_AGAIN: u32 = 1 << 9;
/// Nothing has come back yet.
pub(super) const ONE_WAY: u32 = 1 << 10;
/// The connection is left to another node, which alone sees what comes back (docs/dsr.md).
const FORWARDED: u32 = 1 << 11;

/// Of windows that are tracked: the shift that the SYN seen again offers, in four bits; [`NO_SHIFT`] if none.
const AGAIN_SHIFT: u32 = 12;
const NO_SHIFT: u32 = 15;

/// After a SYN that may begin a live connection anew: the server's answer tells. `shift` is what it offers.
pub(super) fn syn_again(word: u32, shift: Option<u8>) -> u32 {
    let shift = shift.map_or(NO_SHIFT, u32::from);
    word & !(NO_SHIFT << AGAIN_SHIFT) | SYN_AGAIN | shift << AGAIN_SHIFT
}

/// The shift that the SYN offered which was seen again, if one was.
pub(super) fn shift_again(word: u32) -> Option<Option<u8>> {
    let shift = word >> AGAIN_SHIFT & NO_SHIFT;
    (word & SYN_AGAIN != 0).then_some((shift != NO_SHIFT).then_some(shift as u8))
}

/// After the server's agreement to begin anew.
pub(super) fn begun_anew() -> u32 {
    State::SynReceived as u32
}

/// Whether a connection is left to another node.
pub(super) fn is_forwarded(word: u32) -> bool {
    word & FORWARDED != 0
}

/// The state and flags of a connection that is left to another node, after its first packet.
pub(super) fn initial_forwarded() -> u32 {
    State::New as u32 | FORWARDED
}

/// As [`next`], of a connection of which only one direction is ever seen. What follows the first packet says that it was
/// answered: a client sends no more than SYNs before. A client's FIN is all of the end that is seen.
fn next_forwarded(word: u32, protocol: u8, flags: u8) -> u32 {
    let has = |flag| protocol == proto::TCP && flags & flag != 0;
    let state = match State::from_bits(word) {
        _ if has(tcp_flags::RST) => State::Closed,
        _ if has(tcp_flags::FIN) => State::FinWait,
        // Perhaps the client begins anew; its node knows.
        State::New | State::FinWait if has(tcp_flags::SYN) => State::New,
        State::New => State::Established,
        other => other,
    };
    state as u32 | FORWARDED
}

/// The state and flags of a connection whose first packet has these control bits.
pub(super) fn initial(protocol: u8, flags: u8) -> u32 {
    let state = if protocol != proto::TCP || flags & tcp_flags::SYN != 0 {
        State::New
    } else if flags & tcp_flags::FIN != 0 {
        State::FinWait
    } else {
        // Begun before we looked: picked up in the middle, as the kernel does (nf_conntrack_tcp_loose).
        State::Established
    };
    state as u32 | ONE_WAY
}

/// The state and flags after a packet.
pub(super) fn next(word: u32, protocol: u8, direction: Direction, flags: u8) -> u32 {
    let reply = direction == Direction::Reply;
    if is_forwarded(word) {
        return if reply { word } else { next_forwarded(word, protocol, flags) };
    }
    let word = if reply { word & !ONE_WAY } else { word };
    let state = State::from_bits(word);
    if protocol != proto::TCP {
        return if reply && state == State::New { State::Established as u32 } else { word };
    }
    if flags & tcp_flags::RST != 0 {
        return State::Closed as u32;
    }
    if flags & tcp_flags::FIN != 0 {
        let from = if reply { FIN_FROM_REPLY } else { 0 };
        return match state {
            State::FinWait if word & FIN_FROM_REPLY != from => State::TimeWait as u32,
            State::FinWait | State::TimeWait | State::Closed => word,
            _ => State::FinWait as u32 | from | word & ONE_WAY,
        };
    }
    let (syn, ack) = (flags & tcp_flags::SYN != 0, flags & tcp_flags::ACK != 0);
    match state {
        State::New if reply && syn => State::SynReceived as u32,
        // A reply that is no SYN-ACK: we saw only the end of the handshake.
        State::New if reply => State::Established as u32,
        State::SynReceived if !reply && ack => State::Established as u32,
        // Perhaps the client begins anew; the server's answer tells.
        State::FinWait if !reply && syn && !ack => word | SYN_AGAIN,
        State::FinWait if reply && syn && word & SYN_AGAIN != 0 => State::SynReceived as u32,
        _ => word,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use Direction::{Original, Reply};
    use tcp_flags::{ACK, FIN, RST, SYN};

    fn run(packets: &[(Direction, u8)]) -> State {
        let mut word = initial(proto::TCP, packets[0].1);
        for (direction, flags) in &packets[1..] {
            word = next(word, proto::TCP, *direction, *flags);
        }
        State::from_bits(word)
    }

    #[test]
    fn a_handshake_establishes_and_two_fins_end() {
        let handshake = [(Original, SYN), (Reply, SYN | ACK), (Original, ACK)];
        assert_eq!(run(&handshake[..1]), State::New);
        assert_eq!(run(&handshake[..2]), State::SynReceived);
        assert_eq!(run(&handshake), State::Established);
        let mut all = handshake.to_vec();
        all.push((Reply, FIN | ACK));
        assert_eq!(run(&all), State::FinWait);
        all.push((Reply, FIN | ACK));
        assert_eq!(run(&all), State::FinWait, "a repeated FIN is not the other side's");
        all.push((Original, FIN | ACK));
        assert_eq!(run(&all), State::TimeWait);
        assert!(State::TimeWait.may_be_reused());
    }

    #[test]
    fn a_reset_closes_in_any_state() {
        for n in 1..=3 {
            let mut packets = vec![(Original, SYN), (Reply, SYN | ACK), (Original, ACK)];
            packets.truncate(n);
            packets.push((Reply, RST));
            assert_eq!(run(&packets), State::Closed);
        }
    }

    #[test]
    fn a_connection_begun_before_we_looked_is_established() {
        assert_eq!(run(&[(Original, ACK)]), State::Established);
    }

    #[test]
    fn a_connection_begun_anew_before_the_former_was_closed_is_established_again() {
        let half_closed =
            [(Original, SYN), (Reply, SYN | ACK), (Original, ACK), (Original, FIN | ACK), (Reply, ACK)];
        let mut packets = half_closed.to_vec();
        packets.push((Reply, SYN | ACK));
        assert_eq!(run(&packets), State::FinWait, "a server's SYN-ACK sent again is no beginning");
        let mut packets = half_closed.to_vec();
        packets.push((Original, SYN));
        assert_eq!(run(&packets), State::FinWait, "until the server agrees");
        packets.extend([(Reply, SYN | ACK), (Original, ACK)]);
        assert_eq!(run(&packets), State::Established);
    }

    #[test]
    fn a_connection_first_seen_at_its_end_does_not_last() {
        assert_eq!(run(&[(Original, FIN | ACK)]), State::FinWait);
        assert_eq!(run(&[(Original, FIN | ACK), (Reply, FIN | ACK)]), State::TimeWait);
    }

    #[test]
    fn of_a_connection_left_to_another_node_the_clients_side_says_all() {
        let run = |protocol, packets: &[u8]| {
            let word = initial_forwarded();
            let word = packets.iter().fold(word, |word, flags| next(word, protocol, Original, *flags));
            assert!(is_forwarded(word));
            State::from_bits(word)
        };
        assert_eq!(run(proto::TCP, &[]), State::New);
        assert_eq!(run(proto::TCP, &[SYN]), State::New, "a SYN sent again");
        assert_eq!(run(proto::TCP, &[ACK]), State::Established);
        assert_eq!(run(proto::TCP, &[ACK, SYN]), State::Established);
        assert_eq!(run(proto::TCP, &[ACK, FIN | ACK]), State::FinWait);
        assert_eq!(
            run(proto::TCP, &[ACK, FIN | ACK, ACK]),
            State::FinWait,
            "the last ACK, or a half-closed one's"
        );
        assert_eq!(run(proto::TCP, &[ACK, FIN | ACK, SYN]), State::New);
        assert_eq!(run(proto::TCP, &[ACK, RST]), State::Closed);
        assert_eq!(run(proto::UDP, &[]), State::New);
        assert_eq!(run(proto::UDP, &[0]), State::Established);
        assert_eq!(
            next(initial_forwarded(), proto::TCP, Reply, RST),
            initial_forwarded(),
            "none is ever seen"
        );
    }

    #[test]
    fn udp_is_established_by_a_reply() {
        let word = initial(proto::UDP, 0);
        assert_eq!(State::from_bits(next(word, proto::UDP, Original, 0)), State::New);
        assert_eq!(State::from_bits(next(word, proto::UDP, Reply, 0)), State::Established);
    }
}
