//! One node of a cluster, as `process` sees it.

use super::addr;
use crate::affinity::Affinity;
use crate::conntrack::{Conntrack, Timeouts};
use crate::{Now, TxBatches, WorkerState, process};
use fairway_pmd::{Burst, FrameCache, Umem, UmemConfig};
use fairway_tables::{
    Backend, Capacities, Endpoint, Ip, Mac, Masquerade, Neighbour, NeighbourKey, NextHop, NextHopKind, Op,
    Port, PortId, PortKind, Prefix, Reader, ReaderFactory, Service, ServiceKey, Settings, Tables, Tunnel,
    Writer,
};

/// Clients of services that are remembered.
const AFFINITY_PLACES: usize = 1024;

/// What the world's node takes from its uplink.
const TAKES: u32 = Settings::TAKES_DIRECT
    | Settings::TAKES_IPIP
    | Settings::TAKES_IPV6_IN_IPV4
    | Settings::TAKES_IPV4_IN_IPV6
    | Settings::TAKES_IPV6_IN_IPV6;

/// How large the world is.
#[derive(Clone, Copy, Debug)]
pub struct WorldConfig {
    /// Pods on this node, at most 4096.
    pub pods: u16,
    /// Other nodes, at most 200, each with a /24 of pods.
    pub nodes: u8,
    /// Flows that the flow table is made for.
    pub flows: usize,
    /// Connections that the connection table holds.
    pub connections: u32,
    /// Frames of the UMEM.
    pub frames: u32,
}

impl Default for WorldConfig {
    fn default() -> WorldConfig {
        WorldConfig { pods: 4, nodes: 3, flows: 1024, connections: 4096, frames: 256 }
    }
}

/// Tables, one worker, and frames. `W` writes the tables: a test itself, or a part of control.
pub struct World<W = Writer> {
    /// Control's side of the tables.
    pub writer: W,
    /// Makes further readers.
    pub readers: ReaderFactory,
    /// The worker's side.
    pub reader: Reader,
    /// The worker.
    pub worker: WorkerState,
    /// Its stock of frames.
    pub cache: FrameCache,
    /// Where it puts what leaves.
    pub tx: TxBatches,
    /// The time it is told.
    pub now: Now,
    umem: Umem,
}

fn mac_port(name: &str, kind: PortKind, mtu: u32, mac: Mac, peer: Mac) -> Port {
    Port::new(name, kind, mtu, mac, peer).expect("names are short")
}

fn base_ops(config: &WorldConfig) -> Vec<Op> {
    let ip = |octets| Ip::v4(octets);
    let prefix = |octets, len| Prefix::new(Ip::v4(octets), len).expect("lengths are valid");
    let prefix6 = |octets, len| Prefix::new(Ip(octets), len).expect("lengths are valid");
    let mut ops = vec![
        Op::SetSettings(Settings {
            node_ip: ip(addr::NODE),
            node_ip6: Ip(addr::NODE6),
            gateway_ip: ip(addr::GATEWAY),
            router_ip: ip(addr::ROUTER),
            gateway_ip6: Ip(addr::GATEWAY6),
            router_ip6: Ip(addr::ROUTER6),
            outside_ip: ip(addr::NODE),
            outside_ip6: Ip(addr::NODE6),
            host_ip: ip(addr::GATEWAY),
            host_ip6: Ip(addr::HOST6),
            vni: addr::VNI,
            pod_mtu: 1450,
            vxlan_port: 4789,
            uplink: addr::UPLINK,
            host: addr::HOST,
            gateway_mac: addr::GATEWAY_MAC,
            vtep_mac: addr::VTEP,
            vtep_mac6: addr::VTEP6,
            second_vtep_mac6: addr::SECOND_VTEP6,
            udp_tunnel_port: addr::UDP_TUNNEL_PORT,
            snat_first: addr::SNAT_PORTS.0,
            snat_last: addr::SNAT_PORTS.1,
            takes: TAKES,
            second_vxlan: addr::SECOND_VXLAN,
        }),
        Op::SetPort(addr::UPLINK, mac_port("uplink0", PortKind::Uplink, 1500, addr::UPLINK_MAC, Mac::ZERO)),
        Op::SetPort(
            addr::HOST,
            mac_port("fwhost1", PortKind::Host, 1500, Mac([2, 0, 0, 0, 0, 0xab]), addr::HOST_MAC),
        ),
        Op::SetRoute(
            prefix([10, 244, 16, 0], 20),
            NextHop::new(NextHopKind::Local, Ip::UNSPECIFIED, PortId::NONE),
        ),
        Op::SetRoute(
            prefix6(addr::ROUTER6, 64),
            NextHop::new(NextHopKind::Local, Ip::UNSPECIFIED, PortId::NONE),
        ),
        Op::SetRoute(prefix([0, 0, 0, 0], 0), NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE)),
    ];
    for n in 0..config.pods {
        let mac = Mac([2, 0, 0, 1, (n >> 8) as u8, n as u8]);
        let port = mac_port(&format!("fwpod{n}"), PortKind::Pod, 1450, mac, Mac::ZERO);
        ops.push(Op::SetPort(addr::pod_port(n), port));
        let endpoint = Endpoint::new(addr::pod_port(n), addr::pod_mac(n));
        ops.push(Op::SetEndpoint(ip(addr::pod(n)), endpoint));
        ops.push(Op::SetEndpoint(Ip(addr::pod6(n)), endpoint));
    }
    for n in 0..config.nodes {
        let node = ip(addr::node(n));
        let hop = NextHop::new(NextHopKind::Tunnel, node, PortId::NONE);
        ops.push(Op::SetRoute(prefix(addr::remote_pod(n, 0), 24), hop));
        ops.push(Op::SetRoute(prefix6(addr::remote_pod6(n, 0), 64), hop));
        let tunnel = Tunnel {
            local: ip(addr::NODE),
            node,
            next_hop: node,
            vni: addr::VNI,
            udp_port: 4789,
            port: addr::UPLINK,
            remote_mac: addr::node_vtep(n),
            local_mac: addr::VTEP,
            node_ports: node,
            node_ports6: Ip(addr::node6(n)),
        };
        ops.push(Op::SetTunnel(node, tunnel));
        let key = NeighbourKey { ip: node, port: addr::UPLINK, reserved: 0 };
        ops.push(Op::SetNeighbour(key, Neighbour { mac: addr::node_mac(n), reserved: 0 }));
        let node6 = Ip(addr::node6(n));
        let tunnel6 = Tunnel {
            local: Ip(addr::NODE6),
            next_hop: node6,
            remote_mac: addr::node_vtep6(n),
            local_mac: addr::VTEP6,
            ..tunnel
        };
        ops.push(Op::SetTunnel(node6, tunnel6));
        let key = NeighbourKey { ip: node6, port: addr::UPLINK, reserved: 0 };
        ops.push(Op::SetNeighbour(key, Neighbour { mac: addr::node_mac(n), reserved: 0 }));
    }
    ops
}

impl World {
    /// Builds the tables and a worker that has seen nothing.
    pub fn new(config: WorldConfig) -> World {
        World::with_capacities(config, Capacities { ports: 8192, endpoints: 8192, ..Capacities::default() })
    }

    /// The same with tables of other sizes.
    pub fn with_capacities(config: WorldConfig, capacities: Capacities) -> World {
        let (mut writer, readers) = Tables::heap(capacities);
        writer.apply(&base_ops(&config)).expect("the tables have room");
        let ports = usize::from(config.pods) + 2;
        World::around(config, ports, writer, readers)
    }

    /// Has pods reach stations outside the cluster through a router on the uplink, with the node's address; and the node's
    /// own stack reached by each of the node's addresses.
    pub fn open_outside(&mut self) {
        let exit = [(Ip::v4(addr::EXIT), Ip::v4([0; 4])), (Ip(addr::EXIT6), Ip::UNSPECIFIED)];
        for (router, any) in exit {
            let key = NeighbourKey { ip: router, port: addr::UPLINK, reserved: 0 };
            self.apply(Op::SetNeighbour(key, Neighbour { mac: addr::EXIT_MAC, reserved: 0 }));
            let all = Prefix::new(any, 0).expect("the length is valid");
            self.apply(Op::SetRoute(all, NextHop::new(NextHopKind::Gateway, router, addr::UPLINK)));
        }
        let own = [Ip::v4(addr::NODE), Ip::v4(addr::ROUTER), Ip(addr::NODE6), Ip(addr::ROUTER6)];
        for ip in own {
            let host = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE);
            self.apply(Op::SetRoute(Prefix::host(ip), host));
        }
        let cluster = [(Ip::v4([10, 240, 0, 0]), 12), (Ip([0xfd; 16]), 8)];
        let cluster = cluster.map(|(ip, len)| Prefix::new(ip, len).expect("lengths are valid"));
        let families = Masquerade::V4 | Masquerade::V6;
        let record = Masquerade::new(families, &cluster).expect("two prefixes fit");
        self.apply(Op::SetMasquerade(Box::new(record)));
    }

    /// Changes how IPv4 packets go to the pods of remote node `n`.
    pub fn set_way(&mut self, n: u8, kind: NextHopKind) {
        self.set_way_over(n, kind, true, true);
    }

    /// The same for pods of either family, over either family.
    pub fn set_way_over(&mut self, n: u8, kind: NextHopKind, inner_is_v4: bool, outer_is_v4: bool) {
        let (inner, len) = match inner_is_v4 {
            true => (Ip::v4(addr::remote_pod(n, 0)), 24),
            false => (Ip(addr::remote_pod6(n, 0)), 64),
        };
        let node = if outer_is_v4 { Ip::v4(addr::node(n)) } else { Ip(addr::node6(n)) };
        let prefix = Prefix::new(inner, len).expect("lengths are valid");
        let port = if kind == NextHopKind::Gateway { addr::UPLINK } else { PortId::NONE };
        self.apply(Op::SetRoute(prefix, NextHop::new(kind, node, port)));
    }

    /// Adds or replaces a service.
    pub fn set_service(&mut self, ip: [u8; 4], port: u16, proto: u8, id: u32, backends: &[([u8; 4], u16)]) {
        let backends: Vec<_> = backends.iter().map(|(ip, port)| (Ip::v4(*ip), *port)).collect();
        self.set_service_at(ServiceKey::new(Ip::v4(ip), port, proto), id, &backends);
    }

    /// Adds or replaces a service of either family.
    pub fn set_service_at(&mut self, key: ServiceKey, id: u32, backends: &[(Ip, u16)]) {
        self.set_service_record(key, Service { id, flags: 0, affinity_timeout_s: 0 }, backends);
    }

    /// Adds or replaces a service with flags of its own.
    pub fn set_service_record(&mut self, key: ServiceKey, service: Service, backends: &[(Ip, u16)]) {
        let backend = |(ip, port): &(Ip, u16)| Backend { ip: *ip, port: *port, flags: 0 };
        let mut backends: Vec<Backend> = backends.iter().map(backend).collect();
        // As control writes them.
        backends.sort_unstable();
        let targets = backends.into();
        self.apply(Op::SetService(key, service, targets));
    }

    /// Changes the tables.
    pub fn apply(&mut self, op: Op) {
        self.writer.apply(&[op]).expect("the tables have room");
    }
}

impl<W> World<W> {
    /// A worker that has seen nothing on given tables, with `ports` ports; of the configuration, the sizes count.
    pub fn around(config: WorldConfig, ports: usize, writer: W, readers: ReaderFactory) -> World<W> {
        let umem = Umem::new(UmemConfig { frames: config.frames, frame_size: 2048, huge_pages: true })
            .expect("memory for frames");
        let conntrack =
            Conntrack::heap(config.connections, Timeouts::default()).expect("memory for connections");
        let affinity = Affinity::heap(AFFINITY_PLACES).expect("memory for clients");
        let mut tx = TxBatches::new(ports);
        (0..ports as u16).for_each(|port| tx.open(PortId(port)));
        World {
            writer,
            reader: readers.reader(),
            readers,
            worker: WorkerState::new(config.flows, ports, conntrack, affinity),
            cache: umem.cache(),
            tx,
            now: Now { seconds: 1000 },
            umem,
        }
    }

    /// Takes a frame and fills it.
    ///
    /// # Panics
    /// If no frame is free, or the bytes do not fit one.
    pub fn frame(&mut self, bytes: &[u8]) -> fairway_pmd::Frame {
        let mut frame = self.cache.alloc().expect("a free frame");
        assert!(frame.copy_from(bytes), "{} bytes do not fit a frame", bytes.len());
        frame
    }

    /// Processes a burst of at most [`fairway_pmd::MAX_BURST`] frames from one port; returns what leaves, by port.
    pub fn burst(&mut self, port: PortId, frames: &[Vec<u8>]) -> Vec<(PortId, Vec<u8>)> {
        let mut rx = Burst::new();
        for bytes in frames {
            let mut frame = self.frame(bytes);
            frame.set_port(port.0);
            rx.push(frame);
        }
        process(&mut rx, port, self.reader.view(), &mut self.worker, self.now, &mut self.cache, &mut self.tx);
        self.reader.quiescent();
        let (mut sent, worker, cache) = (Vec::new(), &mut self.worker, &mut self.cache);
        self.tx.flush(|port, burst| {
            let bytes = burst.iter().map(|frame| frame.len() as u64).sum();
            worker.counters.sent(port, port == addr::HOST.0, burst.len() as u64, bytes);
            for frame in burst.drain(..) {
                sent.push((PortId(port), frame.bytes().to_vec()));
                cache.free(frame);
            }
        });
        sent
    }

    /// Processes one frame; returns what leaves, if anything.
    pub fn send(&mut self, port: PortId, frame: &[u8]) -> Option<(PortId, Vec<u8>)> {
        self.burst(port, std::slice::from_ref(&frame.to_vec())).pop()
    }

    /// Frames that are neither in the pool, nor in the worker's stock, nor fragments that wait.
    pub fn frames_out(&self) -> usize {
        self.umem.pool().missing() - self.cache.len() - self.worker.fragments.waiting()
    }

    /// Packets received and not yet accounted for, beside fragments that wait: zero by invariant I2.
    pub fn packets_out(&self) -> i128 {
        self.worker.counters.unaccounted() - self.worker.fragments.waiting() as i128
    }

    /// Ends the world, and checks invariants I1 and I2.
    ///
    /// # Panics
    /// If a frame is missing or a packet unaccounted for.
    pub fn finish(self) {
        let World { mut worker, mut cache, tx, umem, .. } = self;
        worker.forget_fragments(&mut cache);
        assert_eq!(
            worker.counters.unaccounted(),
            0,
            "I2: every packet is sent, dropped or passed to the host"
        );
        drop((cache, tx));
        assert_eq!(umem.pool().missing(), 0, "I1: every frame is home");
    }
}
