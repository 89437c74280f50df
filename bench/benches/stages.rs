//! `make bench-stages`: each step of a packet's way by itself, with criterion. Inputs are real: packets of 10,000 flows, the
//! entries and templates that the engine itself compiled for them, tables as the writer fills them. Each step has its
//! packets in random order and works on what was in the cache or was not, as bursts meet it; nothing of a step is left
//! out. What all steps come to together is measured by `make bench-engine`.

// What criterion's macros make has no documents.
#![allow(missing_docs, unreachable_pub)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fairway_bench::lpm::{Backing, Fairway, Table, routes};
use fairway_dataplane::conntrack::{Conntrack, Timeouts, Tuple};
use fairway_dataplane::flow::{self, Binding, FlowEntry, FlowKey, FlowTable, Template};
use fairway_dataplane::parse::{Class, Ingress, Parsed, parse};
use fairway_dataplane::parse6;
use fairway_dataplane::process;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{ETH_LEN, checksum, proto};
use fairway_pmd::{Burst, Frame, MAX_BURST};
use fairway_tables::{Ip, PortId, ServiceKey};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Flows of most steps.
const FLOWS: usize = 10_000;
/// Backends of a service.
const BACKENDS: u8 = 10;

/// Numbers below a bound in an order that no prefetcher knows.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128) >> 64) as usize
    }
}

fn random() -> Random {
    Random(0x9e37_79b9_7f4a_7c15)
}

fn world(services: u32) -> World {
    let mut world = World::new(WorldConfig {
        pods: 4,
        nodes: 64,
        flows: FLOWS,
        connections: 4 * FLOWS as u32,
        frames: 1024,
    });
    for n in 0..services {
        let backends: Vec<_> =
            (0..BACKENDS).map(|b| (addr::remote_pod((n as u8 + 5 * b) % 64, 10), 8080)).collect();
        world.set_service(service_ip(n), 80, proto::UDP, n, &backends);
    }
    world
}

fn service_ip(n: u32) -> [u8; 4] {
    (u32::from_be_bytes([10, 96, 0, 10]) + n).to_be_bytes()
}

/// A pod's packet of flow `n` to a service: 60 bytes.
fn to_service(n: usize, services: u32) -> Vec<u8> {
    addr::from_pod(0, service_ip(n as u32 % services)).udp(
        1024 + (n / services as usize) as u16,
        80,
        &[0x5a; 18],
    )
}

fn ingress(world: &mut World, port: PortId) -> Ingress {
    let World { reader, worker, .. } = world;
    worker.sync(reader.view());
    worker.ingress(port).expect("the tables have the port")
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    let mut world = world(100);
    let (pod, uplink) = (ingress(&mut world, addr::pod_port(0)), ingress(&mut world, addr::UPLINK));
    let tunnelled = |n: usize| {
        let inner =
            addr::from_remote(addr::remote_pod(3, 9), addr::pod(1)).udp(1024 + n as u16, 8080, &[0x5a; 18]);
        packet::encapsulate(&addr::encap_from(3), &inner, 50_000)
    };
    let with_options = |n: usize| {
        let mut frame = to_service(n, 100);
        packet::add_options(&mut frame, &[1, 1, 1, 0]);
        frame
    };
    let six = |n: usize| addr::from_pod6(0, addr::pod6(1)).udp(1024 + n as u16, 9000, &[0x5a; 18]);
    let frames = |make: &dyn Fn(usize) -> Vec<u8>| (0..FLOWS).map(make).collect::<Vec<_>>();
    let cases = [
        ("from_pod", &pod, frames(&|n| to_service(n, 100)), Class::Flow),
        ("from_tunnel", &uplink, frames(&tunnelled), Class::Flow),
        ("with_ip_options", &pod, frames(&with_options), Class::Flow),
        ("ipv6", &pod, frames(&six), Class::Ipv6),
    ];
    for (name, ingress, frames, class) in cases {
        let (mut random, mut parsed) = (random(), Parsed::default());
        assert_eq!(parse(&frames[0], ingress, &mut parsed), class, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let frame = &frames[random.below(FLOWS)];
                let class = parse(frame, ingress, &mut parsed);
                if class == Class::Ipv6 {
                    black_box(parse6::parse6(frame, parsed.l2, parsed.key.outer, ingress.port.0));
                }
                black_box(class)
            });
        });
    }
    group.finish();
}

fn key(n: u32) -> FlowKey {
    FlowKey::new(n, n ^ 7, n.rotate_left(9), proto::UDP, 3, 0)
}

/// What the engine compiles for a flow, under another key.
fn entry(like: &FlowEntry, n: u32) -> FlowEntry {
    FlowEntry { key: key(n), ..*like }
}

fn flow_table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow_table");
    group.throughput(Throughput::Elements(1));
    let (compiled, ..) = compiled(&mut world(100), 1);
    for flows in [FLOWS, 1_000_000] {
        let (mut table, mut random) = (FlowTable::<FlowEntry>::new(flows, 0x5eed), random());
        for n in 0..flows as u32 {
            table.insert(entry(&compiled[0].1, n));
        }
        let seed = table.seed();
        // As process() does: the hashes of a burst and their fetches, then the look-ups.
        group.bench_function(format!("find_of_{flows}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let (mut spent, mut left) = (Duration::ZERO, iterations);
                while left > 0 {
                    let keys: [FlowKey; MAX_BURST] = std::array::from_fn(|_| key(random.below(flows) as u32));
                    let count = (left as usize).min(MAX_BURST);
                    let start = Instant::now();
                    let mut hashes = [0; MAX_BURST];
                    for (hash, key) in hashes.iter_mut().zip(&keys[..count]) {
                        *hash = key.hash(seed);
                        table.prefetch(*hash);
                    }
                    for (hash, key) in hashes.iter().zip(&keys[..count]) {
                        black_box(table.find(*hash, key).map(|slot| table.entry(slot).new_src));
                    }
                    spent += start.elapsed();
                    left -= count as u64;
                }
                spent
            });
        });
        group.bench_function(format!("insert_and_remove_of_{flows}"), |bencher| {
            let mut next = flows as u32;
            bencher.iter(|| {
                next = next.wrapping_add(1);
                let slot = table.insert(entry(&compiled[0].1, next));
                table.remove(black_box(slot));
            });
        });
    }
    group.finish();
}

/// A packet with its flow's entry, and what parsing it gives.
type Compiled = (Vec<u8>, FlowEntry, Parsed);

/// Packets with the entries and templates that the engine compiled for their flows, from `world`'s first pod to services.
fn compiled(world: &mut World, flows: usize) -> (Vec<Compiled>, Vec<Template>) {
    let port = addr::pod_port(0);
    let packets: Vec<Vec<u8>> = (0..flows).map(|n| to_service(n, 100)).collect();
    for packet in &packets {
        world.send(port, packet).expect("the service has backends");
    }
    let ingress = ingress(world, port);
    let table = &world.worker.flows;
    let of = |packet: Vec<u8>| {
        let mut parsed = Parsed::default();
        assert_eq!(parse(&packet, &ingress, &mut parsed), Class::Flow);
        let slot = table.find(parsed.key.hash(table.seed()), &parsed.key).expect("its flow is compiled");
        (packet, *table.entry(slot), parsed)
    };
    let all: Vec<_> = packets.into_iter().map(of).collect();
    let templates = all.iter().map(|(_, entry, _)| {
        *world.worker.templates.get(entry.binding.template).expect("the entry's template")
    });
    let templates = templates.collect();
    (all, templates)
}

/// Translation of addresses and ports, and encapsulation, as one: what a flow hit has done to it.
fn rewriting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rewrite");
    group.throughput(Throughput::Elements(1));
    let mut world = world(100);
    let (compiled, templates) = compiled(&mut world, FLOWS);
    assert!(compiled.iter().all(|(_, entry, _)| entry.binding.flags & Binding::NAT != 0));
    assert!(compiled.iter().all(|(_, entry, _)| entry.binding.flags & Binding::VXLAN != 0));
    let mut random = random();
    group.bench_function("nat_and_vxlan", |bencher| {
        bencher.iter_custom(|iterations| {
            let (mut spent, mut left) = (Duration::ZERO, iterations);
            while left > 0 {
                let count = (left as usize).min(MAX_BURST);
                let mut burst: Vec<(usize, Frame)> = Vec::with_capacity(count);
                for _ in 0..count {
                    let n = random.below(FLOWS);
                    let mut frame = world.cache.alloc().expect("a free frame");
                    frame.copy_from(&compiled[n].0);
                    burst.push((n, frame));
                }
                let start = Instant::now();
                for (n, frame) in &mut burst {
                    let (_, entry, parsed) = &compiled[*n];
                    black_box(flow::apply(frame, parsed, entry, &templates[*n]))
                        .expect("the frame has headroom");
                }
                spent += start.elapsed();
                left -= count as u64;
                burst.drain(..).for_each(|(_, frame)| world.cache.free(frame));
            }
            spent
        });
    });
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let packet = to_service(0, 1);
    let header: [u8; 20] = *packet[ETH_LEN..].first_chunk().expect("an IPv4 header");
    assert!(checksum::ipv4_header_ok(&header));
    group.bench_function("ipv4_header", |bencher| {
        bencher.iter(|| checksum::ipv4_header_ok(black_box(&header)))
    });
    let payload: Vec<u8> = (0..1450u32).map(|n| (n * 7) as u8).collect();
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("of_1450_bytes", |bencher| bencher.iter(|| checksum::checksum(black_box(&payload))));
    group.finish();
}

fn lpm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lpm");
    group.throughput(Throughput::Elements(1));
    for (family, count) in [
        (routes::Family::V4, 1000),
        (routes::Family::V4, 1_000_000),
        (routes::Family::V6, 1000),
        (routes::Family::V6, 1_000_000),
    ] {
        let all = routes::random(family, count, 7);
        let mut table = Fairway::new(family, count, &Backing::Heap);
        table.insert(&all);
        let asked = routes::destinations(family, &all, 1 << 16, 11);
        let mut random = random();
        group.bench_function(format!("{}_of_{count}", family.name()), |bencher| {
            bencher.iter(|| black_box(table.look_up(asked[random.below(asked.len())])));
        });
    }
    group.finish();
}

fn service(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("service");
    group.throughput(Throughput::Elements(1));
    for services in [1u32, 10_000] {
        let mut world = world(services);
        let tables = world.reader.view();
        let (worker, mut random) = (&mut world.worker, random());
        group.bench_function(format!("choice_among_{services}"), |bencher| {
            bencher.iter(|| {
                let ip = Ip::v4(service_ip(random.below(services as usize) as u32));
                let service = tables.service(&ServiceKey::new(ip, 80, proto::UDP)).expect("it is there");
                let backends = service.cluster();
                black_box(backends.get(worker.random_below(backends.len())))
            });
        });
    }
    group.finish();
}

fn connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conntrack");
    group.throughput(Throughput::Elements(1));
    let tuple = |n: u32| Tuple {
        // Few of each source: what one source may have under way is bounded.
        src: Ip::v4((0x0b00_0000 | (n & 0xffff)).to_be_bytes()),
        dst: Ip::v4([10, 96, 0, 10]),
        sport: 1024 + (n >> 16) as u16,
        dport: 80,
        proto: proto::UDP,
    };
    let reply = |n: u32| Tuple { src: Ip::v4([10, 245, 0, 9]), ..tuple(n).reversed() };
    for connections in [FLOWS as u32, 1_000_000] {
        let table =
            Conntrack::heap(connections + connections / 4 + 4096, Timeouts::default()).expect("memory");
        for n in 0..connections {
            table.insert(&tuple(n), &reply(n), 0, None, 1).expect("there is room");
        }
        let mut random = random();
        group.bench_function(format!("look_up_of_{connections}"), |bencher| {
            bencher.iter(|| {
                black_box(table.lookup(&tuple(random.below(connections as usize) as u32)))
                    .expect("it is there")
            });
        });
        // Insertion alone; what was inserted is taken out again between the timed bursts.
        let mut next = connections;
        group.bench_function(format!("insert_beside_{connections}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let (mut spent, mut left) = (Duration::ZERO, iterations);
                while left > 0 {
                    let count = (left as usize).min(MAX_BURST) as u32;
                    let tuples: Vec<_> = (next..next + count).map(|n| (tuple(n), reply(n))).collect();
                    let mut inserted = Vec::with_capacity(tuples.len());
                    let start = Instant::now();
                    for (original, reply) in &tuples {
                        inserted.push(table.insert(original, reply, 0, None, 1).expect("there is room").conn);
                    }
                    spent += start.elapsed();
                    inserted.into_iter().for_each(|conn| assert!(table.remove(conn)));
                    left -= u64::from(count);
                    next += count;
                }
                spent
            });
        });
    }
    group.finish();
}

/// The whole of `process()` for a flow's first packet: parse, walk, connection, compiled entry, rewrite.
fn first_packet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("process");
    group.throughput(Throughput::Elements(1));
    let mut world = world(100);
    let port = addr::pod_port(0);
    let mut n = 0;
    group.bench_function("first_packet_of_a_flow_to_a_service", |bencher| {
        bencher.iter_custom(|iterations| {
            let (mut spent, mut left) = (Duration::ZERO, iterations);
            while left > 0 {
                let count = (left as usize).min(MAX_BURST);
                let mut rx = Burst::new();
                for _ in 0..count {
                    let mut frame = world.cache.alloc().expect("a free frame");
                    // The table of connections holds several times as many flows as come before they are forgotten.
                    frame.copy_from(&to_service(n % (2 * FLOWS), 100));
                    frame.set_port(port.0);
                    rx.push(frame);
                    n += 1;
                }
                if n % (2 * FLOWS) < MAX_BURST {
                    world.worker.flows.clear();
                    forget(&world.worker.conntrack, world.now.seconds);
                }
                let World { reader, worker, now, cache, tx, .. } = &mut world;
                let start = Instant::now();
                process(&mut rx, port, reader.view(), worker, *now, cache, tx);
                spent += start.elapsed();
                tx.flush(|_, burst| {
                    for frame in burst.drain(..) {
                        worker.counters.sent(0, false, 1, 0);
                        cache.free(frame);
                    }
                });
                left -= count as u64;
            }
            spent
        });
    });
    assert_eq!(world.worker.counters.all_drops(), 0, "every packet passes");
    group.finish();
}

/// Empties a table of connections.
fn forget(table: &Conntrack, now_s: u32) {
    table.expire(&mut 0, u32::MAX, now_s + 1_000_000);
}

criterion_group! {
    name = stages;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = parsing, flow_table, rewriting, checksums, lpm, service, connections, first_packet
}
criterion_main!(stages);
