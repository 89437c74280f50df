//! The XDP steering program on real veths in network namespaces: what it takes, what it leaves to the kernel, and
//! that it is gone when its process is.

mod netns;

use fairway_pmd::af_xdp::{AfXdp, AfXdpConfig, AfXdpError};
use fairway_pmd::steering::{AttachMode, PortClass, Protocol, Steering, SteeringError, SteeringStats};
use fairway_pmd::{Burst, Queue, Umem, UmemConfig};
use netns::{Netns, PacketSocket, eventually, privileged};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

const ENGINE: [u8; 4] = [10, 9, 0, 254];
const ENGINE6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe];

/// The engine's namespace, with an address of its own on its end of the veth `va`, and what is behind it.
struct Wire {
    engine: Netns,
    peer: Netns,
}

impl Wire {
    fn new() -> Wire {
        let (engine, peer) = (Netns::new("e"), Netns::new("p"));
        engine.veth("va", &peer, "10.9.0.1/24", 1);
        engine.ip("address add 10.9.0.254/24 dev va");
        Wire { engine, peer }
    }

    fn pings(&self) -> bool {
        self.peer.try_sh("ping -n -c 1 -W 1 10.9.0.254").status.success()
    }
}

fn umem() -> Umem {
    Umem::new(UmemConfig { frames: 1024, frame_size: 2048, huge_pages: false }).unwrap()
}

/// An Ethernet frame to everyone with this type and payload.
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet; checksums are left zero, as steering does not look at them.
fn ipv4(destination: [u8; 4], protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x40 | (5 + options.len() / 4) as u8, 0];
    packet.extend((20 + options.len() as u16 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 9, 0, 1]);
    packet.extend(destination);
    packet.extend(options);
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

fn ipv6(destination: [u8; 16], next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(destination);
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

fn udp(destination_port: u16) -> Vec<u8> {
    let mut datagram = vec![0xc0, 0x01];
    datagram.extend(destination_port.to_be_bytes());
    datagram.extend([0, 16, 0, 0, 8, 0, 0, 0, 0, 0, 42, 0]);
    datagram
}

fn udp_from(source_port: u16) -> Vec<u8> {
    let mut datagram = udp(53);
    datagram[..2].copy_from_slice(&source_port.to_be_bytes());
    datagram
}

/// An ICMP or ICMPv6 message with an identifier.
fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    vec![kind, 0, 0, 0, high, low, 0, 1]
}

/// An ICMP error to the engine about the packet of a frame.
fn error_about(frame: Vec<u8>) -> Vec<u8> {
    ipv4(ENGINE, 1, 0, &[], &[&[3, 4, 0, 0, 0, 0, 5, 220][..], &frame[14..]].concat())
}

fn error_about6(frame: Vec<u8>) -> Vec<u8> {
    ipv6(ENGINE6, 58, &[&[2, 0, 0, 0, 0, 0, 5, 0][..], &frame[14..]].concat())
}

/// What Linux's ip6tnl puts in front of a packet: an encapsulation limit of 4 (RFC 2473 section 4.1.1).
fn limited(next: u8) -> Vec<u8> {
    [&[next, 0, 4, 1, 4, 1, 0, 0][..], &[0x60; 40]].concat()
}

/// Sends a frame and says what the program counted it as. Nothing else may be on the wire.
fn counted(steering: &Steering, from: &PacketSocket, frame: &[u8]) -> SteeringStats {
    let before = steering.stats().unwrap();
    from.send(frame);
    let mut after = before;
    eventually("counting", || {
        after = steering.stats().unwrap();
        after != before
    });
    SteeringStats {
        redirected: after.redirected - before.redirected,
        passed: after.passed - before.passed,
        fallback: after.fallback - before.fallback,
        unknown: after.unknown - before.unknown,
    }
}

#[test]
fn an_uplink_takes_tunnels_to_this_node_and_leaves_all_else_to_the_kernel() {
    if !privileged("steering on an uplink") {
        return;
    }
    let net = Wire::new();
    let from = net.peer.packet_socket("eth0");
    let umem = umem();
    let (v4, v6) = (IpAddr::from(ENGINE), IpAddr::from(ENGINE6));
    net.engine.run(|| {
        let mut steering = Steering::load().unwrap();
        steering.set_node(&[v4, v6, IpAddr::from([10, 9, 0, 77])], &[4789, 6081]).unwrap();
        // Changed by difference: one address and one port less, one port more.
        steering.set_node(&[v4, v6], &[8472, 4789]).unwrap();
        let (pods, far) = (IpAddr::from([10, 244, 1, 0]), IpAddr::from([10, 244, 2, 0]));
        let protocol = |number, over_ipv6| Protocol { number, over_ipv6 };
        steering.set_protocols(&[protocol(4, false), protocol(47, false), protocol(47, true)]).unwrap();
        steering.set_protocols(&[protocol(4, false), protocol(41, true)]).unwrap();
        steering.set_pod_prefixes(&[(pods, 24), (far, 24)]).unwrap();
        let mut pod6 = ENGINE6;
        pod6[4] = 9;
        steering.set_pod_prefixes(&[(pods, 24), (IpAddr::from(pod6), 64)]).unwrap();
        let services = |list: &[(IpAddr, u16, u8)]| list.iter().copied().collect();
        let balancer = IpAddr::from([203, 0, 113, 1]);
        steering.set_frontends(services(&[(v4, 30000, 6), (balancer, 80, 17)])).unwrap();
        steering.set_frontends(services(&[(v4, 30000, 6), (v6, 30000, 132), (v4, 30001, 17)])).unwrap();
        // By difference here as well: first other ports and an address more.
        steering.set_snat(&[v4, v6, IpAddr::from([10, 9, 0, 77])], &(1000..=2000)).unwrap();
        steering.set_snat(&[v4, v6], &(61_000..=65_535)).unwrap();
        steering.attach("va", PortClass::Uplink).unwrap();
        let mut va = AfXdp::new(&umem).open("va", 0, &AfXdpConfig::pod()).unwrap().remove(0);
        steering.register_queues([&va]).unwrap();

        let taken = SteeringStats { redirected: 1, ..SteeringStats::default() };
        let passed = SteeringStats { passed: 1, ..SteeringStats::default() };
        let vlan = [&[0, 5, 8, 0][..], &ipv4(ENGINE, 17, 0, &[], &udp(4789))[14..]].concat();
        let mut short_ihl = ipv4(ENGINE, 17, 0, &[], &udp(4789));
        short_ihl[14] = 0x44;
        let cases: Vec<(&str, Vec<u8>, SteeringStats)> = vec![
            ("a node port over TCP", ipv4(ENGINE, 6, 0, &[], &udp(30000)), taken),
            ("a node port behind IPv4 options", ipv4(ENGINE, 6, 0, &[1; 8], &udp(30000)), taken),
            ("a node port over UDP", ipv4(ENGINE, 17, 0, &[], &udp(30001)), taken),
            ("a node port over SCTP and IPv6", ipv6(ENGINE6, 132, &udp(30000)), taken),
            ("a node port of another protocol", ipv4(ENGINE, 17, 0, &[], &udp(30000)), passed),
            ("a node port of another node", ipv4([10, 9, 0, 99], 6, 0, &[], &udp(30000)), passed),
            ("a fragment to a node port", ipv4(ENGINE, 6, 0x2000, &[], &udp(30000)), passed),
            ("a service that was taken away", ipv4([203, 0, 113, 1], 17, 0, &[], &udp(80)), passed),
            ("VXLAN over IPv4", ipv4(ENGINE, 17, 0, &[], &udp(4789)), taken),
            ("VXLAN, don't fragment", ipv4(ENGINE, 17, 0x4000, &[], &udp(4789)), taken),
            ("VXLAN behind IPv4 options", ipv4(ENGINE, 17, 0, &[1; 8], &udp(4789)), taken),
            (
                "the port among the options is not the port",
                ipv4(ENGINE, 17, 0, &udp(4789)[..8], &udp(53)),
                passed,
            ),
            ("a second tunnel port", ipv4(ENGINE, 17, 0, &[], &udp(8472)), taken),
            ("VXLAN over IPv6", ipv6(ENGINE6, 17, &udp(4789)), taken),
            ("a tunnel port that was taken away", ipv4(ENGINE, 17, 0, &[], &udp(6081)), passed),
            ("VXLAN to an address that was taken away", ipv4([10, 9, 0, 77], 17, 0, &[], &udp(4789)), passed),
            ("VXLAN to another node", ipv4([10, 9, 0, 99], 17, 0, &[], &udp(4789)), passed),
            ("VXLAN to another node over IPv6", ipv6([0xfd; 16], 17, &udp(4789)), passed),
            ("IPv4 in IPv4", ipv4(ENGINE, 4, 0, &[], &[0x45; 20]), taken),
            ("IPv4 in IPv4 behind options", ipv4(ENGINE, 4, 0, &[1; 8], &[0x45; 20]), taken),
            ("IPv4 in IPv4 to another node", ipv4([10, 9, 0, 99], 4, 0, &[], &[0x45; 20]), passed),
            ("a fragment of IPv4 in IPv4", ipv4(ENGINE, 4, 0x2000, &[], &[0x45; 24]), passed),
            ("a protocol that was taken away", ipv4(ENGINE, 47, 0, &[], &[0; 20]), passed),
            ("IPv6 in IPv4, where only the other is taken", ipv4(ENGINE, 41, 0, &[], &[0x60; 40]), passed),
            ("IPv6 in IPv6", ipv6(ENGINE6, 41, &[0x60; 40]), taken),
            ("IPv6 in IPv6 behind an encapsulation limit", ipv6(ENGINE6, 60, &limited(41)), taken),
            ("IPv4 in IPv6 behind an encapsulation limit", ipv6(ENGINE6, 60, &limited(4)), passed),
            ("IPv6 in IPv6 to another node", ipv6([0xfd; 16], 41, &[0x60; 40]), passed),
            (
                "a fragment of IPv6 in IPv6",
                ipv6(ENGINE6, 44, &[41, 0, 0, 1, 0, 0, 0, 1, 0x60, 0, 0, 0]),
                passed,
            ),
            ("IPv4 in IPv6, where only the other is taken", ipv6(ENGINE6, 4, &[0x45; 20]), passed),
            ("a protocol over IPv6 that was taken away", ipv6(ENGINE6, 47, &[0; 20]), passed),
            ("to a pod, any protocol", ipv4([10, 244, 1, 255], 132, 0, &[], &[0; 20]), taken),
            ("a fragment to a pod", ipv4([10, 244, 1, 7], 17, 0x0010, &[], &[0; 20]), taken),
            ("IPv6 to a pod, any next header", ipv6(pod6, 58, &[0; 8]), taken),
            ("IPv6 beside the pods", ipv6([0xfd; 16], 58, &[0; 8]), passed),
            ("beside the pods", ipv4([10, 244, 0, 255], 17, 0, &[], &udp(4789)), passed),
            ("to pods that were taken away", ipv4([10, 244, 2, 7], 17, 0, &[], &udp(53)), passed),
            ("DNS", ipv4(ENGINE, 17, 0, &[], &udp(53)), passed),
            ("TCP to port 4789", ipv4(ENGINE, 6, 0, &[], &udp(4789)), passed),
            ("a first fragment", ipv4(ENGINE, 17, 0x2000, &[], &udp(4789)), passed),
            ("a later fragment", ipv4(ENGINE, 17, 0x0010, &[], &udp(4789)), passed),
            ("IPv6 with an extension header", ipv6(ENGINE6, 0, &udp(4789)), passed),
            ("a truncated UDP header", ipv4(ENGINE, 17, 0, &[], &udp(4789)[..6]), passed),
            ("an IPv4 header length that is too short", short_ihl, passed),
            ("UDP to the first port of translated sources", ipv4(ENGINE, 17, 0, &[], &udp(61_000)), taken),
            ("UDP to the last of them, behind options", ipv4(ENGINE, 17, 0, &[1; 8], &udp(65_535)), taken),
            ("UDP to the port before them", ipv4(ENGINE, 17, 0, &[], &udp(60_999)), passed),
            ("TCP to one of them", ipv4(ENGINE, 6, 0, &[], &udp(62_000)), taken),
            ("a fragment to one of them", ipv4(ENGINE, 17, 0x2000, &[], &udp(62_000)), passed),
            ("to one of them at another address", ipv4([10, 9, 0, 77], 17, 0, &[], &udp(62_000)), passed),
            ("UDP over IPv6 to one of them", ipv6(ENGINE6, 17, &udp(62_000)), taken),
            ("SCTP to one of them", ipv4(ENGINE, 132, 0, &[], &udp(62_000)), taken),
            ("a protocol without ports", ipv4(ENGINE, 47, 0, &[], &udp(62_000)), passed),
            ("an echo reply with such an identifier", ipv4(ENGINE, 1, 0, &[], &echo(0, 62_000)), taken),
            ("an echo reply with another", ipv4(ENGINE, 1, 0, &[], &echo(0, 7)), passed),
            ("an echo request is the kernel's", ipv4(ENGINE, 1, 0, &[], &echo(8, 62_000)), passed),
            ("an ICMPv6 echo reply", ipv6(ENGINE6, 58, &echo(129, 62_000)), taken),
            ("an ICMPv6 echo request", ipv6(ENGINE6, 58, &echo(128, 62_000)), passed),
            ("an error about UDP", error_about(ipv4([8; 4], 17, 0, &[], &udp_from(62_000))), taken),
            (
                "an error about UDP behind options",
                error_about(ipv4([8; 4], 17, 0, &[1; 8], &udp_from(62_000))),
                taken,
            ),
            (
                "an error about the node's own UDP",
                error_about(ipv4([8; 4], 17, 0, &[], &udp_from(40_000))),
                passed,
            ),
            ("an error about an echo", error_about(ipv4([8; 4], 1, 0, &[], &echo(8, 62_000))), taken),
            ("an error about the node's own echo", error_about(ipv4([8; 4], 1, 0, &[], &echo(8, 7))), passed),
            ("an ICMPv6 error about TCP", error_about6(ipv6([8; 16], 6, &udp_from(62_000))), taken),
            (
                "an ICMPv6 error about the node's own TCP",
                error_about6(ipv6([8; 16], 6, &udp_from(22))),
                passed,
            ),
            (
                "an error about a service's TCP",
                error_about(ipv4([8; 4], 6, 0, &[], &udp_from(30_000))),
                taken,
            ),
            (
                "an error about a service's UDP behind options",
                error_about(ipv4([8; 4], 17, 0, &[1; 8], &udp_from(30_001))),
                taken,
            ),
            (
                "an error about a service's port of another protocol",
                error_about(ipv4([8; 4], 17, 0, &[], &udp_from(30_000))),
                passed,
            ),
            ("an ICMPv6 error about a service", error_about6(ipv6([8; 16], 132, &udp_from(30_000))), taken),
            ("an error cut short", ipv4(ENGINE, 1, 0, &[], &[3, 4, 0, 0, 0, 0, 0, 0, 0x45]), passed),
            ("a redirect is the kernel's", ipv4(ENGINE, 1, 0, &[], &[5; 64]), passed),
            ("a VLAN tag", ethernet(0x8100, &vlan), passed),
            ("ARP", ethernet(0x0806, &[0; 28]), passed),
            ("LLDP", ethernet(0x88cc, &[0; 40]), passed),
        ];
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        for (what, frame, expected) in &cases {
            assert_eq!(counted(&steering, &from, frame), *expected, "{what}");
            if *expected == taken {
                eventually(what, || va.rx_burst(&mut cache, &mut burst) == 1);
                assert_eq!(burst[0].bytes(), frame, "{what}");
                cache.free_burst(&mut burst);
            }
        }
        assert_eq!(va.rx_burst(&mut cache, &mut burst), 0, "and nothing else");

        // The kernel answers on the same wire: ARP, ICMP and TCP with real endpoints.
        assert!(net.pings());
        let listener = TcpListener::bind("10.9.0.254:4789").unwrap();
        let client = std::thread::scope(|scope| {
            let server = scope.spawn(|| listener.accept().unwrap().0.write_all(b"kernel"));
            let answer = net.peer.run(|| {
                let mut stream = TcpStream::connect("10.9.0.254:4789").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            });
            server.join().unwrap().unwrap();
            answer
        });
        assert_eq!(client, "kernel");
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn a_pod_port_gives_everything_to_fairway_and_falls_back_to_the_kernel_without_a_socket() {
    if !privileged("steering on a pod's port") {
        return;
    }
    let net = Wire::new();
    let from = net.peer.packet_socket("eth0");
    let umem = umem();
    net.engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let attachment = steering.attach("va", PortClass::Pod).unwrap();
        assert_eq!(attachment.queues, 1);
        assert!(net.pings(), "no socket yet: the kernel answers");
        let stats = steering.stats().unwrap();
        assert!(stats.fallback > 0 && stats.redirected == 0, "{stats:?}");

        let va = AfXdp::new(&umem).open("va", 0, &AfXdpConfig::pod()).unwrap().remove(0);
        assert!(net.pings(), "a socket that is not registered takes nothing");
        steering.register_queues([&va]).unwrap();
        for frame in [
            ipv4([8, 8, 8, 8], 6, 0, &[], &[0; 20]),
            ipv6([0xfd; 16], 58, &[0; 8]),
            ethernet(0x0806, &[0; 28]),
            ethernet(0x88b5, &[0; 46]),
        ] {
            // The kernels at both ends may have more to say after the pings, hence no exact number.
            let stats = counted(&steering, &from, &frame);
            assert!(stats.redirected > 0, "{frame:02x?}");
            assert_eq!(stats, SteeringStats { redirected: stats.redirected, ..SteeringStats::default() });
        }
        assert!(!net.pings(), "Fairway has the packets, and nobody answers");

        steering.unregister(attachment.ifindex, 0).unwrap();
        steering.unregister(attachment.ifindex, 0).unwrap();
        assert!(net.pings(), "unregistered: the kernel answers");
        steering.register_queues([&va]).unwrap();
        drop(va);
        assert!(net.pings(), "the socket is closed: the kernel answers");

        steering.detach(attachment.ifindex).unwrap();
        steering.detach(attachment.ifindex).unwrap();
        assert!(!has_program(&net.engine));
        steering.attach("va", PortClass::Host).unwrap();
        assert!(has_program(&net.engine));
        drop(steering);
        assert!(!has_program(&net.engine));
        assert!(net.pings());
    });
    assert_eq!(umem.pool().missing(), 0);
}

fn has_program(netns: &Netns) -> bool {
    netns.sh("ip -d link show va").contains("xdp")
}

#[test]
fn ports_have_sockets_of_their_own_and_wrong_requests_are_refused() {
    if !privileged("several ports") {
        return;
    }
    let net = Wire::new();
    let other = Netns::new("o");
    net.engine.veth("vo", &other, "10.9.1.1/24", 4);
    let from = other.packet_socket("eth0");
    let umem = umem();
    net.engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let error = steering.attach("nothere0", PortClass::Pod).unwrap_err();
        assert!(matches!(&error, SteeringError::NoInterface { ifname } if ifname == "nothere0"), "{error}");
        let va = steering.attach("va", PortClass::Pod).unwrap();
        let vo = steering.attach("vo", PortClass::Pod).unwrap();
        assert_eq!((va.queues, vo.queues), (1, 4));
        let error = steering.attach("va", PortClass::Pod).unwrap_err();
        assert!(matches!(error, SteeringError::AlreadyAttached { .. }), "{error}");
        let error = Steering::load().unwrap().attach("va", PortClass::Pod).unwrap_err();
        assert!(matches!(error, SteeringError::Occupied { .. }), "{error}");
        let error = steering.register(va.ifindex, 1, 0).unwrap_err();
        assert!(matches!(error, SteeringError::NoQueue { queue: 1, queues: 1, .. }), "{error}");
        let error = steering.register(9999, 0, 0).unwrap_err();
        assert!(matches!(error, SteeringError::NotAttached { ifindex: 9999 }), "{error}");
        let error = steering.register(va.ifindex, 0, 0).unwrap_err();
        assert!(matches!(error, SteeringError::Map { .. }), "not an AF_XDP socket: {error}");
        let error = steering.set_node(&[], &(0..17).collect::<Vec<_>>()).unwrap_err();
        assert!(matches!(error, SteeringError::TooMany { ports: 17, .. }), "{error}");

        let config = AfXdpConfig { fill_target: 64, ..AfXdpConfig::pod() };
        let mut queues = AfXdp::new(&umem).open("vo", 0, &config).unwrap();
        steering.register_queues(&queues).unwrap();
        // The slots of `va` are free, and a detached port's are used again: neither may touch those of `vo`.
        steering.detach(va.ifindex).unwrap();
        steering.attach("va", PortClass::Pod).unwrap();
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        from.send(&ethernet(0x88b5, &[7; 46]));
        eventually("receiving", || {
            queues.iter_mut().for_each(|queue| {
                queue.rx_burst(&mut cache, &mut burst);
            });
            burst.iter().any(|frame| frame.bytes() == ethernet(0x88b5, &[7; 46]))
        });
        cache.free_burst(&mut burst);
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn a_netdev_without_native_xdp_is_served_in_generic_mode() {
    if !privileged("generic mode") {
        return;
    }
    let (engine, peer) = (Netns::new("e"), Netns::new("p"));
    // More tx queues on the far end than rx queues here: veth refuses native XDP.
    let far = format!("peer name eth0 numtxqueues 2 numrxqueues 2 netns {}", peer.name);
    engine.ip(&format!("link add va numrxqueues 1 numtxqueues 1 type veth {far}"));
    engine.ip("link add plain type bridge");
    engine.ip("link set va up");
    peer.ip("link set eth0 up");
    let from = peer.packet_socket("eth0");
    let umem = umem();
    engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let attachment = steering.attach("plain", PortClass::Host).unwrap();
        assert_eq!((attachment.mode, attachment.queues), (AttachMode::Generic, 1));
        assert_eq!(steering.attach("va", PortClass::Host).unwrap().mode, AttachMode::Generic);
        let config = AfXdpConfig { fill_target: 256, ..AfXdpConfig::pod() };
        let af_xdp = AfXdp::new(&umem);
        let plain = af_xdp.open("plain", 1, &config).unwrap();
        let mut va = af_xdp.open("va", 2, &config).unwrap().remove(0);
        steering.register_queues(plain.iter().chain([&va])).unwrap();
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        let frame = ethernet(0x88b5, &[3; 46]);
        eventually("receiving", || {
            // The far end picks its tx queue by itself, and only the first is ours: so again until it does.
            from.send(&frame);
            va.rx_burst(&mut cache, &mut burst);
            burst.iter().any(|received| received.bytes() == frame)
        });
        cache.free_burst(&mut burst);
    });
    assert_eq!(umem.pool().missing(), 0);
}

/// Run by the next test as a process of its own, which it kills.
#[test]
fn helper_that_holds_the_program_attached_until_killed() {
    if std::env::var_os("FAIRWAY_TEST_HOLD").is_none() {
        return;
    }
    let umem = umem();
    let mut steering = Steering::load().unwrap();
    steering.attach("va", PortClass::Pod).unwrap();
    let va = AfXdp::new(&umem).open("va", 0, &AfXdpConfig::pod()).unwrap();
    steering.register_queues(&va).unwrap();
    println!("attached");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_kernel_has_the_traffic_back_when_the_process_is_killed() {
    if !privileged("killing the process that steers") {
        return;
    }
    let net = Wire::new();
    assert!(net.pings());
    let mut child = Command::new("ip")
        .args(["netns", "exec", &net.engine.name])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_holds_the_program_attached_until_killed", "--nocapture"])
        .env("FAIRWAY_TEST_HOLD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("attached") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
    assert!(has_program(&net.engine));
    assert!(!net.pings(), "the program gives the packets to a socket that nobody reads");
    // `ip netns exec` has become the test by exec, so this is its process; kill() is SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("detaching", || !has_program(&net.engine));
    assert!(net.pings());
}

#[test]
fn missing_capabilities_are_named_before_anything_is_tried() {
    if !privileged("dropping capabilities") {
        return;
    }
    let umem = umem();
    let without = |capabilities: &[u32]| {
        std::thread::scope(|scope| {
            let (umem, capabilities) = (&umem, capabilities.to_vec());
            let thread = scope.spawn(move || {
                netns::drop_capabilities(&capabilities);
                let open = AfXdp::new(umem).open("lo", 0, &AfXdpConfig::pod()).err();
                (Steering::load().err(), open)
            });
            thread.join().unwrap()
        })
    };
    let (net_admin, net_raw, sys_admin, bpf) = (12, 13, 21, 39);
    let (load, open) = without(&[net_raw]);
    assert!(load.is_none());
    assert!(matches!(&open, Some(AfXdpError::MissingCapability { missing, .. }) if missing == "CAP_NET_RAW"));
    let (load, _) = without(&[bpf, sys_admin, net_admin]);
    let Some(SteeringError::MissingCapability { missing }) = load else { panic!("{load:?}") };
    assert_eq!(missing, "CAP_BPF, CAP_NET_ADMIN");
    let (load, _) = without(&[bpf]);
    assert!(load.is_none(), "CAP_SYS_ADMIN includes CAP_BPF: {load:?}");
}
