//! The engine's cost per packet: `process()` over frames in memory, one worker, full bursts.
//!
//! What is timed is the call of `process()` and nothing else: parsing, flow look-up, rewriting, encapsulating
//! and batching by output port. Filling frames before and freeing them after stand for the NIC and are not
//! timed. As after a NIC's DMA into the last-level cache, a packet's bytes are in the cache when processing
//! starts; flow entries, which are what a million flows are about, are where the CPU's caches left them.

use crate::alloc;
use fairway_dataplane::stages::Stages;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{ETH_LEN, be16, proto, tcp_flags, vxlan};
use fairway_dataplane::{clock, process};
use fairway_pmd::{Burst, MAX_BURST};
use fairway_tables::stats::{Counter, Stage};
use fairway_tables::{Capacities, NextHopKind, PortId, Tables, Writer};

/// Client pods on the node.
const CLIENTS: u16 = 32;
/// Server pods on the node.
const SERVERS: u16 = 32;
/// Other nodes.
const NODES: u8 = 64;
/// Services where no other number is asked for, each with [`BACKENDS`].
const SERVICES: u32 = 100;
/// Backends of a service, each on another node.
const BACKENDS: u8 = 10;
/// Bytes of a packet on the wire at its shortest, without FCS.
const FRAME_LEN: usize = 60;

/// A way through the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// Pod to pod on the same node.
    PodToPod,
    /// Pod to a remote pod, encapsulated.
    Vxlan,
    /// Pod to a remote pod, in IPv4.
    Ipip,
    /// Pod to a remote pod, without encapsulation.
    Direct,
    /// Pod to a ClusterIP whose backend is remote: translated and encapsulated.
    ServiceVxlan,
    /// The answer to that: decapsulated and translated back.
    ServiceVxlanReply,
    /// Pod to the outside: with the node's address and another port.
    Masquerade,
    /// The answer to that: translated back.
    MasqueradeReply,
    /// TCP from pod to pod on the same node, each segment with new numbers.
    Tcp,
    /// The same where windows are tracked.
    TcpStrict,
}

impl Case {
    /// All, in the order of reports.
    pub const ALL: [Case; 10] = [
        Case::PodToPod,
        Case::Vxlan,
        Case::Ipip,
        Case::Direct,
        Case::ServiceVxlan,
        Case::ServiceVxlanReply,
        Case::Masquerade,
        Case::MasqueradeReply,
        Case::Tcp,
        Case::TcpStrict,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Case::PodToPod => "pod_to_pod",
            Case::Vxlan => "vxlan",
            Case::Ipip => "ipip",
            Case::Direct => "direct",
            Case::ServiceVxlan => "service_vxlan",
            Case::ServiceVxlanReply => "service_vxlan_reply",
            Case::Masquerade => "masquerade",
            Case::MasqueradeReply => "masquerade_reply",
            Case::Tcp => "tcp",
            Case::TcpStrict => "tcp_strict",
        }
    }

    /// Whether the packets are answers, which come in by the uplink.
    fn is_reply(self) -> bool {
        matches!(self, Case::ServiceVxlanReply | Case::MasqueradeReply)
    }

    fn is_tcp(self) -> bool {
        matches!(self, Case::Tcp | Case::TcpStrict)
    }
}

/// What one round measured.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Clocks per packet of all bursts of the round.
    pub clocks_per_packet: f64,
    /// Allocations per packet.
    pub allocations_per_packet: f64,
}

/// One case with so many flows, warmed up: every flow has had its first packet.
pub struct Scenario {
    /// Which way.
    pub case: Case,
    /// How many flows.
    pub flows: usize,
    services: u32,
    /// Clocks per packet of the first packets: flow misses.
    pub first_packet_clocks: f64,
    world: World,
    /// Every flow's packet, one after the other.
    packets: Vec<u8>,
    packet_len: usize,
    ports: Vec<u16>,
    /// Bursts to come, empty in between.
    rx: Vec<Burst>,
    random: u64,
}

fn client_headers(flow: usize, dst: [u8; 4]) -> (PortId, packet::Headers, u16) {
    let client = (flow % usize::from(CLIENTS)) as u16;
    let sport = 1024 + (flow / usize::from(CLIENTS)) as u16;
    (addr::pod_port(client), addr::from_pod(client, dst), sport)
}

/// Address and port outside the cluster to which a flow goes: far fewer flows to each than there are ports for.
fn outside(flow: usize) -> ([u8; 4], u16) {
    (addr::outside((flow / 7 % 250) as u8), 9000 + (flow / 50_000) as u16)
}

fn service_ip(n: u32) -> [u8; 4] {
    (u32::from_be_bytes([10, 96, 0, 10]) + n).to_be_bytes()
}

/// A UDP packet of [`FRAME_LEN`] bytes with its checksum.
fn udp(headers: &packet::Headers, sport: u16, dport: u16) -> Vec<u8> {
    headers.udp(sport, dport, &[0x5a; FRAME_LEN - ETH_LEN - 28])
}

impl Scenario {
    /// Builds tables and flows, and sends each flow's first packet.
    pub fn new(case: Case, flows: usize) -> Scenario {
        Scenario::with_services(case, flows, SERVICES)
    }

    /// The same with another number of Services, at most 10,000.
    pub fn with_services(case: Case, flows: usize, services: u32) -> Scenario {
        let mut world = World::new(WorldConfig {
            pods: CLIENTS + SERVERS,
            nodes: NODES,
            // A reply is answered where its request passed: the table holds both directions.
            flows: if case.is_reply() || case.is_tcp() { 2 * flows } else { flows },
            connections: (flows + flows / 8 + 1024) as u32,
            frames: 1024,
        });
        let way = match case {
            Case::Ipip => NextHopKind::Ipip,
            Case::Direct => NextHopKind::Gateway,
            _ => NextHopKind::Tunnel,
        };
        (0..NODES).for_each(|n| world.set_way(n, way));
        world.open_outside();
        world.worker.conntrack = world.worker.conntrack.clone().tcp_liberal(case != Case::TcpStrict);
        for n in 0..services {
            let (low, pod) = (n as u8, 10 + (n % 200) as u8);
            let node = |b: u8| low.wrapping_mul(7).wrapping_add(b * 5) % NODES;
            let backends: Vec<_> = (0..BACKENDS).map(|b| (addr::remote_pod(node(b), pod), 8080)).collect();
            world.set_service(service_ip(n), 80, proto::UDP, n, &backends);
        }
        let mut scenario = Scenario {
            case,
            flows,
            services,
            first_packet_clocks: 0.0,
            world,
            packets: Vec::new(),
            packet_len: 0,
            ports: Vec::with_capacity(flows),
            rx: (0..MAX_BURST).map(|_| Burst::new()).collect(),
            random: 0x9e37_79b9_7f4a_7c15,
        };
        scenario.make_packets();
        scenario.warm_up();
        scenario
    }

    fn make_packets(&mut self) {
        for flow in 0..self.flows {
            let (port, bytes) = match self.case {
                Case::PodToPod => {
                    let server = CLIENTS + (flow / 7 % usize::from(SERVERS)) as u16;
                    let (port, headers, sport) = client_headers(flow, addr::pod(server));
                    (port, udp(&headers, sport, 9000))
                }
                Case::Vxlan | Case::Ipip | Case::Direct => {
                    let dst = addr::remote_pod((flow / 7 % usize::from(NODES)) as u8, 2 + (flow % 250) as u8);
                    let (port, headers, sport) = client_headers(flow, dst);
                    (port, udp(&headers, sport, 9000))
                }
                Case::ServiceVxlan => {
                    let (port, headers, sport) =
                        client_headers(flow, service_ip((flow / 7) as u32 % self.services));
                    (port, udp(&headers, sport, 80))
                }
                Case::ServiceVxlanReply => self.reply(flow),
                Case::Masquerade => {
                    let (port, headers, sport) = client_headers(flow, outside(flow).0);
                    (port, udp(&headers, sport, outside(flow).1))
                }
                Case::MasqueradeReply => self.reply_from_outside(flow),
                Case::Tcp | Case::TcpStrict => self.segment_to_pod(flow),
            };
            self.packet_len = bytes.len();
            self.packets.extend_from_slice(&bytes);
            self.ports.push(port.0);
        }
    }

    /// Sends a flow's first packet to its service, and makes the answer from what came out.
    fn reply(&mut self, flow: usize) -> (PortId, Vec<u8>) {
        let (port, headers, sport) = client_headers(flow, service_ip((flow / 7) as u32 % self.services));
        let (_, out) = self.world.send(port, &udp(&headers, sport, 80)).expect("the service has backends");
        let node = out[ETH_LEN + 19] - 2;
        let inner_dst = &out[vxlan::HEADER_LEN + 16..vxlan::HEADER_LEN + 20];
        let backend = [inner_dst[0], inner_dst[1], inner_dst[2], inner_dst[3]];
        let inner = udp(&addr::from_remote(backend, headers.src), 8080, sport);
        (addr::UPLINK, packet::encapsulate(&addr::encap_from(node), &inner, 50_000))
    }

    /// Opens a connection whose server offers as much as can be, and makes its first segment.
    fn segment_to_pod(&mut self, flow: usize) -> (PortId, Vec<u8>) {
        const ACK: u8 = tcp_flags::ACK;
        let server = CLIENTS + (flow / 7 % usize::from(SERVERS)) as u16;
        let (port, headers, sport) = client_headers(flow, addr::pod(server));
        let answers = addr::from_pod(server, headers.src);
        let segment = |flags, seq, ack, shift| packet::Segment { flags, seq, ack, window: 0xffff, shift };
        let of_client = |flags, seq, shift| headers.segment(sport, 9000, &segment(flags, seq, 1, shift), &[]);
        let of_server = |flags, seq, shift| answers.segment(9000, sport, &segment(flags, seq, 1, shift), &[]);
        let shift = Some(14);
        let opening = [
            (port, of_client(tcp_flags::SYN, 0, shift)),
            (addr::pod_port(server), of_server(tcp_flags::SYN | ACK, 0, shift)),
            (port, of_client(ACK, 1, None)),
            (addr::pod_port(server), of_server(ACK, 1, None)),
        ];
        for (port, frame) in opening {
            self.world.send(port, &frame).expect("the segments of a handshake pass");
        }
        let payload = [0x5a; FRAME_LEN - ETH_LEN - 40];
        (port, headers.segment(sport, 9000, &segment(ACK, 1, 1, None), &payload))
    }

    /// Gives a flow's next packet the next numbers. Nobody looks at its checksum.
    fn number_next(&mut self, flow: usize) {
        let at = flow * self.packet_len + ETH_LEN + 20 + 4;
        let seq = &mut self.packets[at..at + 4];
        let next = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]) + (FRAME_LEN - ETH_LEN - 40) as u32;
        seq.copy_from_slice(&next.to_be_bytes());
    }

    /// Sends a flow's first packet outside, and makes the answer from what came out.
    fn reply_from_outside(&mut self, flow: usize) -> (PortId, Vec<u8>) {
        let (station, station_port) = outside(flow);
        let (port, headers, sport) = client_headers(flow, station);
        let sent = self.world.send(port, &udp(&headers, sport, station_port));
        let (_, out) = sent.expect("there are ports enough");
        let given = be16(&out, ETH_LEN + 20);
        let answer = packet::Headers {
            dst_mac: addr::UPLINK_MAC,
            src_mac: addr::EXIT_MAC,
            src: station,
            dst: addr::NODE,
            ttl: 60,
        };
        (addr::UPLINK, udp(&answer, station_port, given))
    }

    fn warm_up(&mut self) {
        let mut clocks = 0;
        // Bursts come from one port: flows of the same client lie CLIENTS apart.
        let step = if self.case.is_reply() { 1 } else { usize::from(CLIENTS) };
        for start in 0..step.min(self.flows) {
            let flows: Vec<usize> = (start..self.flows).step_by(step).collect();
            for burst in flows.chunks(MAX_BURST) {
                clocks += self.burst(burst, MAX_BURST);
            }
        }
        self.first_packet_clocks = clocks as f64 / self.flows as f64;
        self.world.worker.stages = Stages::new();
        assert_eq!(self.world.worker.counters.all_drops(), 0, "the benchmark's packets all pass");
    }

    /// Processes one packet of each of these flows, at most [`MAX_BURST`] and all from one port, in bursts of `len`;
    /// returns the clocks. Small bursts are timed together, since the clock's fences would be as dear as they are.
    fn burst(&mut self, flows: &[usize], len: usize) -> u64 {
        let port = self.ports[flows[0]];
        for (burst, flows) in self.rx.iter_mut().zip(flows.chunks(len)) {
            for &flow in flows {
                let bytes = &self.packets[flow * self.packet_len..(flow + 1) * self.packet_len];
                let mut frame = self.world.cache.alloc().expect("a free frame");
                frame.copy_from(bytes);
                frame.set_port(port);
                burst.push(frame);
            }
        }
        if self.case.is_tcp() {
            flows.iter().for_each(|flow| self.number_next(*flow));
        }
        let World { reader, worker, now, cache, tx, .. } = &mut self.world;
        let bursts = &mut self.rx[..flows.len().div_ceil(len)];
        let start = clock::tsc_fenced();
        for rx in bursts {
            process(rx, PortId(port), reader.view(), worker, *now, cache, tx);
        }
        let clocks = clock::tsc_fenced() - start;
        reader.quiescent();
        tx.flush(|_, burst| {
            for frame in burst.drain(..) {
                worker.counters.sent(0, false, 1, 0);
                cache.free(frame);
            }
        });
        clocks
    }

    fn next_random(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        ((u128::from(self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128) >> 64) as usize
    }

    /// Processes `bursts` times [`MAX_BURST`] packets in bursts of `len`, of flows in random order.
    pub fn round(&mut self, bursts: usize, len: usize) -> Round {
        let (mut clocks, mut allocations) = (0, 0);
        for _ in 0..bursts {
            let chosen = self.choose();
            let before = alloc::allocations();
            clocks += self.burst(&chosen, len);
            allocations += alloc::allocations() - before;
        }
        let packets = (bursts * MAX_BURST) as f64;
        Round {
            clocks_per_packet: clocks as f64 / packets,
            allocations_per_packet: allocations as f64 / packets,
        }
    }

    /// Flows in random order, all of one port.
    fn choose(&mut self) -> [usize; MAX_BURST] {
        let step = if self.case.is_reply() { 1 } else { usize::from(CLIENTS) };
        let per_port = self.flows.div_ceil(step);
        let start = self.next_random(step.min(self.flows));
        std::array::from_fn(|_| {
            let flow = start + step * self.next_random(per_port);
            if flow < self.flows { flow } else { start }
        })
    }

    /// As [`Scenario::round`], but leaves out bursts that took longer than `limit_ns`: the system had taken the
    /// core away. Clocks per packet, and the share of bursts left out.
    pub fn undisturbed_round(&mut self, bursts: usize, limit_ns: f64) -> (f64, f64) {
        let limit = (limit_ns * clock::tsc_per_ns()) as u64;
        let (mut clocks, mut kept) = (0, 0);
        for _ in 0..bursts {
            let chosen = self.choose();
            let took = self.burst(&chosen, MAX_BURST);
            if took <= limit {
                (clocks, kept) = (clocks + took, kept + 1);
            }
        }
        (clocks as f64 / (kept * MAX_BURST).max(1) as f64, 1.0 - kept as f64 / bursts as f64)
    }

    /// Looks for changes of the tables as often as a worker does.
    pub fn look_as_workers_do(&mut self) {
        self.world.worker.look_every_us(fairway_dataplane::worker::LOOK_US);
    }

    /// Takes over the writer of the tables, to change them while packets pass.
    pub fn take_writer(&mut self) -> Writer {
        let none = Capacities { lpm_nodes: 0, routes: 0, backends: 1, ..Capacities::default() };
        std::mem::replace(&mut self.world.writer, Tables::heap(none).0)
    }

    /// Share of packets since the start that needed the walk, first packets included.
    pub fn miss_share(&self) -> f64 {
        let counters = &self.world.worker.counters;
        counters.get(Counter::FlowMisses) as f64 / counters.get(Counter::RxPackets) as f64
    }

    /// Nanoseconds per packet of each step, as the engine itself measures them in one burst of sixteen: means over
    /// all rounds.
    pub fn steps(&self) -> [(Stage, f64); 3] {
        [Stage::Parse, Stage::FlowLookup, Stage::Rewrite].map(|stage| {
            let summary = self.world.worker.stages.summary(stage);
            (stage, summary.sum_ns as f64 / summary.count.max(1) as f64)
        })
    }

    /// Ends the scenario, and checks invariants I1 and I2.
    pub fn finish(self) {
        assert_eq!(self.world.worker.counters.all_drops(), 0, "no packet was dropped");
        self.world.finish();
    }
}
