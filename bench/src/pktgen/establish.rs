//! Flows are made established connections: one packet of each, and one answer. To connection tracking a flow that nobody
//! answers is new with every packet, and rules that concern new connections only, of which kube-proxy has some, are asked about each.

use crate::pktgen::frame::Stamp;
use crate::pktgen::generator::{Generator, Packet};
use crate::pktgen::trial::{End, Ends};
use fairway_dataplane::clock;
use fairway_dataplane::wire::{ETH_LEN, ipv4, ipv6, proto};
use fairway_pmd::{Burst, MAX_BURST};

/// Times that a flow without an answer is tried.
const ROUNDS: u32 = 5;
/// Time for a burst to come back.
const BURST_NS: u64 = 500_000;
/// Time for the last packets of a round.
const ROUND_NS: u64 = 50_000_000;

/// Sends a packet of every flow of the first stream, has the first sink answer it, and waits for the answer. Returns how many flows were
/// not answered.
pub fn run(generator: &Generator, len: usize, ends: &mut Ends) -> usize {
    let mut answered = vec![false; generator.plan().streams[0].flows as usize];
    for round in 0..ROUNDS {
        let missing: Vec<u32> =
            (0..).zip(&answered).filter(|(_, answered)| !**answered).map(|(flow, _)| flow).collect();
        for flows in missing.chunks(MAX_BURST) {
            ends.clients
                .first_mut()
                .into_iter()
                .for_each(|client| send(generator, flows, (round, len), client));
            serve(ends, &mut answered, BURST_NS);
        }
        if !missing.is_empty() {
            serve(ends, &mut answered, ROUND_NS);
        }
    }
    answered.iter().filter(|answered| !**answered).count()
}

fn send(generator: &Generator, flows: &[u32], (sequence, len): (u32, usize), end: &mut End) {
    let mut burst = Burst::new();
    for flow in flows {
        let Some(mut frame) = end.cache.alloc() else { break };
        if frame.reset(len) {
            generator.write(
                &Packet { stream: 0, flow: *flow, sequence, len },
                clock::tsc(),
                frame.bytes_mut(),
            );
            burst.push(frame);
        } else {
            end.cache.free(frame);
        }
    }
    give(end, &mut burst);
}

/// Answers what comes to the sink, and notes which flows' answers come back, for so long.
fn serve(ends: &mut Ends, answered: &mut [bool], duration_ns: u64) {
    let clocks = (duration_ns as f64 * clock::tsc_per_ns()) as u64;
    let start = clock::tsc();
    let Ends { clients, sinks, .. } = ends;
    let (Some(client), Some(server)) = (clients.first_mut(), sinks.first_mut()) else { return };
    while clock::tsc() - start < clocks {
        let mut burst = Burst::new();
        client.queue.rx_burst(&mut client.cache, &mut burst);
        for frame in burst.iter() {
            let flow = Stamp::of(frame.bytes()).and_then(|stamp| answered.get_mut(stamp.flow as usize));
            flow.into_iter().for_each(|answered| *answered = true);
        }
        client.cache.free_burst(&mut burst);
        if client.queue.tx_pending() > 0 {
            client.queue.kick(&mut client.cache);
        }
        let (mut came, mut answers) = (Burst::new(), Burst::new());
        server.queue.rx_burst(&mut server.cache, &mut came);
        for mut frame in came.drain(..) {
            if turn_around(frame.bytes_mut()) {
                answers.push(frame);
            } else {
                server.cache.free(frame);
            }
        }
        give(server, &mut answers);
    }
}

fn give(end: &mut End, burst: &mut Burst) {
    if !burst.is_empty() {
        end.queue.tx_burst(&mut end.cache, burst);
    }
    // What the driver does not take comes again in the next round.
    end.cache.free_burst(burst);
    if end.queue.tx_pending() > 0 {
        end.queue.kick(&mut end.cache);
    }
}

/// Makes a UDP packet of either family its own answer: checksums stay right when both ends change places. False if it is none.
fn turn_around(frame: &mut [u8]) -> bool {
    // Offsets of protocol, source address and transport header, and the address's length.
    let (protocol, addresses, l4, len) = match frame.get(12..ETH_LEN + 1) {
        Some([0x08, 0x00, 0x45]) => (ETH_LEN + 9, ETH_LEN + ipv4::SRC, ETH_LEN + ipv4::LEN, 4),
        Some([0x86, 0xdd, 0x60..=0x6f]) => (ETH_LEN + 6, ETH_LEN + ipv6::SRC, ETH_LEN + ipv6::LEN, 16),
        _ => return false,
    };
    let is_udp = frame.len() >= l4 + 8 && frame[protocol] == proto::UDP && Stamp::of(frame).is_some();
    if is_udp {
        for (at, len) in [(0, 6), (addresses, len), (l4, 2)] {
            let (one, other) = frame[at..at + 2 * len].split_at_mut(len);
            one.swap_with_slice(other);
        }
    }
    is_udp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::frame::STAMP_LEN;

    fn stamped(header: &[u8], protocol_at: usize, ports_at: usize) -> Vec<u8> {
        let mut frame = vec![0; ports_at + 8 + STAMP_LEN];
        frame[..6].fill(1);
        frame[6..12].fill(2);
        frame[12..12 + header.len()].copy_from_slice(header);
        frame[protocol_at] = proto::UDP;
        frame[ports_at..ports_at + 4].copy_from_slice(&[0, 7, 0, 8]);
        frame[ports_at + 8..]
            .copy_from_slice(&Stamp { trial: 1, flow: 9, sequence: 0, clocks: 5 }.to_bytes());
        frame
    }

    #[test]
    fn an_answer_has_its_ends_exchanged() {
        for (header, protocol_at, source_at, address_len, ports_at) in
            [(&[0x08, 0x00, 0x45][..], 23, 26, 4, 34), (&[0x86, 0xdd, 0x60][..], 20, 22, 16, 54)]
        {
            let mut frame = stamped(header, protocol_at, ports_at);
            frame[source_at..source_at + address_len].fill(3);
            frame[source_at + address_len..source_at + 2 * address_len].fill(4);
            assert!(turn_around(&mut frame));
            assert_eq!((frame[0], frame[6]), (2, 1));
            assert_eq!((frame[source_at], frame[source_at + address_len]), (4, 3));
            assert_eq!(frame[ports_at..ports_at + 4], [0, 8, 0, 7]);
            frame[protocol_at] = proto::TCP;
            assert!(!turn_around(&mut frame));
        }
    }
}
