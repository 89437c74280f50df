//! The AF_XDP driver and the steering program on real veths in network namespaces.

mod netns;

use fairway_pmd::af_xdp::{AfXdp, AfXdpConfig, AfXdpQueue, Mode};
use fairway_pmd::steering::{AttachMode, PortClass, Steering};
use fairway_pmd::{Burst, FrameCache, Queue, Umem, UmemConfig};
use netns::{Netns, privileged};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn umem(frames: u32) -> Umem {
    Umem::new(UmemConfig { frames, frame_size: 2048, huge_pages: false }).unwrap()
}

/// An engine's namespace with a veth into each of two pods on one subnet.
struct Pair {
    engine: Netns,
    a: Netns,
    _b: Netns,
}

impl Pair {
    fn new() -> Pair {
        let (engine, a, b) = (Netns::new("e"), Netns::new("a"), Netns::new("b"));
        engine.veth("va", &a, "10.9.0.1/24");
        engine.veth("vb", &b, "10.9.0.2/24");
        Pair { engine, a, _b: b }
    }
}

/// Moves what comes in on one queue out of the other, both ways, until told to stop.
fn forward(cache: &mut FrameCache, ends: &mut [AfXdpQueue; 2], stop: &AtomicBool) -> u64 {
    let mut moved = 0;
    let mut burst = Burst::new();
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        for from in 0..2 {
            let received = ends[from].rx_burst(cache, &mut burst);
            idle &= received == 0;
            moved += received as u64;
            ends[1 - from].tx_burst(cache, &mut burst);
            cache.free_burst(&mut burst);
            ends[1 - from].kick(cache);
        }
        if idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    moved
}

/// Opens `va` and `vb` in the caller's namespace and steers their packets to the sockets.
fn open_pair(af_xdp: &AfXdp, steering: &mut Steering) -> [AfXdpQueue; 2] {
    ["va", "vb"].map(|ifname| {
        let attachment = steering.attach(ifname, PortClass::Pod).unwrap();
        assert_eq!(attachment.mode, AttachMode::Native, "veth has native XDP");
        let mut queues = af_xdp.open(ifname, 7, &AfXdpConfig::pod()).unwrap();
        assert_eq!(queues.len(), 1);
        assert_eq!(queues[0].mode(), Mode::Copy);
        steering.register_queues(&queues).unwrap();
        queues.remove(0)
    })
}

#[test]
fn a_ping_crosses_two_sockets_of_one_umem_and_every_frame_comes_home() {
    if !privileged("ping over AF_XDP") {
        return;
    }
    let net = Pair::new();
    let umem = umem(4096);
    let stop = AtomicBool::new(false);
    let (moved, redirected) = std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, umem, engine) = (&stop, &umem, &net.engine);
        let worker = scope.spawn(move || {
            engine.enter();
            let mut steering = Steering::load().unwrap();
            let mut ends = open_pair(&AfXdp::new(umem), &mut steering);
            ready.send(()).unwrap();
            let mut cache = umem.cache();
            let moved = forward(&mut cache, &mut ends, stop);
            for end in &ends {
                let stats = end.stats();
                assert_eq!(stats.bad_descriptors, 0, "{stats:?}");
                assert_eq!(stats.kernel_invalid, 0, "{stats:?}");
            }
            (moved, steering.stats().unwrap().redirected)
        });
        let ok = is_ready.recv_timeout(Duration::from_secs(10)).is_ok();
        let ping = ok.then(|| net.a.try_sh("ping -n -c 50 -i 0.01 -s 1400 -w 10 10.9.0.2"));
        stop.store(true, Ordering::Relaxed);
        let counts = worker.join().unwrap();
        let ping = ping.unwrap();
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
        assert!(String::from_utf8_lossy(&ping.stdout).contains(" 0% packet loss"), "{ping:?}");
        counts
    });
    assert!(moved >= 102, "50 echoes, 50 replies and an ARP exchange, but only {moved} frames moved");
    assert_eq!(moved, redirected);
    assert_eq!(umem.pool().missing(), 0);
}
