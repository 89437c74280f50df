//! ARP for IPv4 over Ethernet (RFC 826).

use super::{ETH_LEN, ETHERTYPE_ARP, be16, put16};
use fairway_tables::Mac;

/// Length of an ARP packet for IPv4 over Ethernet.
pub const LEN: usize = 28;

/// An ARP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub sender_mac: Mac,
    /// The asker's address; zero in a probe (RFC 5227).
    pub sender_ip: [u8; 4],
    /// The address asked for.
    pub target_ip: [u8; 4],
}

/// Parses a frame as an ARP request; `None` for anything else.
pub fn parse_request(frame: &[u8]) -> Option<Request> {
    let arp = frame.get(ETH_LEN..ETH_LEN + LEN)?;
    // Ethernet, IPv4, lengths 6 and 4, operation 1.
    if arp[..8] != [0, 1, 8, 0, 6, 4, 0, 1] || be16(frame, 12) != ETHERTYPE_ARP {
        return None;
    }
    Some(Request {
        sender_mac: Mac(arp[8..14].try_into().ok()?),
        sender_ip: arp[14..18].try_into().ok()?,
        target_ip: arp[24..28].try_into().ok()?,
    })
}

/// Turns the frame that held `request` into the reply "`target_ip` is at `mac`". The frame must be at
/// least as long as [`parse_request`] asks.
pub fn write_reply(frame: &mut [u8], request: &Request, mac: Mac) {
    frame[0..6].copy_from_slice(&request.sender_mac.0);
    frame[6..12].copy_from_slice(&mac.0);
    put16(frame, 12, ETHERTYPE_ARP);
    let arp = &mut frame[ETH_LEN..ETH_LEN + LEN];
    arp[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    arp[8..14].copy_from_slice(&mac.0);
    arp[14..18].copy_from_slice(&request.target_ip);
    arp[18..24].copy_from_slice(&request.sender_mac.0);
    arp[24..28].copy_from_slice(&request.sender_ip);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_its_reply_in_place() {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 9, 10, 1, 0, 5, 0, 0, 0, 0, 0, 0, 169, 254, 1, 1]);
        let request = parse_request(&frame).unwrap();
        assert_eq!(request.target_ip, [169, 254, 1, 1]);
        write_reply(&mut frame, &request, Mac([0xee; 6]));
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 9, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 8, 6]);
        assert_eq!(frame[20..22], [0, 2]);
        assert_eq!(frame[28..32], [169, 254, 1, 1]);
        assert_eq!(frame[38..42], [10, 1, 0, 5]);
        assert_eq!(parse_request(&frame), None, "a reply is no request");
    }
}
