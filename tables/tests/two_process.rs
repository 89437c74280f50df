//! A real second process reads while this one writes flat out; and one that is killed while it reads.
//!
//! Every value carries a round number from which the rest of it follows, so that a reader can tell a
//! value that was put together from two rounds, or whose memory was reused under it.

use fairway_tables::*;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROLE: &str = "FAIRWAY_TABLES_TEST_ROLE";
const DIR: &str = "FAIRWAY_TABLES_TEST_DIR";
const OBJECTS: u16 = 24;
/// Each slot is used once in about three rounds.
const ROUNDS: u32 = 300;
const WRITE_TIME: Duration = Duration::from_secs(2);

/// Ends the child however the test ends.
struct Reading(Child);

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs this very test binary as a reader.
fn start(role: &str, dir: &Path) -> (Reading, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "second_process", "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("reader ready") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the reader ended too soon");
    }
    (Reading(child), out)
}

/// What the second process does; in the first one, nothing.
#[test]
fn second_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = std::path::PathBuf::from(std::env::var(DIR).unwrap());
    let mut reader = Reader::open(&dir, &role).unwrap();
    assert_tables_are_mapped_read_only(&dir);
    println!("reader ready");
    match role.as_str() {
        "stall" => std::thread::sleep(Duration::from_secs(60)),
        _ => {
            let (looked_up, changes) = read_until_stopped(&mut reader);
            println!("looked up {looked_up} changes {changes}");
        }
    }
}

fn assert_tables_are_mapped_read_only(dir: &Path) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let name = dir.canonicalize().unwrap().join("tables");
    let ours: Vec<_> = maps.lines().filter(|l| l.ends_with(name.to_str().unwrap())).collect();
    assert!(!ours.is_empty(), "{maps}");
    assert!(ours.iter().all(|l| l.split(' ').nth(1) == Some("r--s")), "{ours:?}");
}

fn remote(i: u16) -> Ip {
    Ip::v4([192, 0, i.to_be_bytes()[0], i.to_be_bytes()[1]])
}

fn prefix(i: u16) -> Prefix {
    let len = if i.is_multiple_of(2) { 24 } else { 30 };
    Prefix::new(Ip::v4([10, 0, i as u8, 0]), len).unwrap()
}

/// An address that tells its round and object.
fn stamped(round: u32, i: u16) -> Ip {
    let mut ip = [0xfd; 16];
    ip[4..8].copy_from_slice(&round.to_be_bytes());
    ip[8..10].copy_from_slice(&i.to_be_bytes());
    ip[10..14].copy_from_slice(&round.wrapping_mul(0x9e37_79b9).to_be_bytes());
    Ip(ip)
}

fn stamp(ip: Ip, i: u16) -> u32 {
    let round = u32::from_be_bytes(ip.0[4..8].try_into().unwrap());
    assert_eq!(ip, stamped(round, i), "a torn or reused value");
    round
}

fn backend_count(round: u32, i: u16) -> usize {
    (round as usize * 7 + usize::from(i)) % 23
}

fn batch(round: u32) -> Vec<Op> {
    let mut ops = Vec::new();
    for i in 0..OBJECTS {
        let next_hop = NextHop::new(NextHopKind::Tunnel, stamped(round, i), PortId(round as u16));
        let tunnel = Tunnel {
            local: stamped(round, i),
            node: stamped(round, i),
            next_hop: stamped(round, i),
            vni: round,
            udp_port: round as u16,
            port: PortId(round as u16),
            remote_mac: Mac([2, 0, 0, 0, 0, round as u8]),
            local_mac: Mac([2, 0, 0, 0, 0, round as u8]),
            node_ports: stamped(round, i),
            node_ports6: Ip::UNSPECIFIED,
        };
        let key = ServiceKey::new(remote(i), 80, 6);
        let service = Service {
            id: round,
            flags: round & !(Service::MAGLEV | Service::DSR),
            affinity_timeout_s: round,
        };
        let backend = Backend { ip: stamped(round, i), port: round as u16, flags: round as u16 };
        // Each object is absent in one round of eight.
        if (round as u16).wrapping_add(i).is_multiple_of(8) {
            ops.extend([Op::DelRoute(prefix(i)), Op::DelTunnel(remote(i)), Op::DelService(key)]);
        } else {
            ops.push(Op::SetTunnel(remote(i), tunnel));
            ops.push(Op::SetRoute(prefix(i), next_hop));
            ops.push(Op::SetService(key, service, vec![backend; backend_count(round, i)].into()));
        }
    }
    ops
}

/// Looks everything up again and again until the settings say stop. Returns how many values it saw, and
/// how many generations.
fn read_until_stopped(reader: &mut Reader) -> (u64, u64) {
    let (mut looked_up, mut changes, mut last) = (0, 0, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "the writer never said stop");
        let view = reader.view();
        let generation = view.generation();
        assert!(generation >= last, "generations go backwards");
        changes += u64::from(generation > last);
        last = generation;
        if view.settings().vni == 1 {
            return (looked_up, changes);
        }
        let (mut oldest, mut newest) = (u64::MAX, 0);
        let mut note = |round: u32| {
            oldest = oldest.min(round.into());
            newest = newest.max(round.into());
            looked_up += 1;
        };
        for i in 0..OBJECTS {
            if let Some(hop) = view.route(prefix(i).addr()) {
                let round = stamp(hop.addr, i);
                assert_eq!((hop.port, hop.kind()), (PortId(round as u16), Some(NextHopKind::Tunnel)));
                note(round);
            }
            if let Some(tunnel) = view.tunnel(remote(i)) {
                let round = stamp(tunnel.local, i);
                assert_eq!((tunnel.vni, tunnel.next_hop), (round, stamped(round, i)));
                let number = view.tunnel_number(remote(i));
                let numbered = number.and_then(|number| view.numbered_tunnel(number));
                assert!(numbered.is_none_or(|(ip, _)| ip == remote(i)), "a number is one tunnel's");
                assert_eq!((tunnel.udp_port, tunnel.remote_mac.0[5]), (round as u16, round as u8));
                note(round);
            }
            if let Some(service) = view.service(&ServiceKey::new(remote(i), 80, 6)) {
                let Service { id: round, flags, affinity_timeout_s } = service.service();
                assert_eq!((flags, affinity_timeout_s), (round & !(Service::MAGLEV | Service::DSR), round));
                assert_eq!(service.cluster().len(), backend_count(round, i));
                for backend in service.backends() {
                    assert_eq!((stamp(backend.ip, i), backend.port), (round, round as u16));
                }
                note(round);
            }
        }
        // Round n is generation n; the batch under way may show before it is published.
        assert!(oldest >= generation, "a value older than the generation read before it");
        assert!(newest <= view.generation() + 1, "a value from the future");
        reader.quiescent();
    }
}

fn small() -> Capacities {
    Capacities {
        ports: 1,
        endpoints: 1,
        routes: u32::from(OBJECTS),
        next_hops: 3 * u32::from(OBJECTS),
        route_groups: 1,
        lpm_nodes: 2 * u32::from(OBJECTS),
        neighbours: 1,
        tunnels: u32::from(OBJECTS),
        services: u32::from(OBJECTS),
        backends: 24 * u32::from(OBJECTS),
    }
}

#[test]
fn two_processes_read_whole_values_while_memory_is_reused_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), small()).unwrap();
    let readers = [start("first", dir.path()), start("second", dir.path())];
    let (mut round, mut waits) = (1, 0u64);
    let begin = Instant::now();
    // At least so long, and on a busy machine until slots were reused many times.
    while begin.elapsed() < WRITE_TIME || (round < ROUNDS && begin.elapsed() < 20 * WRITE_TIME) {
        match writer.apply(&batch(round)) {
            Ok(_) => round += 1,
            Err(ApplyError::WaitingForReader { .. }) => {
                waits += 1;
                std::thread::yield_now();
            }
            Err(e) => panic!("{e}"),
        }
    }
    let stop = Settings { vni: 1, ..bytemuck::Zeroable::zeroed() };
    writer.apply(&[Op::SetSettings(stop)]).unwrap();
    println!("{round} rounds, {waits} waits for readers");
    assert!(round >= ROUNDS, "only {round} rounds were written");
    for (mut reader, mut out) in readers {
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        assert!(reader.0.wait().unwrap().success(), "the reader failed: {said}");
        let line = said.lines().find(|l| l.starts_with("looked up")).expect("a report");
        let numbers: Vec<u64> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
        println!("{line}");
        assert!(numbers[0] > 1000 && numbers[1] > 10, "{line}");
    }
}

#[test]
fn a_killed_reader_no_longer_holds_memory_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), small()).unwrap();
    let (mut reader, _out) = start("stall", dir.path());
    let refused = (1..100).find_map(|round| writer.apply(&batch(round)).err()).expect("memory runs out");
    let ApplyError::WaitingForReader { reader: name, pid, seen, waiting, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!((name.as_str(), *pid, *seen), ("stall", reader.0.id(), 0));
    assert!(*waiting > 0);
    let before = writer.view().generation();
    assert_eq!(writer.apply(&batch(1000)), Err(refused));
    assert_eq!(writer.view().generation(), before);

    reader.0.kill().unwrap();
    reader.0.wait().unwrap();
    for round in 1000..1100 {
        writer.apply(&batch(round)).unwrap();
    }
    // Its slot can be had again, as often as there are slots and more.
    for _ in 0..100 {
        Reader::open(dir.path(), "next").unwrap();
    }
}
