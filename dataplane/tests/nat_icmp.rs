//! ICMP errors about connections whose source is translated, both ways and both families (RFC 5508 section 4): whoever is
//! told finds quoted the packet that he sent. Invariants I1 and I2 at the end of every test.

mod common;

use common::tuples::{Place, Step, frame, ip, sent};
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::packet::Headers;
use fairway_dataplane::testkit::packet6::Headers6;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::{ETH_LEN, be16, checksum, icmp, icmpv6, ipv4, ipv6, proto, put_raw16};
use fairway_tables::stats::Counter;
use fairway_tables::{Ip, Mac, PortId, Service, ServiceKey};

/// What errors are told about.
const KINDS: [(bool, u8); 8] = [
    (true, proto::TCP),
    (true, proto::UDP),
    (true, proto::SCTP),
    (true, proto::ICMP),
    (false, proto::TCP),
    (false, proto::UDP),
    (false, proto::SCTP),
    (false, proto::ICMPV6),
];

/// A router somewhere outside.
fn far(is_v4: bool) -> Ip {
    ip([198, 51, 100, 9], [0x20, 1, 0x0d, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], is_v4)
}

fn world() -> World {
    let mut world = World::new(WorldConfig::default());
    world.open_outside();
    world
}

/// "Too big" about the packet of a frame, in as much as fits the least that routers quote.
fn too_big(to: Mac, src: Ip, dst: Ip, about: &[u8]) -> Vec<u8> {
    let src_mac = Mac([2, 9, 9, 9, 9, 9]);
    let quoted = &about[ETH_LEN..];
    match (src.as_v4(), dst.as_v4()) {
        (Some(src), Some(dst)) => {
            let mut message = vec![0; icmp::LEN];
            message.extend_from_slice(&quoted[..28]);
            icmp::write_error(&mut message, icmp::UNREACHABLE, icmp::unreachable::FRAGMENTATION_NEEDED, 1300);
            Headers { dst_mac: to, src_mac, src, dst, ttl: 60 }.around(proto::ICMP, &message)
        }
        _ => {
            let headers = Headers6 { dst_mac: to, src_mac, src: src.0, dst: dst.0, hop_limit: 60 };
            headers.icmp(icmpv6::PACKET_TOO_BIG, 0, 1300u32.to_be_bytes(), quoted)
        }
    }
}

/// Source, destination, MTU and quotation of an ICMP error whose checksums are right.
fn read(frame: &[u8]) -> (Ip, Ip, u16, Vec<u8>) {
    let packet = &frame[ETH_LEN..];
    if packet[0] >> 4 == 4 {
        let seen = common::look(frame);
        (Ip::v4(seen.src), Ip::v4(seen.dst), be16(packet, 26), packet[28..].to_vec())
    } else {
        let address = |at: usize| Ip(packet[at..at + 16].try_into().unwrap());
        let (src, dst) = (address(ipv6::SRC), address(ipv6::DST));
        assert!(icmpv6::checksum_ok(&src.0, &dst.0, &packet[ipv6::LEN..]));
        (src, dst, be16(packet, 46), packet[48..].to_vec())
    }
}

/// A quotation equals the packet of a frame but for the TTL.
fn is_of(quoted: &[u8], frame: &[u8]) {
    let mut packet = frame[ETH_LEN..][..quoted.len()].to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] = quoted[8];
        put_raw16(&mut packet, ipv4::CHECKSUM, 0);
        let sum = checksum::checksum(&packet[..ipv4::LEN]);
        put_raw16(&mut packet, ipv4::CHECKSUM, sum);
    } else {
        packet[ipv6::HOP_LIMIT] = quoted[ipv6::HOP_LIMIT];
    }
    assert_eq!(quoted, packet);
}

fn outgoing(is_v4: bool, protocol: u8) -> Tuple {
    let (src, dst) = (ip(addr::pod(0), addr::pod6(0), is_v4), ip(addr::outside(1), addr::outside6(1), is_v4));
    let dport = if matches!(protocol, proto::TCP | proto::UDP | proto::SCTP) { 443 } else { 40_000 };
    Tuple { src, dst, sport: 40_000, dport, proto: protocol }
}

fn forward(world: &mut World, port: PortId, frame: &[u8]) -> (PortId, Vec<u8>) {
    world.send(port, frame).expect("forwarded")
}

/// A pod opens a connection to the outside: its tuples as the pod and as the outside see it, and the frames that the
/// pod and then the node send.
fn open_outwards(world: &mut World, is_v4: bool, protocol: u8) -> ([Tuple; 2], [Vec<u8>; 2]) {
    let arrives = outgoing(is_v4, protocol);
    let by_pod = frame(Place::Pod(0), &arrives, Step::Open);
    let (_, by_node) = forward(world, addr::pod_port(0), &by_pod);
    ([arrives, sent(addr::UPLINK, &by_node).1], [by_pod, by_node])
}

#[test]
fn a_pod_is_told_by_routers_and_stations_outside_about_the_packet_that_it_sent() {
    for (is_v4, protocol) in KINDS {
        let mut world = world();
        let ([arrives, leaves], [by_pod, by_node]) = open_outwards(&mut world, is_v4, protocol);
        for teller in [far(is_v4), arrives.dst] {
            let error = too_big(addr::UPLINK_MAC, teller, leaves.src, &by_node);
            let (port, out) = forward(&mut world, addr::UPLINK, &error);
            let (src, dst, mtu, quoted) = read(&out);
            assert_eq!((port, src, dst, mtu), (addr::pod_port(0), teller, arrives.src, 1300));
            is_of(&quoted, &by_pod);
        }
        assert_eq!(world.worker.counters.get(Counter::IcmpTranslated), 2);
        world.finish();
    }
}

#[test]
fn a_station_outside_is_told_by_the_pod_as_by_the_node() {
    for (is_v4, protocol) in KINDS {
        let mut world = world();
        let ([arrives, leaves], _) = open_outwards(&mut world, is_v4, protocol);
        let by_station = frame(Place::Wire, &leaves.reversed(), Step::Answer);
        let (port, to_pod) = forward(&mut world, addr::UPLINK, &by_station);
        assert_eq!(port, addr::pod_port(0));
        let error = too_big(addr::GATEWAY_MAC, arrives.src, arrives.dst, &to_pod);
        let (port, out) = forward(&mut world, addr::pod_port(0), &error);
        let (src, dst, _, quoted) = read(&out);
        assert_eq!(
            (port, src, dst),
            (addr::UPLINK, leaves.src, leaves.dst),
            "pods' addresses mean nothing there"
        );
        is_of(&quoted, &by_station);
        world.finish();
    }
}

#[test]
fn the_engine_itself_speaks_to_the_outside_from_the_address_that_is_known_there() {
    for (is_v4, protocol) in KINDS {
        let mut world = world();
        let ([_, leaves], _) = open_outwards(&mut world, is_v4, protocol);
        let mut expired = frame(Place::Wire, &leaves.reversed(), Step::Answer);
        if is_v4 {
            expired[ETH_LEN + 8] = 1;
            put_raw16(&mut expired, ETH_LEN + ipv4::CHECKSUM, 0);
            let sum = checksum::checksum(&expired[ETH_LEN..ETH_LEN + ipv4::LEN]);
            put_raw16(&mut expired, ETH_LEN + ipv4::CHECKSUM, sum);
        } else {
            expired[ETH_LEN + ipv6::HOP_LIMIT] = 1;
        }
        let (port, out) = forward(&mut world, addr::UPLINK, &expired);
        let (src, dst, _, quoted) = read(&out);
        assert_eq!((port, src, dst), (addr::UPLINK, leaves.src, leaves.dst));
        is_of(&quoted, &expired);
        world.finish();
    }
}

#[test]
fn what_is_told_about_the_nodes_own_packets_goes_to_its_stack_unchanged() {
    for (is_v4, protocol) in KINDS {
        let mut world = world();
        let own = ip(addr::NODE, addr::NODE6, is_v4);
        let about = frame(Place::Wire, &Tuple { src: own, ..outgoing(is_v4, protocol) }, Step::Open);
        let error = too_big(addr::UPLINK_MAC, far(is_v4), own, &about);
        let (port, out) = forward(&mut world, addr::UPLINK, &error);
        assert_eq!((port, read(&out)), (addr::HOST, read(&error)));
        world.finish();
    }
}

#[test]
fn a_backend_of_a_service_that_masquerades_is_told_by_this_node() {
    for (is_v4, protocol) in
        KINDS.into_iter().filter(|(_, proto)| matches!(*proto, proto::TCP | proto::UDP | proto::SCTP))
    {
        let mut world = world();
        let own = ip(addr::NODE, addr::NODE6, is_v4);
        let backend = ip(addr::pod(1), addr::pod6(1), is_v4);
        let service = Service { id: 1, flags: Service::MASQUERADE, affinity_timeout_s: 0 };
        world.set_service_record(ServiceKey::new(own, 30_080, protocol), service, &[(backend, 8080)]);
        let client = ip(addr::outside(1), addr::outside6(1), is_v4);
        let arrives = Tuple { src: client, dst: own, sport: 50_000, dport: 30_080, proto: protocol };
        let (_, at_backend) = forward(&mut world, addr::UPLINK, &frame(Place::Wire, &arrives, Step::Open));
        let leaves = sent(addr::pod_port(1), &at_backend).1;
        let by_backend = frame(Place::Pod(1), &leaves.reversed(), Step::Answer);
        let (_, at_client) = forward(&mut world, addr::pod_port(1), &by_backend);
        // Of a router near the client the backend's node would not believe that it speaks through this one.
        for teller in [far(is_v4), client] {
            let error = too_big(addr::UPLINK_MAC, teller, own, &at_client);
            let (port, out) = forward(&mut world, addr::UPLINK, &error);
            let (src, dst, mtu, quoted) = read(&out);
            assert_eq!((port, src, dst, mtu), (addr::pod_port(1), leaves.src, backend, 1300));
            is_of(&quoted, &by_backend);
        }
        world.finish();
    }
}
