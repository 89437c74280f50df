//! How an idle worker sleeps and is woken: epoll over its queues, and an eventfd for other threads.

// UNSAFETY: epoll and eventfd are reached through libc.
#![allow(unsafe_code)]

use fairway_pmd::asleep::Asleep;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// The worker's side.
pub struct Sleeper {
    epoll: OwnedFd,
    waker: Waker,
}

/// Anyone's handle to wake a worker.
#[derive(Clone)]
pub struct Waker {
    inner: Arc<Inner>,
}

struct Inner {
    event: OwnedFd,
    asleep: Asleep,
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Sleeper {
    /// A sleeper that only its waker wakes.
    pub fn new() -> io::Result<Sleeper> {
        // SAFETY: creates a descriptor.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: creates a descriptor.
        let event = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let sleeper =
            Sleeper { epoll, waker: Waker { inner: Arc::new(Inner { event, asleep: Asleep::default() }) } };
        sleeper.watch(sleeper.waker.inner.event.as_raw_fd())?;
        Ok(sleeper)
    }

    /// The handle with which others wake this worker.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Wakes when `fd` becomes readable. A descriptor is forgotten when it is closed.
    pub fn watch(&self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: passes a valid event for a descriptor number.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Stops watching `fd`.
    pub fn unwatch(&self, fd: RawFd) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: as above; an unknown descriptor is an error that changes nothing.
        unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, &mut event) };
    }

    /// Sleeps until something watched is readable, somebody wakes, or the time is over. `has_work` is asked
    /// after the sleeper has said that it sleeps, so that work queued before that is never slept over.
    pub fn sleep(&self, timeout_ms: i32, has_work: impl FnOnce() -> bool) {
        let inner = &self.waker.inner;
        if inner.asleep.may_sleep(has_work) {
            let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
            // SAFETY: the kernel writes at most eight events.
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 8, timeout_ms) };
        }
        inner.asleep.awake();
        let mut count = 0u64;
        // SAFETY: reads eight bytes into an integer; an empty eventfd says EAGAIN.
        unsafe { libc::read(inner.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl Waker {
    /// Wakes the worker if it sleeps. Call after queueing work; costs a system call only then.
    #[inline]
    pub fn wake(&self) {
        if self.inner.asleep.needs_wake() {
            let one = 1u64;
            // SAFETY: writes eight bytes from an integer.
            unsafe { libc::write(self.inner.event.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn work_queued_before_sleeping_is_not_slept_over() {
        let sleeper = Sleeper::new().unwrap();
        let start = Instant::now();
        sleeper.sleep(5_000, || true);
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_wake_ends_the_sleep() {
        let sleeper = Sleeper::new().unwrap();
        let waker = sleeper.waker();
        let thread = std::thread::spawn(move || {
            // Wakes are sent until the sleeper has slept and woken.
            for _ in 0..500 {
                std::thread::sleep(Duration::from_millis(1));
                waker.wake();
            }
        });
        let start = Instant::now();
        sleeper.sleep(60_000, || false);
        assert!(start.elapsed() < Duration::from_secs(30));
        thread.join().unwrap();
    }
}
