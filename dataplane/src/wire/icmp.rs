//! ICMP for IPv4 (RFC 792).

use super::checksum;

/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Length of the fixed header.
pub const LEN: usize = 8;

/// Whether an ICMP message of this type carries an identifier that names a conversation.
#[inline]
pub fn is_echo(kind: u8) -> bool {
    kind == ECHO_REQUEST || kind == ECHO_REPLY
}

/// Whether the message's checksum, over all of its bytes, is right.
pub fn checksum_ok(message: &[u8]) -> bool {
    checksum::fold(checksum::sum(message)) == 0xffff
}

/// Turns an echo request (at least [`LEN`] bytes) into its reply.
pub fn make_echo_reply(message: &mut [u8]) {
    let old = u16::from_ne_bytes([message[0], message[1]]);
    message[0] = ECHO_REPLY;
    let new = u16::from_ne_bytes([message[0], message[1]]);
    let delta = checksum::fold(u64::from(!old) + u64::from(new));
    let field = u16::from_ne_bytes([message[2], message[3]]);
    message[2..4].copy_from_slice(&checksum::update(field, delta).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_keeps_data_and_a_right_checksum() {
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, b'h', b'i', b'!'];
        let sum = checksum::checksum(&message);
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
        assert!(checksum_ok(&message));
        make_echo_reply(&mut message);
        assert_eq!(message[0], ECHO_REPLY);
        assert_eq!(message[4..], [0x12, 0x34, 0, 1, b'h', b'i', b'!']);
        assert!(checksum_ok(&message));
    }
}
