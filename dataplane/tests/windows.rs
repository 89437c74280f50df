//! TCP windows (docs/conntrack.md, "Strict tracking") through `process()`: what is outside of a connection's window is a
//! drop of its own and changes nothing, whatever the way; what is not tracked so is left alone. The rules one by one, and a
//! model of two TCP ends, are in src/conntrack/tests/.

mod common;

use common::dsr::{At, set, vip};
use common::{drops, look};
use fairway_dataplane::conntrack::{Conntrack, Direction, State, Timeouts, Tracked, Tuple};
use fairway_dataplane::testkit::packet::Segment;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::tcp_flags::{ACK, FIN, RST, SYN};
use fairway_dataplane::wire::{ETH_LEN, proto, tcp};
use fairway_tables::{DropReason, Ip, PortId, ServiceKey};
use std::sync::mpsc;

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const CLIENT: u32 = 0xffff_fff0;
const SERVER: u32 = 7_000_000;
const SHIFT: u8 = 7;
const WINDOW: u16 = 500;

/// A way between a client, pod 0 of this node, and a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Pod 1 of this node.
    Pod,
    /// The same over IPv6.
    Pod6,
    /// A pod of another node, through a Service and VXLAN.
    Service,
}

const WAYS: [Way; 3] = [Way::Pod, Way::Pod6, Way::Service];

fn world(liberal: bool) -> World {
    let mut world = World::new(WorldConfig::default());
    world.worker.conntrack = world.worker.conntrack.clone().tcp_liberal(liberal);
    world.set_service(SERVICE, 80, proto::TCP, 1, &[(addr::remote_pod(0, 7), 80)]);
    world
}

impl Way {
    fn client(self, segment: Segment, data: &[u8]) -> (PortId, Vec<u8>) {
        let frame = match self {
            Way::Pod => addr::from_pod(0, addr::pod(1)).segment(4000, 80, &segment, data),
            Way::Pod6 => addr::from_pod6(0, addr::pod6(1)).segment(4000, 80, &segment, data),
            Way::Service => addr::from_pod(0, SERVICE).segment(4000, 80, &segment, data),
        };
        (addr::pod_port(0), frame)
    }

    fn server(self, segment: Segment, data: &[u8]) -> (PortId, Vec<u8>) {
        match self {
            Way::Pod => {
                (addr::pod_port(1), addr::from_pod(1, addr::pod(0)).segment(80, 4000, &segment, data))
            }
            Way::Pod6 => {
                (addr::pod_port(1), addr::from_pod6(1, addr::pod6(0)).segment(80, 4000, &segment, data))
            }
            Way::Service => {
                let inner = addr::from_remote(addr::remote_pod(0, 7), addr::pod(0));
                let inner = inner.segment(80, 4000, &segment, data);
                (addr::UPLINK, packet::encapsulate(&addr::encap_from(0), &inner, 50_000))
            }
        }
    }

    fn tuple(self) -> Tuple {
        let (src, dst) = match self {
            Way::Pod => (Ip::v4(addr::pod(0)), Ip::v4(addr::pod(1))),
            Way::Pod6 => (Ip(addr::pod6(0)), Ip(addr::pod6(1))),
            Way::Service => (Ip::v4(addr::pod(0)), Ip::v4(SERVICE)),
        };
        Tuple { src, dst, sport: 4000, dport: 80, proto: proto::TCP }
    }

    fn state(self, world: &World) -> State {
        world.worker.conntrack.lookup(&self.tuple()).expect("the connection is there").state
    }
}

fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
    let shift = (flags & SYN != 0).then_some(SHIFT);
    Segment { flags, seq, ack, window: WINDOW, shift }
}

fn client(n: i64) -> u32 {
    CLIENT.wrapping_add(1).wrapping_add(n as u32)
}

fn server(n: i64) -> u32 {
    SERVER.wrapping_add(1).wrapping_add(n as u32)
}

fn passes(world: &mut World, (port, frame): (PortId, Vec<u8>)) {
    assert!(world.send(port, &frame).is_some(), "dropped: {:?}", dropped(world));
}

fn is_dropped(world: &mut World, (port, frame): (PortId, Vec<u8>)) {
    let before = dropped(world);
    assert_eq!(world.send(port, &frame), None);
    assert_eq!(dropped(world), before + 1, "counted by its reason");
}

fn dropped(world: &World) -> u64 {
    assert_eq!(world.worker.counters.all_drops(), drops(world, DropReason::OutOfWindow));
    drops(world, DropReason::OutOfWindow)
}

fn establish(world: &mut World, way: Way) {
    passes(world, way.client(segment(SYN, CLIENT, 0), b""));
    passes(world, way.server(segment(SYN | ACK, SERVER, client(0)), b""));
    passes(world, way.client(segment(ACK, client(0), server(0)), b""));
    passes(world, way.server(segment(ACK, server(0), client(0)), b""));
    assert_eq!(way.state(world), State::Established);
}

#[test]
fn what_is_outside_of_the_window_is_a_drop_of_its_own_and_changes_nothing() {
    for way in WAYS {
        let mut world = world(false);
        establish(&mut world, way);
        let offered = i64::from(WINDOW) << SHIFT;
        for n in [offered + 1, -(offered + offered / 8 + 20), 1 << 31] {
            for flags in [ACK, ACK | FIN, RST, RST | ACK, SYN | ACK] {
                is_dropped(&mut world, way.client(segment(flags, client(n), server(0)), b"forged"));
                is_dropped(&mut world, way.server(segment(flags, server(n), client(0)), b"forged"));
            }
        }
        is_dropped(&mut world, way.server(segment(ACK, server(0), client(1)), b"acknowledges too much"));
        is_dropped(&mut world, way.client(segment(0, client(0), 0), b"no ACK"));
        assert_eq!(way.state(&world), State::Established);
        for n in 0..200 {
            passes(&mut world, way.client(segment(ACK, client(n * 10), server(n * 10)), b"0123456789"));
            let answer = segment(ACK, server(n * 10), client((n + 1) * 10));
            passes(&mut world, way.server(answer, b"9876543210"));
        }
        passes(&mut world, way.client(segment(ACK | FIN, client(2000), server(2000)), b""));
        passes(&mut world, way.server(segment(ACK | FIN, server(2000), client(2001)), b""));
        passes(&mut world, way.client(segment(ACK, client(2001), server(2001)), b""));
        assert_eq!(way.state(&world), State::TimeWait);
        // A new connection on the same ports, with whatever numbers.
        passes(&mut world, way.client(segment(SYN, 5, 0), b""));
        assert_eq!(way.state(&world), State::New);
        world.finish();
    }
}

#[test]
fn a_reset_ends_a_connection_only_with_the_very_number() {
    for way in WAYS {
        let mut world = world(false);
        establish(&mut world, way);
        passes(&mut world, way.client(segment(ACK, client(0), server(0)), b"twenty bytes in here"));
        // In the window, but another number: the pod itself asks whether it is meant (RFC 5961 section 3.2).
        passes(&mut world, way.client(segment(RST, client(10), 0), b""));
        assert_eq!(way.state(&world), State::Established);
        passes(&mut world, way.server(segment(ACK, server(0), client(20)), b""));
        passes(&mut world, way.client(segment(RST, client(20), 0), b""));
        assert_eq!(way.state(&world), State::Closed);
        world.finish();
    }
}

#[test]
fn without_the_option_no_number_is_looked_at() {
    for way in WAYS {
        let mut world = world(true);
        establish(&mut world, way);
        passes(&mut world, way.client(segment(ACK, client(1 << 31), server(1 << 31)), b"any"));
        passes(&mut world, way.server(segment(ACK, server(1 << 31), client(1 << 30)), b"any"));
        passes(&mut world, way.client(segment(RST, client(1 << 30), 0), b""));
        assert_eq!(way.state(&world), State::Closed);
        world.finish();
    }
}

#[test]
fn the_next_engine_learns_what_passed_by_the_kernel_and_is_strict_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("conntrack");
    let open = |liberal| Conntrack::open(&file, 1024, Timeouts::default()).unwrap().tcp_liberal(liberal);
    for way in WAYS {
        for between in [false, true] {
            let mut world = world(false);
            let other = || Conntrack::heap(64, Timeouts::default()).unwrap();
            world.worker.conntrack = other();
            let _ = std::fs::remove_file(&file);
            world.worker.conntrack = open(false);
            establish(&mut world, way);
            // Gone, and perhaps one in between that does not look at windows.
            world.worker.conntrack = other();
            if between {
                world.worker.conntrack = open(true);
                passes(&mut world, way.client(segment(ACK, client(500_000_000), server(0)), b"x"));
                world.worker.conntrack = other();
            }
            world.worker.conntrack = open(false);
            let (n, m) = (900_000_000, 300_000_000);
            passes(&mut world, way.client(segment(ACK, client(n), server(m)), b"0123456789"));
            passes(&mut world, way.server(segment(ACK, server(m), client(n + 10)), b"0123456789"));
            passes(&mut world, way.client(segment(ACK, client(n + 10), server(m + 10)), b"0123456789"));
            is_dropped(&mut world, way.client(segment(ACK, client(0), server(0)), b"0123456789"));
            is_dropped(&mut world, way.server(segment(RST, server(m + 100_000_000), 0), b""));
            assert_eq!(way.state(&world), State::Established);
            world.worker.conntrack = other();
            world.finish();
        }
    }
}

#[test]
fn a_connection_found_under_way_is_never_cut() {
    for way in WAYS {
        let mut world = world(false);
        // Services' answers belong to nothing without their question.
        for n in 0..100 {
            passes(&mut world, way.client(segment(ACK, client(n * 1_000_000), server(n * 77)), b"x"));
        }
        passes(&mut world, way.server(segment(ACK, server(99 * 77), client(99_000_001)), b"x"));
        is_dropped(&mut world, way.server(segment(ACK, server(99 * 77 + 2_000_000_000), 0), b"x"));
        world.finish();
    }
}

#[test]
fn a_connection_left_to_another_node_is_not_looked_at() {
    let mut world = common::dsr::world();
    world.worker.conntrack = world.worker.conntrack.clone().tcp_liberal(false);
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    set(&mut world, key, &[At::There(1)]);
    let headers = packet::Headers {
        dst_mac: addr::UPLINK_MAC,
        src_mac: addr::EXIT_MAC,
        src: addr::outside(1),
        dst: vip(true).as_v4().unwrap(),
        ttl: 64,
    };
    for (flags, n) in [(SYN, -1), (ACK, 0), (ACK, 1 << 20), (ACK, 1 << 31), (ACK, 5)] {
        passes(&mut world, (addr::UPLINK, headers.segment(4000, 80, &segment(flags, client(n), 9), b"")));
    }
    world.finish();
}

#[test]
fn a_segment_in_fragments_is_judged_by_its_first() {
    let mut world = world(false);
    let way = Way::Pod;
    establish(&mut world, way);
    let cut = |n| {
        let (port, mut frame) = way.client(segment(ACK, client(n), server(0)), &[7; 1200]);
        packet::allow_fragments(&mut frame);
        (port, packet::fragments(&frame, 800))
    };
    let (port, forged) = cut(1 << 30);
    // The rest has no numbers, and is of no use by itself.
    assert_eq!(world.burst(port, &forged).len(), 1);
    assert_eq!(dropped(&world), 1);
    let (port, fragments) = cut(0);
    assert_eq!(world.burst(port, &fragments).len(), 2);
    passes(&mut world, way.server(segment(ACK, server(0), client(1200)), b""));
    world.finish();
}

#[test]
fn a_drop_is_told_nobody_and_the_packet_before_and_after_pass() {
    let mut world = world(false);
    let way = Way::Pod;
    establish(&mut world, way);
    let burst: Vec<_> =
        [0, 1 << 30, 10].map(|n| way.client(segment(ACK, client(n), server(0)), b"0123456789").1).into();
    let sent = world.burst(addr::pod_port(0), &burst);
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|(port, frame)| *port == addr::pod_port(1) && look(frame).dport == 80));
    assert_eq!(dropped(&world), 1);
    world.finish();
}

/// Two workers, each with one direction of the same connections, as an uplink's and a pod's are.
#[test]
fn two_workers_see_one_direction_each_and_drop_nothing() {
    const SEGMENTS: u32 = 200_000;
    let table = Conntrack::heap(64, Timeouts::default()).unwrap().tcp_liberal(false);
    let original = Way::Pod.tuple();
    let read = |frame: &[u8]| tcp::Segment::parse(&frame[ETH_LEN + 20..], true);
    let of_client = |n, data: &[u8]| read(&Way::Pod.client(segment(ACK, n, server(0)), data).1);
    let syn = read(&Way::Pod.client(segment(SYN, CLIENT, 0), b"").1);
    let conn = table.insert_tracked(&original, &original.reversed(), &syn, None, 1).unwrap().conn;
    let syn_ack = read(&Way::Pod.server(segment(SYN | ACK, SERVER, client(0)), b"").1);
    assert_eq!(table.track(conn, Direction::Reply, &syn_ack, 1), Tracked::Fine);
    let track = |direction, segment| assert_eq!(table.track(conn, direction, &segment, 1), Tracked::Fine);
    track(Direction::Original, of_client(client(0), b""));
    let (to_server, at_server) = mpsc::channel::<u32>();
    let (to_client, at_client) = mpsc::channel::<u32>();
    let first = of_client(client(0), b"0123456789");
    let answer = read(&Way::Pod.server(segment(ACK, server(0), client(0)), b"").1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for end in at_server {
                track(Direction::Reply, tcp::Segment { ack: end, sack: end, ..answer });
                to_client.send(end).unwrap();
            }
            drop(to_client);
        });
        let mut acknowledged = client(0);
        for n in 0..SEGMENTS {
            let seq = client(i64::from(n) * 10);
            // At most what was offered with the SYN-ACK is on its way.
            while seq.wrapping_add(10).wrapping_sub(acknowledged) > u32::from(WINDOW) {
                acknowledged = at_client.recv().unwrap();
            }
            track(Direction::Original, tcp::Segment { seq, ..first });
            to_server.send(seq.wrapping_add(10)).unwrap();
        }
        drop(to_server);
    });
    let outside = tcp::Segment { seq: client(1 << 30), ..first };
    assert_eq!(table.track(conn, Direction::Original, &outside, 1), Tracked::Outside);
}
