//! Invariant I3: in steady state `process` makes no allocation, takes no lock that could block, and makes no
//! system call. The kernel itself is the judge: the bursts run in a child under a seccomp filter that kills
//! it at the first system call.

// UNSAFETY: fork, prctl and a counting allocator.
#![allow(unsafe_code)]

use fairway_dataplane::process;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{proto, tcp_flags, vxlan};
use fairway_pmd::{Burst, MAX_BURST};
use fairway_tables::PortId;
use fairway_tables::stats::Counter;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the contract is the trait's, and the caller's to keep.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the contract is the trait's, and the caller's to keep.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BURSTS: usize = 20_000;

/// Exit codes of the child.
const CLEAN: i32 = 0;
const ALLOCATED: i32 = 3;
const MISSED: i32 = 4;

/// Lets nothing through but `exit`; anything else kills the process with SIGSYS.
fn forbid_system_calls() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        // Loads the system call's number.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_exit as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: installs a filter that lives on the stack during the call, on this process alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter, 0, 0), 0);
    }
}

/// One of every established way: same node, VXLAN, service and its reply.
fn established(world: &mut World) -> Vec<(PortId, Vec<u8>)> {
    world.set_service([10, 96, 0, 10], 80, proto::TCP, 1, &[(addr::remote_pod(0, 7), 8080)]);
    let mut flows = Vec::new();
    for sport in 1000..1000 + MAX_BURST as u16 {
        let syn = addr::from_pod(0, [10, 96, 0, 10]).tcp(sport, 80, tcp_flags::SYN, b"");
        let (_, out) = world.send(addr::pod_port(0), &syn).expect("the service answers");
        assert_eq!(out[vxlan::HEADER_LEN + 16..vxlan::HEADER_LEN + 20], addr::remote_pod(0, 7));
        let segment = |flags, seq| packet::Segment { flags, seq, ack: 1, window: 9000, shift: None };
        let from_server = |flags, seq, data: &[u8]| {
            let headers = addr::from_remote(addr::remote_pod(0, 7), addr::pod(0));
            let inner = headers.segment(8080, sport, &segment(flags, seq), data);
            packet::encapsulate(&addr::encap_from(0), &inner, 50_000)
        };
        let syn_ack = from_server(tcp_flags::SYN | tcp_flags::ACK, 0, b"");
        world.send(addr::UPLINK, &syn_ack).expect("the answer passes");
        let back = from_server(tcp_flags::ACK, 1, b"r");
        let ack = addr::from_pod(0, [10, 96, 0, 10]).segment(sport, 80, &segment(tcp_flags::ACK, 1), b"d");
        flows.push((addr::pod_port(0), ack));
        flows.push((addr::UPLINK, back));
        flows.push((addr::pod_port(1), addr::from_pod(1, addr::pod(0)).udp(sport, 9, b"d")));
        flows.push((addr::pod_port(2), addr::from_pod(2, addr::remote_pod(1, 9)).udp(sport, 9, b"d")));
    }
    for (port, frame) in &flows {
        world.send(*port, frame).expect("every flow passes");
    }
    flows
}

/// Runs in the child; returns its exit code. Makes no system call.
fn run(world: &mut World, flows: &[(PortId, Vec<u8>)]) -> i32 {
    let hits = world.worker.counters.get(Counter::FlowHits);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut rx = Burst::new();
    for burst in 0..BURSTS {
        let way = burst % 4;
        let port = flows[way].0;
        for (_, bytes) in flows.iter().skip(way).step_by(4) {
            let Some(mut frame) = world.cache.alloc() else { return MISSED };
            frame.copy_from(bytes);
            frame.set_port(port.0);
            rx.push(frame);
        }
        let World { reader, worker, now, cache, tx, .. } = world;
        process(&mut rx, port, reader.view(), worker, *now, cache, tx);
        reader.quiescent();
        tx.flush(|_, burst| cache.free_burst(burst));
    }
    if ALLOCATIONS.load(Ordering::Relaxed) != before {
        return ALLOCATED;
    }
    let expected = (BURSTS * MAX_BURST) as u64;
    if world.worker.counters.get(Counter::FlowHits) - hits == expected { CLEAN } else { MISSED }
}

/// Bursts of what is exceptional but may be frequent: a packet to be fragmented, and the fragments of a datagram to a
/// service and of its answer, the first one last.
fn fragments(world: &mut World) -> Vec<(PortId, Vec<Vec<u8>>)> {
    world.set_service([10, 96, 0, 10], 80, proto::UDP, 1, &[(addr::remote_pod(0, 7), 8080)]);
    let whole = addr::from_pod(0, [10, 96, 0, 10]).udp(1000, 80, &[7; 1472]);
    let mut may_be_cut = whole.clone();
    packet::allow_fragments(&mut may_be_cut);
    let answer = addr::from_remote(addr::remote_pod(0, 7), addr::pod(0)).udp(8080, 1000, &[7; 3000]);
    let last_first = |frame: &[u8]| packet::fragments(frame, 1000).into_iter().rev().collect::<Vec<_>>();
    let wrap = |frame: Vec<u8>| packet::encapsulate(&addr::encap_from(0), &frame, 50_000);
    let bursts = vec![
        (addr::pod_port(0), vec![may_be_cut; MAX_BURST]),
        (addr::pod_port(0), last_first(&whole)),
        (addr::UPLINK, last_first(&answer).into_iter().map(wrap).collect()),
    ];
    for (port, frames) in &bursts {
        assert!(world.burst(*port, frames).len() >= frames.len());
    }
    bursts
}

/// As [`run`], for [`fragments`].
fn run_fragments(world: &mut World, bursts: &[(PortId, Vec<Vec<u8>>)]) -> i32 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut rx = Burst::new();
    for (port, frames) in bursts.iter().cycle().take(BURSTS / 10) {
        for bytes in frames {
            let Some(mut frame) = world.cache.alloc() else { return MISSED };
            frame.copy_from(bytes);
            frame.set_port(port.0);
            rx.push(frame);
        }
        let World { reader, worker, now, cache, tx, .. } = world;
        process(&mut rx, *port, reader.view(), worker, *now, cache, tx);
        reader.quiescent();
        tx.flush(|_, burst| cache.free_burst(burst));
    }
    if ALLOCATIONS.load(Ordering::Relaxed) != before {
        return ALLOCATED;
    }
    if world.worker.counters.all_drops() == 0 { CLEAN } else { MISSED }
}

fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: this test is alone in its binary; the child touches only its own copy of memory, and leaves
    // by the one system call that is allowed.
    unsafe {
        match libc::fork() {
            0 => {
                let code = child();
                libc::syscall(libc::SYS_exit, code);
                unreachable!("exit does not return");
            }
            pid => {
                assert!(pid > 0, "fork failed");
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
                status
            }
        }
    }
}

#[test]
fn a_million_packets_without_allocation_or_system_call() {
    for liberal in [true, false] {
        let status = in_child(|| {
            // Made here, since a UMEM does not follow its process's children.
            let mut world = World::new(WorldConfig::default());
            world.worker.conntrack = world.worker.conntrack.clone().tcp_liberal(liberal);
            let flows = established(&mut world);
            forbid_system_calls();
            let code = run(&mut world, &flows);
            // Giving the memory back would be a system call.
            std::mem::forget((world, flows));
            code
        });
        assert!(
            libc::WIFEXITED(status),
            "killed by signal {}: a system call was made",
            libc::WTERMSIG(status)
        );
        assert_eq!(
            libc::WEXITSTATUS(status),
            CLEAN,
            "{ALLOCATED}: allocated, {MISSED}: a packet did not hit its flow"
        );
    }

    let status = in_child(|| {
        let mut world = World::new(WorldConfig { frames: 1024, ..WorldConfig::default() });
        let bursts = fragments(&mut world);
        forbid_system_calls();
        let code = run_fragments(&mut world, &bursts);
        std::mem::forget((world, bursts));
        code
    });
    assert!(libc::WIFEXITED(status), "fragments: killed by signal {}", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), CLEAN, "fragments: {ALLOCATED}: allocated, {MISSED}: dropped");

    // The judge is awake: one system call is enough.
    let status = in_child(|| {
        forbid_system_calls();
        // SAFETY: asks for a number.
        unsafe { libc::getppid() }
    });
    assert!(libc::WIFSIGNALED(status), "a system call goes unnoticed");
}
