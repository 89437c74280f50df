//! The AF_XDP driver on real veths in network namespaces.

mod netns;

use fairway_pmd::af_xdp::{AfXdp, AfXdpConfig, AfXdpError, AfXdpQueue, BusyPoll, Mode, ModeChoice};
use fairway_pmd::steering::{AttachMode, PortClass, Steering};
use fairway_pmd::{Burst, FrameCache, Queue, Umem, UmemConfig};
use netns::{Netns, eventually, privileged};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn umem(frames: u32) -> Umem {
    Umem::new(UmemConfig { frames, frame_size: 2048, huge_pages: false }).unwrap()
}

/// A pod's port that keeps 512 frames with the kernel, however small the UMEM is.
fn pod() -> AfXdpConfig {
    AfXdpConfig { fill_min: 512, ..AfXdpConfig::pod() }
}

/// An engine's namespace with a veth into each of two pods on one subnet.
struct Pair {
    engine: Netns,
    a: Netns,
    b: Netns,
}

impl Pair {
    fn new() -> Pair {
        let (engine, a, b) = (Netns::new("e"), Netns::new("a"), Netns::new("b"));
        engine.veth("va", &a, "10.9.0.1/24", 1);
        engine.veth("vb", &b, "10.9.0.2/24", 1);
        Pair { engine, a, b }
    }
}

/// Attaches to `ifname` of the caller's namespace, opens its queues and steers its packets to them.
fn open(af_xdp: &AfXdp, steering: &mut Steering, ifname: &str, config: &AfXdpConfig) -> Vec<AfXdpQueue> {
    let attachment = steering.attach(ifname, PortClass::Pod).unwrap();
    assert_eq!(attachment.mode, AttachMode::Native, "veth has native XDP");
    let queues = af_xdp.open(ifname, 7, config).unwrap();
    assert_eq!(queues.len() as u32, attachment.queues);
    assert!(queues.iter().all(|queue| queue.mode() == Mode::Copy), "veth has no zero-copy mode");
    steering.register_queues(&queues).unwrap();
    queues
}

/// Moves what comes in on one queue out of the other, both ways, until told to stop.
fn forward(cache: &mut FrameCache, ends: &mut [AfXdpQueue], stop: &AtomicBool) -> u64 {
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

/// Sends a burst and kicks until the kernel has sent all of it.
fn send(queue: &mut AfXdpQueue, cache: &mut FrameCache, burst: &mut Burst) {
    eventually("sending a burst", || {
        queue.tx_burst(cache, burst);
        queue.kick(cache);
        burst.is_empty() && queue.tx_pending() == 0
    });
}

fn ping_forwarded_with(config: AfXdpConfig) {
    let net = Pair::new();
    let umem = umem(4096);
    let stop = AtomicBool::new(false);
    let (moved, redirected) = std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, umem, engine) = (&stop, &umem, &net.engine);
        let worker = scope.spawn(move || {
            engine.enter();
            let mut steering = Steering::load().unwrap();
            let af_xdp = AfXdp::new(umem);
            let mut ends = open(&af_xdp, &mut steering, "va", &config);
            ends.extend(open(&af_xdp, &mut steering, "vb", &config));
            ready.send(()).unwrap();
            let mut cache = umem.cache();
            let moved = forward(&mut cache, &mut ends, stop);
            for end in &ends {
                let stats = end.stats();
                assert_eq!((stats.bad_descriptors, stats.kernel_invalid), (0, 0), "{stats:?}");
            }
            (moved, steering.stats().unwrap().redirected)
        });
        let ok = is_ready.recv_timeout(Duration::from_secs(10)).is_ok();
        let ping = ok.then(|| net.a.try_sh("ping -n -c 50 -i 0.01 -s 1400 -w 10 10.9.0.2"));
        stop.store(true, Ordering::Relaxed);
        let counts = worker.join().unwrap();
        let ping = String::from_utf8_lossy(&ping.unwrap().stdout).into_owned();
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        counts
    });
    assert!(moved >= 102, "50 echoes, 50 replies and an ARP exchange, but only {moved} frames moved");
    assert!(moved <= redirected, "{moved} of {redirected}");
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn a_ping_crosses_two_sockets_of_one_umem_and_every_frame_comes_home() {
    if privileged("ping over AF_XDP") {
        ping_forwarded_with(pod());
    }
}

#[test]
fn automatic_mode_and_busy_polling_fall_back_to_what_a_veth_can_do() {
    if privileged("ping over AF_XDP in automatic mode") {
        let busy_poll = Some(BusyPoll::default());
        ping_forwarded_with(AfXdpConfig { mode: ModeChoice::Auto, busy_poll, ..pod() });
    }
}

#[test]
fn a_busy_polled_queue_that_had_no_packets_asks_the_kernel_only_when_told() {
    if !privileged("busy polling") {
        return;
    }
    let (net, umem) = (Pair::new(), umem(2048));
    net.engine.run(|| {
        let busy_poll = Some(BusyPoll::default());
        let config = AfXdpConfig { busy_poll, ..pod() };
        let mut va = AfXdp::new(&umem).open("va", 7, &config).unwrap().remove(0);
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        assert!(va.is_busy_polled());
        for polls in 0..3 {
            assert_eq!(va.stats().wakeups, polls);
            // Nothing is steered here, so that no poll brings anything.
            (0..100).for_each(|_| assert_eq!(va.rx_burst(&mut cache, &mut burst), 0));
            assert_eq!(va.stats().wakeups, polls);
            va.poll_kernel();
        }
        let mut vb = AfXdp::new(&umem).open("vb", 7, &pod()).unwrap().remove(0);
        vb.poll_kernel();
        assert_eq!((vb.is_busy_polled(), vb.stats().wakeups), (false, 0));
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn a_packet_that_grew_into_its_headroom_is_sent_without_a_copy() {
    if !privileged("encapsulation over AF_XDP") {
        return;
    }
    let net = Pair::new();
    let (from, to) = (net.a.packet_socket("eth0"), net.b.packet_socket("eth0"));
    let umem = umem(2048);
    net.engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let af_xdp = AfXdp::new(&umem);
        let mut va = open(&af_xdp, &mut steering, "va", &pod()).remove(0);
        let mut vb = open(&af_xdp, &mut steering, "vb", &pod()).remove(0);
        let mut inner: Vec<u8> = (0..=255).collect();
        inner[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        from.send(&inner);
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        eventually("receiving", || {
            va.rx_burst(&mut cache, &mut burst);
            // The pod may send a packet of its own first.
            if burst.last().is_some_and(|frame| frame.bytes() != inner) {
                cache.free_burst(&mut burst);
            }
            !burst.is_empty()
        });
        assert_eq!(burst[0].port(), 7);
        let offset = umem.offset_of(&burst[0]);
        assert!(burst[0].prepend(50));
        assert_eq!(umem.offset_of(&burst[0]), offset - 50);
        let outer = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb6];
        burst[0].bytes_mut()[..50].fill(0x5a);
        burst[0].bytes_mut()[..14].copy_from_slice(&outer);
        let expected = burst[0].bytes().to_vec();
        send(&mut vb, &mut cache, &mut burst);
        eventually("arrival", || to.recv().is_some_and(|frame| frame == expected));
        assert_eq!(expected[50..], inner);
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn bursts_longer_than_a_kernel_batch_are_sent_whole() {
    if !privileged("long bursts over AF_XDP") {
        return;
    }
    let net = Pair::new();
    let umem = umem(2048);
    let received = || -> u64 {
        net.b.sh("ip -j -s link show eth0 | grep -o '\"rx\":{\"bytes\":[0-9]*,\"packets\":[0-9]*' | grep -o '[0-9]*$'")
            .trim()
            .parse()
            .unwrap()
    };
    let before = received();
    net.engine.run(|| {
        let mut vb = AfXdp::new(&umem).open("vb", 0, &pod()).unwrap().remove(0);
        let mut cache = umem.cache();
        for _ in 0..20 {
            let mut burst = Burst::new();
            while !burst.is_full() {
                let mut frame = cache.alloc().unwrap();
                assert!(frame.copy_from(&[0xff; 60]));
                burst.push(frame);
            }
            // No kick before the ring is full, so that the kernel finds many batches in it.
            eventually("room in the ring", || {
                vb.tx_burst(&mut cache, &mut burst);
                burst.is_empty() || {
                    vb.kick(&mut cache);
                    false
                }
            });
        }
        // Now an empty and a short packet: the driver refuses them, as the kernel would never give the frame of
        // an empty one back.
        let mut burst: Burst = (0..2).map(|_| cache.alloc().unwrap()).collect();
        assert!(burst[0].set_len(0) && burst[1].set_len(13));
        vb.tx_burst(&mut cache, &mut burst);
        send(&mut vb, &mut cache, &mut burst);
        let stats = vb.stats();
        assert_eq!((stats.tx_packets, stats.kernel_invalid), (1280, 2), "{stats:?}");
    });
    eventually("arrival", || received() >= before + 1280);
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn sockets_come_and_go_in_any_order_and_a_freed_queue_opens_again() {
    if !privileged("reopening queues") {
        return;
    }
    let (engine, a, b) = (Netns::new("e"), Netns::new("a"), Netns::new("b"));
    engine.veth("va", &a, "10.9.0.1/24", 3);
    engine.veth("vb", &b, "10.9.0.2/24", 1);
    let umem = umem(4096);
    engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let af_xdp = AfXdp::new(&umem);
        let va = open(&af_xdp, &mut steering, "va", &pod());
        assert_eq!(va.iter().map(AfXdpQueue::queue_id).collect::<Vec<_>>(), [0, 1, 2]);
        let vb = open(&af_xdp, &mut steering, "vb", &pod());
        // The first socket registered the memory; its going must not hurt those that share it.
        let ifindex = va[0].ifindex();
        drop(va);
        assert_eq!(umem.pool().missing(), pod().fill_min as usize);
        let mut va = af_xdp.open("va", 1, &pod()).unwrap();
        steering.register_queues(&va).unwrap();
        drop(vb);
        steering.detach(ifindex).unwrap();
        let mut cache = umem.cache();
        let left: Vec<usize> = va.iter_mut().map(|queue| queue.close(&mut cache)).collect();
        assert_eq!(left, [512; 3], "the fill rings stay with the kernel until the queue is dropped");
        let mut burst = Burst::new();
        assert_eq!(va[0].rx_burst(&mut cache, &mut burst), 0);
        burst.push(cache.alloc().unwrap());
        assert_eq!(va[0].tx_burst(&mut cache, &mut burst), 0, "a closed queue takes nothing");
        cache.free_burst(&mut burst);
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn frames_come_home_from_a_netdev_that_is_deleted_and_its_name_can_be_used_again() {
    if !privileged("deleting a netdev under a socket") {
        return;
    }
    let net = Pair::new();
    let umem = umem(4096);
    net.engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let af_xdp = AfXdp::new(&umem);
        let mut va = open(&af_xdp, &mut steering, "va", &pod()).remove(0);
        net.engine.ip("link del va");
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        let mut frame = cache.alloc().unwrap();
        assert!(frame.copy_from(&[0xff; 60]));
        burst.push(frame);
        assert_eq!(va.tx_burst(&mut cache, &mut burst), 1);
        va.kick(&mut cache);
        assert!(va.is_down());
        let wakeups = va.stats().wakeups;
        (0..200).for_each(|_| va.kick(&mut cache));
        assert_eq!(va.stats().wakeups, wakeups, "a device that is gone is not called for every kick");
        steering.detach(va.ifindex()).unwrap();
        // Its socket shares the memory of one that is unbound now.
        let vb = open(&af_xdp, &mut steering, "vb", &pod());
        net.engine.veth("va", &Netns::new("c"), "10.9.0.3/24", 1);
        drop((va, vb));
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn what_cannot_be_opened_is_refused_with_a_reason_and_keeps_no_frame() {
    if !privileged("refusals") {
        return;
    }
    let net = Pair::new();
    let umem = umem(1024);
    net.engine.run(|| {
        let af_xdp = AfXdp::new(&umem);
        let pod = pod();
        let error = af_xdp.open("nothere0", 0, &pod).err().unwrap();
        assert!(matches!(&error, AfXdpError::NoInterface { ifname } if ifname == "nothere0"), "{error}");
        let zero_copy = AfXdpConfig { mode: ModeChoice::ZeroCopy, ..pod };
        let error = af_xdp.open("va", 0, &zero_copy).err().unwrap();
        assert!(matches!(error, AfXdpError::NoZeroCopy { queue: 0, .. }), "{error}");
        let error = af_xdp.open("va", 0, &AfXdpConfig { rx_ring: 1000, ..pod }).err().unwrap();
        assert!(matches!(error, AfXdpError::Config { field: "rx_ring", .. }), "{error}");
        let error = af_xdp.open("va", 0, &AfXdpConfig { fill_target: 1025, ..pod }).err().unwrap();
        assert!(matches!(error, AfXdpError::Config { field: "fill_target", .. }), "{error}");
        let error = af_xdp.open("va", 0, &AfXdpConfig { fill_min: 1025, ..pod }).err().unwrap();
        assert!(matches!(error, AfXdpError::Config { field: "fill_min", .. }), "{error}");
        assert_eq!(umem.pool().missing(), 0);

        let va = af_xdp.open("va", 0, &pod).unwrap();
        let started = Instant::now();
        let error = AfXdp::new(&umem).open("va", 0, &pod).err().unwrap();
        assert!(matches!(error, AfXdpError::QueueBusy { queue: 0, .. }), "{error}");
        assert!(started.elapsed() > Duration::from_secs(1), "it waits for a queue that is being freed");
        let mut cache = umem.cache();
        let held: Vec<_> = (0..200).map(|_| cache.alloc().unwrap()).collect();
        let error = af_xdp.open("vb", 0, &pod).err().unwrap();
        assert!(matches!(error, AfXdpError::OutOfFrames { wanted: 512, .. }), "{error}");
        held.into_iter().for_each(|frame| cache.free(frame));
        drop((va, cache));
    });
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn a_packet_longer_than_a_frame_is_dropped_and_counted() {
    if !privileged("long packets") {
        return;
    }
    let net = Pair::new();
    net.a.ip("link set eth0 mtu 3000");
    net.engine.ip("link set va mtu 3000");
    let from = net.a.packet_socket("eth0");
    let umem = umem(1024);
    net.engine.run(|| {
        let mut steering = Steering::load().unwrap();
        let mut va = open(&AfXdp::new(&umem), &mut steering, "va", &pod()).remove(0);
        let (mut cache, mut burst) = (umem.cache(), Burst::new());
        let dropped = va.stats().kernel_rx_dropped;
        from.send(&[0xff; 2900]);
        from.send(&[0xff; 1790]);
        eventually("receiving", || {
            va.rx_burst(&mut cache, &mut burst);
            assert!(burst.iter().all(|frame| frame.len() <= 1792));
            burst.iter().any(|frame| frame.bytes() == [0xff; 1790])
        });
        assert_eq!(va.stats().kernel_rx_dropped, dropped + 1);
        cache.free_burst(&mut burst);
    });
    assert_eq!(umem.pool().missing(), 0);
}
