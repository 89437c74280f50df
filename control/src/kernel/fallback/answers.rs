//! The program on uplinks: which packets to the node's own addresses only the engine knows what to do with (see `guard.rs`).
//!
//! ```text
//!  IPv4, IPv6 ─> to a guarded address? ─> TCP with ACK and without RST, or UDP? ─> port in a guarded range? ─> drop
//!                         no: pass                     no: pass                            no: pass
//! ```
//! It runs for every packet to the node that the steering program passes, so that ports are found by halving. IPv6 extension
//! headers, and fragments after the first, pass: the engine does not take them either.

use super::guard::{
    ACK, AND, DROP, ETHERNET, IF_ANY_BIT, IF_EQUAL, Instruction, LOAD_BYTE, LOAD_BYTE_AT_X, LOAD_HALF, PASS,
    RETURN, RST, SKIP, TCP, TCP_FLAGS, X_IPV4_HEADER_LEN,
};
use crate::index::Guarded;
use fairway_tables::Ip;
use std::ops::RangeInclusive;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF_AT_X: u16 = 0x48;
const IF_ABOVE: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;

const UDP: u32 = 17;
const DESTINATION_PORT: u32 = 2;
const IPV6_HEADER: u32 = 40;
/// Most ranges of ports and most addresses of each family; the kernel takes programs of 4096 instructions (`BPF_MAXINSNS`).
const MOST_RANGES: usize = 600;
const MOST_ADDRESSES: usize = 32;

const DROPPED: Instruction = (RETURN, 0, 0, DROP);
const PASSED: Instruction = (RETURN, 0, 0, PASS);

/// The program. Beyond [`MOST_ADDRESSES`] addresses are left to the stack; beyond [`MOST_RANGES`] ranges of ports the smallest gaps
/// between them are guarded too.
pub(super) fn program(guarded: &Guarded) -> Vec<Instruction> {
    let of_family = |is_v4: bool| {
        let addresses = guarded.addresses.iter().copied().filter(move |ip| ip.is_v4() == is_v4);
        addresses.take(MOST_ADDRESSES)
    };
    let v4: Vec<u32> = of_family(true).map(|ip| words(ip)[3]).collect();
    let v6: Vec<[u32; 4]> = of_family(false).map(words).collect();
    let ranges = merged(&guarded.ports);
    let (v6, mut v4) = (ipv6(&v6), ipv4(&v4));
    // Both end with the port; what comes after the first skips the second.
    v4.push((SKIP, 0, 0, v6.len() as u32));
    let mut program = vec![
        (LOAD_HALF, 0, 0, 12),
        (IF_EQUAL, 3, 0, 0x0800),
        (IF_EQUAL, 0, 1, 0x86dd),
        (SKIP, 0, 0, v4.len() as u32 + 1),
        PASSED,
    ];
    program.extend(v4);
    program.extend(v6);
    find_port(&ranges, &mut program);
    program
}

fn words(ip: Ip) -> [u32; 4] {
    std::array::from_fn(|word| {
        let bytes: [u8; 4] = std::array::from_fn(|byte| ip.0[word * 4 + byte]);
        u32::from_be_bytes(bytes)
    })
}

/// Loads the destination port of an IPv4 packet to one of the addresses, or returns.
fn ipv4(addresses: &[u32]) -> Vec<Instruction> {
    let mut out = vec![
        (LOAD_HALF, 0, 0, ETHERNET + 6),
        (IF_ANY_BIT, 0, 1, 0x1fff),
        PASSED,
        (LOAD_WORD, 0, 0, ETHERNET + 16),
    ];
    for (n, address) in addresses.iter().enumerate() {
        let others = (addresses.len() - 1 - n) * 2;
        out.extend([(IF_EQUAL, 0, 1, *address), (SKIP, 0, 0, others as u32 + 1)]);
    }
    out.extend([PASSED, (X_IPV4_HEADER_LEN, 0, 0, ETHERNET), (LOAD_BYTE, 0, 0, ETHERNET + 9)]);
    out.extend(segment((LOAD_BYTE_AT_X, 0, 0, ETHERNET + TCP_FLAGS)));
    out.push((LOAD_HALF_AT_X, 0, 0, ETHERNET + DESTINATION_PORT));
    out
}

/// The same of an IPv6 packet without extension headers.
fn ipv6(addresses: &[[u32; 4]]) -> Vec<Instruction> {
    let mut out = Vec::new();
    for (n, address) in addresses.iter().enumerate() {
        for (at, word) in (0u32..).zip(address) {
            let to_next = 7 - 2 * at as u8;
            out.extend([(LOAD_WORD, 0, 0, ETHERNET + 24 + 4 * at), (IF_EQUAL, 0, to_next, *word)]);
        }
        let others = (addresses.len() - 1 - n) * 9;
        out.push((SKIP, 0, 0, others as u32 + 1));
    }
    out.extend([PASSED, (LOAD_BYTE, 0, 0, ETHERNET + 6)]);
    out.extend(segment((LOAD_BYTE, 0, 0, ETHERNET + IPV6_HEADER + TCP_FLAGS)));
    out.push((LOAD_HALF, 0, 0, ETHERNET + IPV6_HEADER + DESTINATION_PORT));
    out
}

/// With the protocol loaded: returns unless it is UDP, or TCP with ACK and without RST.
fn segment(load_flags: Instruction) -> [Instruction; 7] {
    [
        (IF_EQUAL, 6, 0, UDP),
        (IF_EQUAL, 1, 0, TCP),
        PASSED,
        load_flags,
        (AND, 0, 0, RST | ACK),
        (IF_EQUAL, 1, 0, ACK),
        PASSED,
    ]
}

/// With the port loaded: whether it is in one of the ranges, which are in order and do not touch.
fn find_port(ranges: &[RangeInclusive<u16>], out: &mut Vec<Instruction>) {
    match ranges {
        [] => out.push(PASSED),
        [range] => out.extend([
            (IF_AT_LEAST, 0, 2, u32::from(*range.start())),
            (IF_ABOVE, 1, 0, u32::from(*range.end())),
            DROPPED,
            PASSED,
        ]),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let mut below = Vec::new();
            find_port(low, &mut below);
            let first = high.first().map_or(0, |range| u32::from(*range.start()));
            out.extend([(IF_AT_LEAST, 0, 1, first), (SKIP, 0, 0, below.len() as u32)]);
            out.extend(below);
            find_port(high, out);
        }
    }
}

/// The ranges in order, joined where they touch, and where they are too many over the smallest gaps.
fn merged(ranges: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let mut sorted: Vec<RangeInclusive<u16>> =
        ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    sorted.sort_by_key(|range| *range.start());
    let joined = join(sorted, 0);
    if joined.len() <= MOST_RANGES {
        return joined;
    }
    let mut gaps: Vec<u16> = joined.windows(2).map(|pair| pair[1].start() - pair[0].end() - 1).collect();
    gaps.sort_unstable();
    let enough = gaps[joined.len() - MOST_RANGES - 1];
    join(joined, enough)
}

/// Joins ranges with at most so many ports between them.
fn join(sorted: Vec<RangeInclusive<u16>>, gap: u16) -> Vec<RangeInclusive<u16>> {
    let mut out: Vec<RangeInclusive<u16>> = Vec::new();
    for range in sorted {
        match out.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + u32::from(gap) + 1 => {
                *last = *last.start()..=(*last.end()).max(*range.end());
            }
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use socket2::{Domain, SockFilter, Socket, Type};
    use std::collections::BTreeSet;

    const OWN: &str = "192.0.2.1";
    const OWN6: &str = "2001:db8::1";

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn guarded(addresses: &[&str], ports: Vec<RangeInclusive<u16>>) -> Guarded {
        let addresses: BTreeSet<Ip> = addresses.iter().map(|text| ip(text)).collect();
        Guarded { links: BTreeSet::new(), addresses, ports }
    }

    /// A pair of sockets, at the second of which the kernel runs the program on what the first sends.
    struct Kernel(Socket, Socket);

    impl Kernel {
        fn with(program: &[Instruction]) -> Kernel {
            let (from, to) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
            let filter: Vec<SockFilter> =
                program.iter().map(|(code, jt, jf, k)| SockFilter::new(*code, *jt, *jf, *k)).collect();
            to.attach_filter(&filter).expect("the kernel takes the program");
            to.set_nonblocking(true).unwrap();
            Kernel(from, to)
        }

        /// What it returns for a frame longer than two bytes: a socket keeps so many of it.
        fn drops(&self, frame: &[u8]) -> bool {
            self.0.send(frame).unwrap();
            let mut buffer = [std::mem::MaybeUninit::uninit(); 256];
            match self.1.recv(&mut buffer) {
                Ok(length) if length == frame.len() => false,
                Ok(length) => {
                    assert_eq!(length as u32, DROP);
                    true
                }
                // Zero: of tc's actions that is TC_ACT_OK.
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    false
                }
            }
        }
    }

    fn frame(to: &str, protocol: u8, port: u16, flags: u8) -> Vec<u8> {
        let to = ip(to);
        let mut frame = vec![0; 12];
        if to.is_v4() {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 51, 100, 7]);
            frame.extend(&to.0[12..]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
            frame.extend(ip("2001:db8:ff::7").0);
            frame.extend(to.0);
        }
        frame.extend(443u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn only_what_the_stack_would_answer_with_a_reset_or_an_error_is_dropped() {
        let kernel =
            Kernel::with(&program(&guarded(&["192.0.2.9", OWN, OWN6], vec![61000..=65535, 30080..=30080])));
        const SYN: u8 = 0x02;
        let (ack, rst) = (ACK as u8, RST as u8);
        for own in [OWN, OWN6] {
            for port in [61000, 65535, 30080] {
                for flags in [ack, ack | SYN, ack | 0x01, ack | 0x08] {
                    assert!(kernel.drops(&frame(own, 6, port, flags)), "{own} {port} {flags:#x}");
                }
                for flags in [SYN, rst, rst | ack] {
                    assert!(!kernel.drops(&frame(own, 6, port, flags)), "{own} {port} {flags:#x}");
                }
                assert!(kernel.drops(&frame(own, 17, port, 0)), "{own} {port}");
                for other in [1, 58, 132] {
                    assert!(!kernel.drops(&frame(own, other, port, ack)), "{own} {port}");
                }
            }
            for port in [22, 60999, 30079, 30081] {
                assert!(!kernel.drops(&frame(own, 6, port, ack)) && !kernel.drops(&frame(own, 17, port, 0)));
            }
        }
        assert!(kernel.drops(&frame("192.0.2.9", 6, 61000, ack)));
        for other in ["192.0.2.2", "2001:db8::2", "2001:db9::1"] {
            assert!(!kernel.drops(&frame(other, 6, 61000, ack)), "{other}");
        }
    }

    #[test]
    fn options_are_skipped_and_fragments_and_cut_packets_pass() {
        let kernel = Kernel::with(&program(&guarded(&[OWN, OWN6], vec![61000..=61000])));
        let whole = frame(OWN, 6, 61000, ACK as u8);
        let mut with_options = whole.clone();
        with_options[14] = 0x46;
        with_options.splice(34..34, [1; 4]);
        assert!(kernel.drops(&with_options));
        let mut fragment = whole.clone();
        fragment[21] = 3;
        assert!(!kernel.drops(&fragment));
        let mut arp = whole.clone();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(!kernel.drops(&arp));
        for length in 3..whole.len().min(48) {
            assert!(!kernel.drops(&whole[..length]), "{length} bytes");
        }
    }

    #[test]
    fn without_addresses_or_ports_everything_passes() {
        for guarded in [guarded(&[], vec![61000..=65535]), guarded(&[OWN, OWN6], vec![])] {
            let kernel = Kernel::with(&program(&guarded));
            assert!(!kernel.drops(&frame(OWN, 6, 61000, ACK as u8)));
            assert!(!kernel.drops(&frame(OWN6, 17, 61000, 0)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn ports_are_dropped_exactly_if_they_are_in_a_range(
            ranges in prop::collection::vec((any::<u16>(), 0u16..300), 0..40),
            probes in prop::collection::vec(any::<u16>(), 30),
        ) {
            let ranges: Vec<_> = ranges.iter().map(|(first, n)| *first..=first.saturating_add(*n)).collect();
            let kernel = Kernel::with(&program(&guarded(&[OWN], ranges.clone())));
            let edges = ranges.iter().flat_map(|range| {
                [range.start().saturating_sub(1), *range.start(), *range.end(), range.end().saturating_add(1)]
            });
            for port in probes.into_iter().chain(edges) {
                let wanted = ranges.iter().any(|range| range.contains(&port));
                prop_assert_eq!(kernel.drops(&frame(OWN, 17, port, 0)), wanted, "port {}", port);
            }
        }
    }

    #[test]
    fn many_node_ports_still_make_a_program_that_the_kernel_takes() {
        // Every other port, and one far away: the gap to that is not closed.
        let mut ports: Vec<_> = (0..2000).map(|n| 30000 + 2 * n..=30000 + 2 * n).collect();
        ports.push(61000..=65535);
        let addresses: Vec<String> =
            (0..50).flat_map(|n| [format!("192.0.2.{n}"), format!("2001:db8::{n:x}")]).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let program = program(&guarded(&addresses, ports));
        assert!(program.len() <= 4096, "{} instructions", program.len());
        let kernel = Kernel::with(&program);
        for port in [30000, 31234, 33998, 61000] {
            assert!(kernel.drops(&frame("192.0.2.3", 17, port, 0)), "{port}");
        }
        for port in [29999, 34100, 60999] {
            assert!(!kernel.drops(&frame("192.0.2.3", 17, port, 0)), "{port}");
        }
    }
}
