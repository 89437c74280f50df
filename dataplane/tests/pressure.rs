//! A full connection table, and floods, through `process`: what was agreed on before goes on, and others get in.

use fairway_dataplane::conntrack::State;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::{ETH_LEN, proto, tcp_flags};
use fairway_pmd::MAX_BURST;
use fairway_tables::DropReason;
use fairway_tables::stats::Counter;

const VIP: [u8; 4] = [10, 96, 0, 10];
const PORT: u16 = 80;

/// A TCP connection from a pod through the service to a pod of this node.
#[derive(Clone, Copy)]
struct Client {
    pod: u16,
    sport: u16,
    backend: [u8; 4],
}

/// Sends a client's segment; the backend that it reached.
fn send(world: &mut World, pod: u16, sport: u16, flags: u8) -> Option<[u8; 4]> {
    let frame = addr::from_pod(pod, VIP).tcp(sport, PORT, flags, b"");
    let (_, out) = world.send(addr::pod_port(pod), &frame)?;
    Some([out[ETH_LEN + 16], out[ETH_LEN + 17], out[ETH_LEN + 18], out[ETH_LEN + 19]])
}

/// Sends the server's segment to a client; whether it arrived as the service's.
fn answer(world: &mut World, client: &Client, flags: u8) -> bool {
    let server = (0..64).find(|n| addr::pod(*n) == client.backend).expect("a pod of this node");
    let frame = addr::from_pod(server, addr::pod(client.pod)).tcp(8080, client.sport, flags, b"");
    let sent = world.send(addr::pod_port(server), &frame);
    sent.is_some_and(|(port, out)| {
        port == addr::pod_port(client.pod) && out[ETH_LEN + 12..ETH_LEN + 16] == VIP
    })
}

/// A handshake, with `meanwhile` between its steps.
fn open(world: &mut World, pod: u16, sport: u16, mut meanwhile: impl FnMut(&mut World)) -> Client {
    let backend = send(world, pod, sport, tcp_flags::SYN).expect("the SYN is forwarded");
    let client = Client { pod, sport, backend };
    meanwhile(world);
    assert!(answer(world, &client, tcp_flags::SYN | tcp_flags::ACK));
    meanwhile(world);
    assert_eq!(send(world, pod, sport, tcp_flags::ACK), Some(backend));
    client
}

/// SYNs of a pod, each of another connection; half of them answered by who is there.
struct Flood {
    pod: u16,
    sent: u32,
}

impl Flood {
    fn run(&mut self, world: &mut World, count: u32) {
        let mut burst = Vec::with_capacity(MAX_BURST);
        for _ in 0..count / MAX_BURST as u32 {
            burst.clear();
            for _ in 0..MAX_BURST {
                let n = self.sent;
                self.sent += 1;
                let dst = addr::remote_pod((n % 3) as u8, 1 + (n / 3 % 250) as u8);
                let headers = addr::from_pod(self.pod, dst);
                burst.push(headers.tcp(n as u16, 1 + (n >> 16) as u16, tcp_flags::SYN, b""));
            }
            world.burst(addr::pod_port(self.pod), &burst);
        }
    }
}

fn world(connections: u32, pods: u16) -> World {
    let mut world = World::new(WorldConfig { pods, connections, flows: 16_384, ..WorldConfig::default() });
    let backends: Vec<_> = (1..4).map(|n| (addr::pod(n), 8080)).collect();
    world.set_service(VIP, PORT, proto::TCP, 1, &backends);
    world
}

fn established(world: &World) -> usize {
    world.worker.conntrack.iter().filter(|connection| connection.state == State::Established).count()
}

#[test]
fn a_flood_of_two_million_syns_breaks_nobody_elses_connections() {
    const CONNECTIONS: u32 = 65_536;
    let mut world = world(CONNECTIONS, 8);
    let mut flood = Flood { pod: 7, sent: 0 };
    let mut clients = Vec::new();
    for pod in 4..7 {
        clients.extend((0..600).map(|n| open(&mut world, pod, 10_000 + n, |_| {})));
    }
    for round in 0..20 {
        flood.run(&mut world, 90_000);
        // A new connection, with more SYNs in the midst of its handshake than the table has places.
        let new = open(&mut world, 4 + round % 3, 20_000 + round, |world| flood.run(world, 5_000));
        clients.push(new);
        world.now.seconds += 3;
        world.worker.housekeep(world.now, 4);
    }
    assert!(flood.sent > 1_900_000);
    assert_eq!(established(&world), clients.len());
    let of_flood = world.worker.conntrack.iter().filter(|c| c.state == State::New).count();
    assert_eq!(of_flood, CONNECTIONS as usize / 8, "the flood has its share, and no more");
    // New backends: who is known goes on where he was.
    world.set_service(VIP, PORT, proto::TCP, 1, &[(addr::pod(0), 8080)]);
    for client in &clients {
        assert_eq!(send(&mut world, client.pod, client.sport, tcp_flags::ACK), Some(client.backend));
        assert!(answer(&mut world, client, tcp_flags::ACK));
    }
    let counters = &world.worker.counters;
    let evicted = counters.get(Counter::ConntrackEvicted);
    assert!(evicted > 1_800_000, "{evicted} SYNs took the place of the flood's own");
    assert_eq!(counters.drops(DropReason::ConntrackFull), 0);
    assert_eq!(
        u64::from(flood.sent) + clients.len() as u64,
        counters.get(Counter::ConntrackNew) + counters.drops(DropReason::ConntrackShare)
    );
    world.finish();
}

#[test]
fn a_table_full_of_established_connections_takes_nothing_new_until_one_ends() {
    let mut world = world(256, 8);
    let clients: Vec<Client> = (0..256).map(|n| open(&mut world, 4, 10_000 + n, |_| {})).collect();
    assert_eq!(world.worker.counters.drops(DropReason::ConntrackFull), 0);
    let mut flood = Flood { pod: 7, sent: 0 };
    flood.run(&mut world, 12_800);
    assert_eq!(world.worker.counters.drops(DropReason::ConntrackFull), 12_800);
    assert_eq!(send(&mut world, 5, 30_000, tcp_flags::SYN), None);
    for client in &clients {
        assert_eq!(send(&mut world, 4, client.sport, tcp_flags::ACK), Some(client.backend));
    }
    // One is closed by both sides, and gives way at once.
    let closed = clients[77];
    assert_eq!(send(&mut world, 4, closed.sport, tcp_flags::FIN | tcp_flags::ACK), Some(closed.backend));
    assert!(answer(&mut world, &closed, tcp_flags::FIN | tcp_flags::ACK));
    open(&mut world, 5, 30_000, |_| {});
    assert_eq!(established(&world), 256);
    assert_eq!(world.worker.counters.get(Counter::ConntrackEvicted), 1);
    world.finish();
}
