//! What threads share under the model checker: every order in which they may run, and every value that the
//! memory model lets a load return. docs/proofs.md says what each model catches, and what none does.

use crate::area::Area;
use crate::asleep::Asleep;
use crate::frame::{Frame, Umem, UmemConfig};
use crate::ring::{Consumer, Offsets, Producer};
use crate::spsc::ring_at;
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Cursors that wrap in the middle of a model.
const NEAR_WRAP: usize = usize::MAX - 1;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // `make model` sets LOOM_MAX_PREEMPTIONS higher.
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

#[test]
fn a_handoff_ring_passes_entries_once_and_in_order_over_the_wrap_of_its_cursors() {
    for (capacity, batch, limit) in [(1, 1, 1), (2, 2, 1), (2, 1, 2)] {
        model(move || {
            let (mut sender, mut receiver) = ring_at(capacity, NEAR_WRAP);
            let sending = thread::spawn(move || {
                let mut sent = 0;
                // A few tries each, and what is left afterwards: loops that wait would have no end to model.
                for _ in 0..3 {
                    let entries: Vec<_> = (sent..sent + batch).map(Box::new).collect();
                    sent += sender.send_all(&mut entries.into_iter());
                }
                sent
            });
            let mut received = 0;
            let mut take = |entry: Box<usize>| {
                assert_eq!(*entry, received, "lost, doubled or out of order");
                received += 1;
            };
            receiver.receive(limit, &mut take);
            receiver.receive(limit, &mut take);
            let sent = sending.join().unwrap();
            receiver.receive(capacity, &mut take);
            assert_eq!(received, sent);
        });
    }
}

#[test]
fn what_a_closing_receiver_leaves_is_the_senders_again() {
    model(|| {
        let (mut sender, mut receiver) = ring_at(2, NEAR_WRAP);
        let receiving = thread::spawn(move || {
            let mut received = Vec::new();
            receiver.receive(1, |entry: Box<usize>| received.push(*entry));
            drop(receiver);
            received
        });
        let mut sent = 0;
        while sent < 2 && sender.send(Box::new(sent)).is_ok() {
            sent += 1;
        }
        // Before the end of the receiver is known otherwise, and after.
        let mut back: Vec<usize> = sender.reclaim().map(|entry| *entry).into_iter().collect();
        let mut all = receiving.join().unwrap();
        while let Some(entry) = sender.reclaim() {
            back.push(*entry);
        }
        all.append(&mut back);
        assert_eq!(all, (0..sent).collect::<Vec<_>>(), "each entry is in one hand, in order");
    });
}

#[test]
fn a_burst_that_meets_a_closing_receiver_is_sent_or_stays() {
    model(|| {
        let (mut sender, mut receiver) = ring_at(2, NEAR_WRAP);
        let receiving = thread::spawn(move || receiver.close());
        let mut burst: arrayvec::ArrayVec<_, 2> = (0..2).map(Box::new).collect();
        let sent = sender.send_front(&mut burst, |_| ());
        receiving.join().unwrap();
        let back = std::iter::from_fn(|| sender.reclaim()).count();
        assert_eq!((sent, burst.len()), (back, 2 - back));
    });
}

#[test]
fn what_is_left_when_both_ends_go_is_dropped_once() {
    model(|| {
        let witness = Arc::new(());
        let (mut sender, receiver) = ring_at(2, NEAR_WRAP);
        let sent = witness.clone();
        let sending = thread::spawn(move || drop(sender.send(sent)));
        let mut receiver = receiver;
        drop(receiver.recv());
        drop(receiver);
        sending.join().unwrap();
        assert!(Arc::try_unwrap(witness).is_ok(), "an entry leaked");
    });
}

/// One cell per chunk, which only the holder of the chunk's frame may touch.
#[derive(Clone)]
struct Hands {
    umem: Umem,
    chunks: Arc<Vec<UnsafeCell<()>>>,
}

impl Hands {
    fn new(frames: u32) -> Hands {
        let umem = Umem::new(UmemConfig { frames, frame_size: 2048, huge_pages: false }).unwrap();
        Hands { umem, chunks: Arc::new((0..frames).map(|_| UnsafeCell::new(())).collect()) }
    }

    /// As a worker writes to a packet. The model checker finds fault with any two that are not ordered.
    fn touch(&self, frame: &Frame) {
        let chunk = self.umem.chunk_of(self.umem.offset_of(frame)).expect("a frame of this UMEM");
        self.chunks[chunk].with_mut(|_| ());
    }

    /// Takes up to `count` frames, and gives them back.
    fn work(&self, count: usize) -> usize {
        let mut cache = self.umem.cache();
        let frames: Vec<_> = (0..count).map_while(|_| cache.alloc()).collect();
        frames.iter().for_each(|frame| self.touch(frame));
        let got = frames.len();
        frames.into_iter().for_each(|frame| cache.free(frame));
        got
    }
}

#[test]
fn frames_are_conserved_and_never_in_two_hands() {
    model(|| {
        // A magazine, and a loose frame on top.
        let hands = Hands::new(3);
        let other = hands.clone();
        let working = thread::spawn(move || other.work(3));
        let got = hands.work(3);
        assert!(got + working.join().unwrap() > 0, "frames there were, and nobody got one");
        assert_eq!(hands.umem.pool().home(), 3, "I1");
        assert_eq!(hands.work(4), 3, "every frame that is home can be had");
    });
}

#[test]
fn a_frame_freed_in_another_workers_cache_comes_home() {
    model(|| {
        let hands = Hands::new(4);
        let (mut sender, mut receiver) = ring_at(2, NEAR_WRAP);
        let other = hands.clone();
        let sending = thread::spawn(move || {
            let mut cache = other.umem.cache();
            for _ in 0..2 {
                let Some(frame) = cache.alloc() else { continue };
                other.touch(&frame);
                if let Err(frame) = sender.send(frame) {
                    cache.free(frame);
                }
            }
            sender
        });
        let mut cache = hands.umem.cache();
        let taken = cache.alloc();
        receiver.receive(2, |frame| {
            hands.touch(&frame);
            cache.free(frame);
        });
        taken.into_iter().for_each(|frame| cache.free(frame));
        drop(receiver);
        let mut sender = sending.join().unwrap();
        while let Some(frame) = sender.reclaim() {
            hands.touch(&frame);
            cache.free(frame);
        }
        drop(cache);
        assert_eq!(hands.umem.pool().home(), 4, "I1");
    });
}

const OFFSETS: Offsets = Offsets { producer: 0, consumer: 64, flags: 128, desc: Area::ENTRIES as u64 };

/// Both sides of a ring between the kernel and us. The kernel's side keeps the same rules (`smp_load_acquire`
/// and `smp_store_release` in net/xdp/xsk_queue.h), so our other half stands for it.
fn both_sides<const WORDS: usize>(size: u32) -> (Producer<WORDS>, Consumer<WORDS>) {
    let area = Area::new(size as usize * WORDS, u32::MAX);
    let producer = Producer::new(area.clone(), OFFSETS, size).unwrap();
    (producer, Consumer::new(area, OFFSETS, size).unwrap())
}

#[test]
fn a_ring_shared_with_the_kernel_passes_descriptors_whole_once_and_in_order_over_the_wrap() {
    for size in [1, 2] {
        model(move || {
            let (mut producer, mut consumer) = both_sides::<2>(size);
            let producing = thread::spawn(move || {
                let mut pushed = 0;
                for _ in 0..2 {
                    for _ in 0..producer.free(1) {
                        producer.push([pushed, !pushed]);
                        pushed += 1;
                    }
                    producer.submit();
                }
                pushed
            });
            let mut popped = 0;
            let mut consume = || {
                for _ in 0..consumer.available() {
                    assert_eq!(consumer.pop(), [popped, !popped]);
                    popped += 1;
                }
                consumer.release();
            };
            consume();
            consume();
            let pushed = producing.join().unwrap();
            consume();
            assert_eq!(popped, pushed);
        });
    }
}

/// As an eventfd: a wake that comes before the wait ends it.
#[derive(Default)]
struct Event {
    raised: Mutex<bool>,
    condition: Condvar,
}

#[test]
fn work_that_is_handed_to_a_thread_about_to_sleep_is_never_slept_over() {
    model(|| {
        let (mut sender, mut receiver) = ring_at(2, NEAR_WRAP);
        let shared = Arc::new((Asleep::default(), Event::default()));
        let other = shared.clone();
        let sending = thread::spawn(move || {
            let (asleep, event) = &*other;
            for entry in 0..2 {
                assert!(sender.send(entry).is_ok());
                if asleep.needs_wake() {
                    *event.raised.lock().unwrap() = true;
                    event.condition.notify_one();
                }
            }
            sender
        });
        let (asleep, event) = &*shared;
        let mut received = 0;
        // Were a wake lost, the wait would never end, which the model checker calls a deadlock.
        while received < 2 {
            if asleep.may_sleep(|| receiver.available() > 0) {
                let mut raised = event.raised.lock().unwrap();
                while !*raised {
                    raised = event.condition.wait(raised).unwrap();
                }
                *raised = false;
            }
            asleep.awake();
            received += receiver.receive(2, |_| ());
        }
        drop(sending.join().unwrap());
    });
}
