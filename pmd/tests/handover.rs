//! Sockets and attachments that go over to another owner of the same process, as they do to its next image:
//! packets that come meanwhile wait, and every frame comes home.

// UNSAFETY: takes descriptors by their number, as the next image does.
#![allow(unsafe_code)]

mod netns;

use fairway_pmd::af_xdp::{self, AfXdp, AfXdpConfig, AfXdpQueue, QueueState};
use fairway_pmd::steering::{self, LinkState, PortClass, Steering};
use fairway_pmd::{Burst, Queue, Umem, UmemConfig};
use netns::{Netns, PacketSocket, eventually, privileged};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const UMEM: UmemConfig = UmemConfig { frames: 2048, frame_size: 2048, huge_pages: false };

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the former owner was forgotten, so that this is the only one.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An Ethernet frame to everyone with a number in it.
fn numbered(number: u8) -> Vec<u8> {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend([number; 50]);
    frame
}

/// One with a larger number.
fn counted(number: u32) -> Vec<u8> {
    let mut frame = numbered(0);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// What an image leaves behind.
struct Left {
    memory: OwnedFd,
    owners: Vec<u16>,
    queue: QueueState,
    link: LinkState,
}

/// Opens `va`, receives the first of the packets that `send` sends, leaves one unsent, and ends without closing.
fn first_image(mut send: impl FnMut(u8)) -> Left {
    let umem = Umem::new(UMEM).unwrap();
    let mut cache = umem.cache();
    let mut steering = Steering::load().unwrap();
    steering.attach("va", PortClass::Pod).unwrap();
    let config = AfXdpConfig { fill_min: 512, ..AfXdpConfig::pod() };
    let mut queue = AfXdp::new(&umem).open("va", 7, &config).unwrap().remove(0);
    steering.register_queues([&queue]).unwrap();
    send(1);
    let mut burst = Burst::new();
    eventually("the first packet", || queue.rx_burst(&mut cache, &mut burst) > 0);
    assert_eq!(burst[0].bytes(), numbered(1));
    assert!(burst[0].copy_from(&numbered(100)));
    // Into the ring, without waking the kernel.
    assert_eq!(queue.tx_burst(&mut cache, &mut burst), 1);
    drop(cache);
    let left = Left {
        memory: umem.file().try_clone_to_owned().unwrap(),
        owners: af_xdp::owners(&umem, &[&queue]),
        queue: queue.state(),
        link: steering.links()[0],
    };
    assert_eq!(left.owners.iter().filter(|owner| **owner == 0).count(), 511 + 1, "fill ring and tx ring");
    assert!(!left.owners.contains(&af_xdp::LOST));
    std::mem::forget((umem, steering, queue));
    left
}

fn adopt(left: Left) -> (AfXdp, AfXdpQueue, Steering) {
    let sockets = vec![(left.queue, owned(left.queue.fd))];
    let (af_xdp, mut queues) = af_xdp::adopt(left.memory, UMEM, &left.owners, sockets).unwrap();
    let mut steering = Steering::load().unwrap();
    let sockets = steering::sockets(&queues);
    steering.adopt("va", &left.link, owned(left.link.fd), &sockets).unwrap();
    (af_xdp, queues.remove(0), steering)
}

/// An engine's namespace and a pod's, joined by a veth, and the pod's end of it.
fn wired() -> (Netns, Netns, PacketSocket) {
    let (engine, pod) = (Netns::new("e"), Netns::new("p"));
    engine.veth("va", &pod, "10.9.0.1/24", 1);
    let wire = pod.packet_socket("eth0");
    (engine, pod, wire)
}

#[test]
fn packets_wait_for_the_next_image_and_every_frame_comes_home() {
    if !privileged("handing an AF_XDP socket over") {
        return;
    }
    let (engine, _pod, wire) = wired();
    let umem = engine.run(|| {
        let left = first_image(|number| wire.send(&numbered(number)));
        assert!(steering::is_unchanged("va", &left.link.attachment));
        // Nobody receives now: the kernel goes on putting packets into the ring.
        (2..30).for_each(|number| wire.send(&numbered(number)));
        let (af_xdp, mut queue, mut steering) = adopt(left);
        // And these come through the new program.
        (30..40).for_each(|number| wire.send(&numbered(number)));
        let (umem, mut burst, mut numbers) = (af_xdp.umem().clone(), Burst::new(), Vec::new());
        let mut cache = umem.cache();
        eventually("all packets", || {
            queue.rx_burst(&mut cache, &mut burst);
            for frame in burst.drain(..) {
                assert_eq!((frame.bytes(), frame.port()), (numbered(frame.bytes()[20]).as_slice(), 7));
                numbers.push(frame.bytes()[20]);
                cache.free(frame);
            }
            numbers.len() == 38
        });
        assert_eq!(numbers, (2..40).collect::<Vec<u8>>(), "each once, in order");
        assert_eq!(steering.stats().unwrap().redirected, 10, "the new program took over");
        assert_eq!(queue.tx_pending(), 1, "what the former image had not sent");
        eventually("the packet left to send", || {
            queue.kick(&mut cache);
            queue.tx_pending() == 0
        });
        assert_eq!((queue.stats().rx_packets, queue.stats().bad_descriptors), (39, 0));
        steering.detach(queue.ifindex()).unwrap();
        queue.close(&mut cache);
        drop((queue, cache));
        umem
    });
    assert_eq!(umem.pool().missing(), 0);
    let mut sent = Vec::new();
    eventually("the packet left to send", || {
        sent.extend(wire.recv());
        sent.contains(&numbered(100))
    });
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    if !privileged("handing an AF_XDP socket over") {
        return;
    }
    let (engine, _pod, wire) = wired();
    engine.run(|| {
        let left = first_image(|number| wire.send(&numbered(number)));
        let file = std::fs::File::open("/dev/null").unwrap();
        let sockets = vec![(left.queue, file.into())];
        let error = af_xdp::adopt(left.memory, UMEM, &left.owners, sockets).err().unwrap().to_string();
        assert!(error.contains("mapping the rings of an open socket"), "{error}");
        drop((owned(left.queue.fd), owned(left.link.fd)));
    });
}

#[test]
fn no_packet_is_lost_while_the_next_image_takes_over() {
    if !privileged("handing an AF_XDP socket over under load") {
        return;
    }
    let (engine, _pod, wire) = wired();
    let umem = engine.run(|| {
        let left = first_image(|number| wire.send(&numbered(number)));
        let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
        let (af_xdp, mut queue, mut steering) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && sent.load(Ordering::Relaxed) < 500 {
                    wire.send(&counted(sent.fetch_add(1, Ordering::Relaxed)));
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
            let adopted = adopt(left);
            let so_far = sent.load(Ordering::Relaxed);
            eventually("packets after the exchange", || {
                sent.load(Ordering::Relaxed) >= (so_far + 10).min(500)
            });
            stop.store(true, Ordering::Relaxed);
            adopted
        });
        let (umem, mut burst, mut numbers) = (af_xdp.umem().clone(), Burst::new(), Vec::new());
        let mut cache = umem.cache();
        let expected: Vec<u32> = (0..sent.load(Ordering::Relaxed)).collect();
        eventually("all packets", || {
            queue.rx_burst(&mut cache, &mut burst);
            for frame in burst.drain(..) {
                numbers.extend(frame.bytes()[14..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes)));
                cache.free(frame);
            }
            numbers.len() >= expected.len()
        });
        assert_eq!(numbers, expected, "each once, in order");
        steering.detach(queue.ifindex()).unwrap();
        queue.close(&mut cache);
        drop((queue, cache));
        umem
    });
    assert_eq!(umem.pool().missing(), 0);
}
