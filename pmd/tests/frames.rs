//! Frames, caches and the pool: what a frame's operations do, and that frames are conserved (invariant I1).

use fairway_pmd::frame::{HEADROOM, MAGAZINE};
use fairway_pmd::{Burst, Frame, FrameCache, Umem, UmemConfig, UmemError};
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::mpsc;

fn umem(frames: u32, frame_size: u32) -> Umem {
    Umem::new(UmemConfig { frames, frame_size, huge_pages: false }).unwrap()
}

#[derive(Clone, Debug)]
enum Change {
    Prepend(usize),
    TrimFront(usize),
    SetLen(usize),
    CopyFrom(Vec<u8>),
    Fill(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0usize..400).prop_map(Change::Prepend),
        (0usize..2200).prop_map(Change::TrimFront),
        (0usize..2200).prop_map(Change::SetLen),
        prop::collection::vec(any::<u8>(), 0..2200).prop_map(Change::CopyFrom),
        any::<u8>().prop_map(Change::Fill),
    ]
}

/// A chunk as plain bytes, with the packet's place in it.
struct Model {
    chunk: Vec<u8>,
    start: usize,
    len: usize,
}

impl Model {
    fn apply(&mut self, change: &Change) -> bool {
        let size = self.chunk.len();
        match change {
            Change::Prepend(n) if *n <= self.start => {
                self.start -= n;
                self.len += n;
            }
            Change::TrimFront(n) if *n <= self.len => {
                self.start += n;
                self.len -= n;
            }
            Change::SetLen(n) if self.start + n <= size => self.len = *n,
            Change::CopyFrom(bytes) if HEADROOM + bytes.len() <= size => {
                (self.start, self.len) = (HEADROOM, bytes.len());
                self.chunk[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
            }
            Change::Fill(byte) => self.chunk[self.start..self.start + self.len].fill(*byte),
            _ => return false,
        }
        true
    }
}

fn apply(frame: &mut Frame, change: &Change) -> bool {
    match change {
        Change::Prepend(n) => frame.prepend(*n),
        Change::TrimFront(n) => frame.trim_front(*n),
        Change::SetLen(n) => frame.set_len(*n),
        Change::CopyFrom(bytes) => frame.copy_from(bytes),
        Change::Fill(byte) => {
            frame.bytes_mut().fill(*byte);
            true
        }
    }
}

proptest! {
    #[test]
    fn a_frame_behaves_like_a_window_on_its_chunk_and_never_leaves_it(
        changes in prop::collection::vec(change(), 0..40),
        size in prop_oneof![Just(2048u32), Just(4096)],
    ) {
        let umem = umem(64, size);
        let mut cache = umem.cache();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| cache.alloc()).collect();
        // The neighbours on both sides show whether anything was written outside.
        for frame in &mut frames {
            let headroom = frame.headroom();
            prop_assert!(frame.prepend(headroom) && frame.set_len(size as usize));
            frame.bytes_mut().fill(0xa5);
        }
        frames.sort_by_key(|frame| umem.offset_of(frame));
        let mut frame = frames.remove(30);
        let mut model = Model { chunk: vec![0xa5; size as usize], start: 0, len: size as usize };
        for change in &changes {
            prop_assert_eq!(apply(&mut frame, change), model.apply(change), "{:?}", change);
            prop_assert_eq!((frame.headroom(), frame.len()), (model.start, model.len));
            prop_assert_eq!(frame.capacity(), size as usize - model.start);
            prop_assert_eq!(umem.offset_of(&frame), 30 * u64::from(size) + model.start as u64);
            prop_assert_eq!(frame.bytes(), &model.chunk[model.start..model.start + model.len]);
        }
        prop_assert!(frames.iter().all(|frame| frame.bytes().iter().all(|byte| *byte == 0xa5)));
        frames.into_iter().chain([frame]).for_each(|frame| cache.free(frame));
        drop(cache);
        prop_assert_eq!(umem.pool().missing(), 0);
    }

    #[test]
    fn frames_are_conserved_whatever_caches_do(
        count in 64u32..400,
        steps in prop::collection::vec((0usize..5, 0usize..4, 1usize..150), 0..120),
    ) {
        let umem = umem(count, 2048);
        let mut caches: Vec<FrameCache> = (0..4).map(|_| umem.cache()).collect();
        let mut out: Vec<Frame> = Vec::new();
        for (what, cache, n) in steps {
            match what {
                0 | 1 => out.extend((0..n).map_while(|_| caches[cache].alloc())),
                2 => out.drain(..n.min(out.len())).for_each(|frame| caches[cache].free(frame)),
                3 => {
                    let mut burst: Burst = out.drain(..n.min(out.len()).min(64)).collect();
                    caches[cache].free_burst(&mut burst);
                    prop_assert!(burst.is_empty());
                }
                // A cache that goes leaves part of a magazine.
                _ => caches[cache] = umem.cache(),
            }
            let cached: usize = caches.iter().map(FrameCache::len).sum();
            prop_assert_eq!(umem.pool().home() + cached + out.len(), count as usize);
        }
        let offsets: HashSet<u64> = out.iter().map(|frame| umem.offset_of(frame) / 2048).collect();
        prop_assert_eq!(offsets.len(), out.len(), "no chunk is out twice");
        out.drain(..).for_each(|frame| caches[0].free(frame));
        drop(caches);
        prop_assert_eq!(umem.pool().missing(), 0);
        // Every single frame can be had by one cache, wherever it was left.
        let mut cache = umem.cache();
        out.extend(std::iter::from_fn(|| cache.alloc()));
        prop_assert_eq!(out.len(), count as usize);
        out.into_iter().for_each(|frame| cache.free(frame));
    }
}

#[test]
fn a_thousand_caches_with_one_frame_each_do_not_overflow_the_pool() {
    let umem = umem(1024, 2048);
    let mut all = umem.cache();
    let frames: Vec<Frame> = std::iter::from_fn(|| all.alloc()).collect();
    assert_eq!(frames.len(), 1024);
    for frame in frames {
        umem.cache().free(frame);
    }
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn frames_that_cross_threads_all_come_home() {
    let umem = umem(2048, 2048);
    let (to_b, from_a) = mpsc::sync_channel::<Frame>(512);
    let (to_c, from_b) = mpsc::sync_channel::<Frame>(512);
    let moved = std::thread::scope(|scope| {
        let umem = &umem;
        scope.spawn(move || {
            let mut cache = umem.cache();
            let mut sent = 0u32;
            while sent < 100_000 {
                let Some(mut frame) = cache.alloc() else {
                    std::thread::yield_now();
                    continue;
                };
                assert!(frame.copy_from(&sent.to_ne_bytes()));
                to_b.send(frame).unwrap();
                sent += 1;
            }
        });
        scope.spawn(move || {
            let mut cache = umem.cache();
            for (n, frame) in from_a.into_iter().enumerate() {
                if n % 3 == 0 { cache.free(frame) } else { to_c.send(frame).unwrap() }
            }
        });
        let last = scope.spawn(move || {
            let mut cache = umem.cache();
            let mut seen = 0u32;
            for (n, frame) in from_b.into_iter().enumerate() {
                let expected = (n / 2 * 3 + n % 2 + 1) as u32;
                assert_eq!(frame.bytes(), expected.to_ne_bytes(), "another packet was written over this one");
                cache.free(frame);
                seen += 1;
            }
            seen
        });
        last.join().unwrap()
    });
    assert_eq!(moved, 66_666);
    assert_eq!(umem.pool().missing(), 0);
}

#[test]
fn a_frame_freed_into_a_cache_of_another_umem_is_refused_by_both() {
    let (ours, theirs) = (umem(64, 2048), umem(64, 2048));
    let (mut our_cache, mut their_cache) = (ours.cache(), theirs.cache());
    our_cache.free(their_cache.alloc().unwrap());
    assert_eq!(our_cache.len(), 0);
    drop((our_cache, their_cache));
    assert_eq!((ours.pool().missing(), theirs.pool().missing()), (0, 1));
}

#[test]
fn a_frame_stays_readable_after_its_umem_is_dropped() {
    let umem = umem(64, 2048);
    let mut frame = umem.cache().alloc().unwrap();
    assert!(frame.copy_from(b"still here"));
    drop(umem);
    assert_eq!(frame.bytes(), b"still here");
}

#[test]
fn a_layout_that_the_kernel_would_not_take_is_refused() {
    for (frames, frame_size) in [(1024, 1024), (1024, 3000), (MAGAZINE as u32 - 1, 2048), (1 << 21, 2048)] {
        let result = Umem::new(UmemConfig { frames, frame_size, huge_pages: false });
        assert!(matches!(result, Err(UmemError::Layout { .. })), "{frames} frames of {frame_size}");
    }
}
