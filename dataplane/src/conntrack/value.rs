//! What a connection is worth when the table is full.

use super::tcp::{self, State};
use crate::wire::proto;

/// Worth of what a place holds, least first. When the table is full a new flow takes the place of the least.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Value {
    /// Nothing.
    Free = 0,
    /// A TCP connection that has been closed by both sides, or reset.
    Over = 1,
    /// Not yet seen to be agreed on: a SYN, answered or not, without the ACK that completes the handshake; a
    /// TCP connection found under way of which one side has been silent; a datagram without an answer.
    Opening = 2,
    /// Datagrams both ways; a connection left to another node, after its first packets.
    Conversation = 3,
    /// TCP of which one side has sent FIN.
    Closing = 4,
    /// TCP after its handshake.
    Established = 5,
}

impl Value {
    pub(super) const COUNT: usize = 6;
    /// What gives way while it is idle; established TCP stands apart.
    pub(super) const CHEAP: [Value; 4] = [Value::Over, Value::Opening, Value::Conversation, Value::Closing];

    pub(super) fn of(word: u32, protocol: u8) -> Value {
        match State::from_bits(word) {
            State::Free => Value::Free,
            State::TimeWait | State::Closed => Value::Over,
            State::New | State::SynReceived => Value::Opening,
            // Its client alone has made it what it is.
            _ if tcp::is_forwarded(word) => Value::Conversation,
            _ if word & tcp::ONE_WAY != 0 => Value::Opening,
            State::FinWait => Value::Closing,
            State::Established if protocol == proto::TCP => Value::Established,
            State::Established => Value::Conversation,
        }
    }
}

/// The upper half of an entry's word comes from its generation, so that what is meant for a place's former
/// connection never changes its present one.
const TAG: u32 = 0xffff_0000;

/// A state and its flags with the tag of a generation.
pub(super) fn tagged(state: u32, generation: u32) -> u32 {
    state & !TAG | generation << 15 & TAG
}

pub(super) fn untagged(word: u32) -> u32 {
    word & !TAG
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::conntrack::Direction::{Original, Reply};
    use crate::wire::tcp_flags::{ACK, FIN, SYN};

    fn value(protocol: u8, first: u8, then: &[(crate::conntrack::Direction, u8)]) -> Value {
        let mut word = tcp::initial(protocol, first);
        for (direction, flags) in then {
            word = tcp::next(word, protocol, *direction, *flags);
        }
        Value::of(word, protocol)
    }

    #[test]
    fn one_side_alone_makes_nothing_of_value() {
        for flags in [SYN, ACK, FIN | ACK, SYN | ACK] {
            assert_eq!(value(proto::TCP, flags, &[]), Value::Opening);
            assert_eq!(value(proto::TCP, flags, &[(Original, ACK), (Original, FIN | ACK)]), Value::Opening);
        }
        assert_eq!(value(proto::UDP, 0, &[(Original, 0)]), Value::Opening);
        assert_eq!(value(proto::TCP, SYN, &[(Reply, SYN | ACK)]), Value::Opening);
    }

    #[test]
    fn what_both_sides_took_part_in_is_worth_more() {
        let established = [(Reply, SYN | ACK), (Original, ACK)];
        assert_eq!(value(proto::TCP, SYN, &established), Value::Established);
        assert_eq!(value(proto::TCP, ACK, &[(Reply, ACK)]), Value::Established);
        assert_eq!(value(proto::UDP, 0, &[(Reply, 0)]), Value::Conversation);
        let closing = [&established[..], &[(Original, FIN | ACK)]].concat();
        assert_eq!(value(proto::TCP, SYN, &closing), Value::Closing);
        let over = [&closing[..], &[(Reply, FIN | ACK)]].concat();
        assert_eq!(value(proto::TCP, SYN, &over), Value::Over);
    }

    #[test]
    fn consecutive_generations_of_a_place_have_different_tags() {
        for generation in (0..400_000).step_by(2) {
            let word = tagged(tcp::initial(proto::TCP, SYN), generation);
            assert_ne!(word, tagged(untagged(word), generation + 2));
            assert_eq!(State::from_bits(word), State::New);
        }
    }
}
