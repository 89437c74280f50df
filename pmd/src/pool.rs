//! The frame pool and the workers' caches in front of it.
//!
//! Workers exchange frames with the pool by the magazine of [`MAGAZINE`] frames, so that the pool's atomics
//! are paid once per magazine. Frames that do not fill a magazine (a cache that is dropped) go to a second,
//! loose store. Each store has room for every frame of the UMEM, so giving back never fails.

use crate::frame::{Burst, Frame};
use crate::sync::ArrayQueue;
use crate::umem::Umem;
use arrayvec::ArrayVec;

/// Frames that move between a cache and the pool at once.
#[cfg(not(loom))]
pub const MAGAZINE: usize = 64;
/// As few as the model checker can go through.
#[cfg(loom)]
pub const MAGAZINE: usize = 2;

type Magazine = ArrayVec<Frame, MAGAZINE>;

/// The frames of a UMEM that are home.
pub(crate) struct Store {
    /// Full magazines only.
    magazines: ArrayQueue<Magazine>,
    loose: ArrayQueue<Frame>,
}

impl Store {
    pub(crate) fn new(frames: usize) -> Store {
        Store { magazines: ArrayQueue::new(frames / MAGAZINE + 1), loose: ArrayQueue::new(frames) }
    }

    pub(crate) fn home(&self) -> usize {
        self.magazines.len() * MAGAZINE + self.loose.len()
    }

    /// Shows every frame that is home. Others must not move frames meanwhile.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&Frame)) {
        for _ in 0..self.magazines.len() {
            let Some(frames) = self.magazines.pop() else { break };
            frames.iter().for_each(&mut look);
            self.put(frames);
        }
        for _ in 0..self.loose.len() {
            let Some(frame) = self.loose.pop() else { break };
            look(&frame);
            self.put(std::iter::once(frame).collect());
        }
    }

    fn put(&self, frames: Magazine) {
        // Neither push can fail: a frame exists once, and each store has room for all of them.
        if frames.is_full() {
            if let Err(frames) = self.magazines.push(frames) {
                lost(frames.len());
            }
        } else {
            for frame in frames {
                if self.loose.push(frame).is_err() {
                    lost(1);
                }
            }
        }
    }

    fn take(&self, into: &mut ArrayVec<Frame, { 2 * MAGAZINE }>) {
        if let Some(magazine) = self.magazines.pop() {
            into.extend(magazine);
            return;
        }
        while into.len() < MAGAZINE
            && let Some(frame) = self.loose.pop()
        {
            into.push(frame);
        }
    }
}

#[cold]
fn lost(frames: usize) {
    tracing::error!(frames, "frame pool is out of places; frames are lost");
}

/// The frames of a UMEM that no worker, burst or ring holds.
#[derive(Clone)]
pub struct FramePool {
    umem: Umem,
}

impl FramePool {
    pub(crate) fn new(umem: Umem) -> FramePool {
        FramePool { umem }
    }

    /// Frames that are home. Exact only while no worker moves frames.
    pub fn home(&self) -> usize {
        self.umem.store().home()
    }

    /// Frames that are not home (invariant I1: zero once every cache and queue is closed).
    pub fn missing(&self) -> usize {
        self.umem.frames().saturating_sub(self.home())
    }
}

/// A worker's private stock of frames in front of the pool. Gives all back when dropped.
pub struct FrameCache {
    umem: Umem,
    /// A stack: the frame freed last, whose lines are hottest, is used first.
    local: ArrayVec<Frame, { 2 * MAGAZINE }>,
}

impl FrameCache {
    pub(crate) fn new(umem: Umem) -> FrameCache {
        FrameCache { umem, local: ArrayVec::new() }
    }

    /// Takes a free frame, or `None` if neither cache nor pool has one. Its contents are arbitrary.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.local.is_empty() {
            self.umem.store().take(&mut self.local);
        }
        self.local.pop()
    }

    /// Takes a frame back. A frame of another UMEM is refused: it stays out of both pools, and the error is
    /// logged.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        // Not a debug check: a foreign frame let in here would make its own UMEM look complete to nobody and
        // this one look complete too early, and memory would be unmapped under a frame in use.
        if !self.umem.owns(&frame) {
            return foreign(frame);
        }
        if self.local.is_full() {
            self.spill();
        }
        self.local.push(frame);
    }

    /// Takes back all frames of a burst.
    #[inline]
    pub fn free_burst(&mut self, burst: &mut Burst) {
        for frame in burst.drain(..) {
            self.free(frame);
        }
    }

    /// Frames that are home in the pool, beyond those held here. Exact only while no worker moves frames.
    #[inline]
    pub(crate) fn pooled(&self) -> usize {
        self.umem.store().home()
    }

    /// The UMEM that the frames are from.
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Frames held here.
    pub fn len(&self) -> usize {
        self.local.len()
    }

    /// Whether no frame is held here.
    pub fn is_empty(&self) -> bool {
        self.local.is_empty()
    }

    /// Gives the frames that have been here longest, at most a magazine of them, back to the pool.
    #[cold]
    fn spill(&mut self) {
        let oldest = MAGAZINE.min(self.local.len());
        self.umem.store().put(self.local.drain(..oldest).collect());
    }
}

#[cold]
fn foreign(frame: Frame) {
    tracing::error!(?frame, "a frame was freed into a cache of another UMEM; the frame is lost");
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        while !self.local.is_empty() {
            self.spill();
        }
    }
}
