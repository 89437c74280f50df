//! One AF_XDP socket as a queue.

use super::ring::{ADDRESS_WORDS, Consumer, DESCRIPTOR_WORDS, Producer, pack, unpack};
use super::sys::{RingKind, Socket, Wake};
use super::{AfXdp, AfXdpConfig, AfXdpError, Mode, Registry};
use crate::lent::Lent;
use crate::queue::{Queue, QueueStats};
use crate::{Burst, FrameCache, Umem};
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Copy mode sends at most this many descriptors per `sendto` (`TX_BATCH_SIZE`), unless set otherwise.
const KERNEL_TX_BATCH: u32 = 32;
/// Descriptors per `sendto` asked for where it can be set.
const TX_BUDGET: u32 = 256;
/// Fill the ring up once this many frames are missing from it, so that its cursor is stored once for many.
const REFILL: u32 = 32;
/// How long opening waits for the kernel to release a queue that was just closed.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// How long closing waits for packets that the kernel is sending.
const TX_WAIT: Duration = Duration::from_millis(50);
/// How long closing waits for the kernel to let go of the UMEM.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// Shortest packet that is given to the kernel: an Ethernet header.
const MIN_PACKET: usize = 14;

/// What to open.
pub(super) struct Binding<'a> {
    pub(super) ifname: &'a str,
    pub(super) ifindex: u32,
    pub(super) queue: u32,
    pub(super) port: u16,
    pub(super) config: &'a AfXdpConfig,
}

impl Binding<'_> {
    fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> AfXdpError {
        let (ifname, queue) = (self.ifname.to_owned(), self.queue);
        move |source| match source.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => AfXdpError::Unsupported { ifname },
            Some(libc::EBUSY) => AfXdpError::QueueBusy { ifname, queue },
            Some(libc::ENODEV) => AfXdpError::NoInterface { ifname },
            Some(libc::EPERM) => AfXdpError::MissingCapability { ifname, missing: "CAP_NET_RAW".to_owned() },
            _ => AfXdpError::Kernel { ifname, queue, step, source },
        }
    }
}

/// One socket on one receive queue of a netdev.
///
/// Dropping it blocks for a few milliseconds (the kernel waits for its readers), and longer if packets are
/// still being sent: a worker closes it and leaves the dropping to another thread. The order in which the
/// fields are dropped is what brings the frames home: the rings are unmapped (a mapping holds the socket
/// open), the socket is closed, and then, with the kernel out, the chunks are taken back.
pub struct AfXdpQueue {
    rings: Rings,
    socket: BoundSocket,
    kernel: InKernel,
    port: u16,
    mode: Mode,
    fill_target: u32,
    /// Frames given to the fill ring and not yet received.
    filling: u32,
    /// Frames given to the tx ring and not yet completed.
    sending: u32,
    busy_poll: bool,
    closed: bool,
    down: bool,
    stats: QueueStats,
}

struct Rings {
    fill: Producer<ADDRESS_WORDS>,
    completion: Consumer<ADDRESS_WORDS>,
    rx: Consumer<DESCRIPTOR_WORDS>,
    tx: Producer<DESCRIPTOR_WORDS>,
}

/// A socket and its entry among the possible roots.
struct BoundSocket {
    socket: Option<Socket>,
    fd: RawFd,
    mode: Mode,
    registry: Registry,
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let mut bound = self.registry.lock();
        bound.of(self.mode).retain(|fd| *fd != self.fd);
        self.socket = None;
    }
}

/// The chunks that the socket holds. Brings them home when dropped, which must be after the socket.
struct InKernel {
    lent: Lent,
    umem: Umem,
    ifindex: u32,
    queue: u32,
    /// A socket of the same network namespace, to ask with whether the queue is free again.
    probe: Option<Socket>,
    /// Whether closing the socket was not enough: its device or packets on their way may use the UMEM.
    confirm: bool,
}

impl Drop for InKernel {
    fn drop(&mut self) {
        if self.lent.count() == 0 {
            return;
        }
        if self.confirm && !self.released() {
            let (ifindex, queue, frames) = (self.ifindex, self.queue, self.lent.count());
            tracing::error!(
                ifindex,
                queue,
                frames,
                "the kernel did not let go of the socket's frames in time; they are lost"
            );
            return;
        }
        let mut cache = self.umem.cache();
        self.lent.reclaim(&mut cache);
    }
}

impl InKernel {
    /// Waits until the kernel has torn the socket's buffer pool down, which it does from a work queue after the
    /// last packet in flight is gone and the device has let go. Until then the queue refuses another
    /// socket with EBUSY: so we try to bind one, in copy mode and on a single page.
    fn released(&mut self) -> bool {
        let Some(probe) = self.probe.take() else { return false };
        let (base, _) = self.umem.region();
        let ready = probe
            .register(base, 4096, self.umem.frame_size())
            .and_then(|()| probe.set_ring_size(RingKind::Fill, 2))
            .and_then(|()| probe.set_ring_size(RingKind::Completion, 2))
            .and_then(|()| probe.set_ring_size(RingKind::Tx, 2));
        if ready.is_err() {
            return false;
        }
        let until = Instant::now() + RELEASE_WAIT;
        loop {
            match probe.bind(self.ifindex, self.queue, libc::XDP_COPY, None) {
                Ok(()) => return true,
                // The netdev or the queue is gone, and the pool went with it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => {
                    return true;
                }
                Err(_) if Instant::now() >= until => return false,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl AfXdpQueue {
    pub(super) fn open(af_xdp: &AfXdp, binding: &Binding<'_>, mode: Mode) -> Result<AfXdpQueue, AfXdpError> {
        loop {
            let root = af_xdp.registry.lock().of(mode).first().copied();
            match AfXdpQueue::open_with(af_xdp, binding, mode, root) {
                // The root was closed meanwhile, or its netdev went away and it is no root any more. Both
                // are off the list now.
                Err(AfXdpError::Kernel { source, .. })
                    if root.is_some() && source.raw_os_error() == Some(libc::EBADF) => {}
                result => return result,
            }
        }
    }

    fn open_with(
        af_xdp: &AfXdp,
        binding: &Binding<'_>,
        mode: Mode,
        root: Option<RawFd>,
    ) -> Result<AfXdpQueue, AfXdpError> {
        let Binding { ifname, ifindex, queue, port, config } = *binding;
        let umem = &af_xdp.umem;
        let socket = Socket::new().map_err(binding.failed("opening the socket"))?;
        if root.is_none() {
            let (base, bytes) = umem.region();
            socket.register(base, bytes, umem.frame_size()).map_err(|source| AfXdpError::Pin {
                ifname: ifname.to_owned(),
                bytes,
                source,
            })?;
        }
        let mut rings = Rings::new(&socket, config).map_err(binding.failed("making the rings"))?;
        if config.tx_ring >= TX_BUDGET && socket.set_tx_budget(TX_BUDGET).is_err() {
            tracing::debug!(ifname, queue, "the kernel sends {KERNEL_TX_BATCH} descriptors per wake-up");
        }
        if let Err(error) = socket.set_send_buffer(config.send_buffer_bytes) {
            tracing::warn!(ifname, queue, %error, "the send buffer keeps its default size; bursts may wait");
        }
        let busy_poll = config.busy_poll.is_some_and(|busy_poll| {
            let set = socket.set_busy_poll(busy_poll.timeout_us, busy_poll.budget);
            if let Err(error) = &set {
                tracing::warn!(ifname, queue, %error, "busy polling is off");
            }
            set.is_ok()
        });

        let probe = Socket::new().ok();
        let lent = Lent::new(umem.clone());
        let mut kernel = InKernel { lent, umem: umem.clone(), ifindex, queue, probe, confirm: false };
        let had = rings.prefill(&mut kernel.lent, &mut umem.cache(), config.fill_target);
        let result = if had < config.fill_target {
            Err(AfXdpError::OutOfFrames { ifname: ifname.to_owned(), queue, had, wanted: config.fill_target })
        } else {
            bind(&socket, binding, mode, root, &af_xdp.registry)
        };
        let fd = socket.raw_fd();
        let socket = BoundSocket { socket: Some(socket), fd, mode, registry: af_xdp.registry.clone() };
        if let Err(error) = result {
            // Before `kernel`, which takes the frames back.
            drop(rings);
            drop(socket);
            return Err(error);
        }
        Ok(AfXdpQueue {
            rings,
            socket,
            kernel,
            port,
            mode,
            fill_target: config.fill_target,
            filling: had,
            sending: 0,
            busy_poll,
            closed: false,
            down: false,
            stats: QueueStats::default(),
        })
    }

    /// Whether the device works on the UMEM itself.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Index of the netdev.
    pub fn ifindex(&self) -> u32 {
        self.kernel.ifindex
    }

    /// Number of the receive queue.
    pub fn queue_id(&self) -> u32 {
        self.kernel.queue
    }

    /// The socket, for the XSKMAP.
    pub fn raw_fd(&self) -> RawFd {
        self.socket.fd
    }

    /// Whether the kernel said at the last wake-up that the device is down or gone.
    pub fn is_down(&self) -> bool {
        self.down
    }

    fn wake(&mut self, wake: impl FnOnce(&Socket) -> Wake) -> Wake {
        let Some(socket) = &self.socket.socket else { return Wake::Down };
        self.stats.wakeups += 1;
        let outcome = wake(socket);
        self.down = outcome == Wake::Down;
        outcome
    }

    /// Takes finished frames out of the completion ring.
    #[inline]
    fn complete(&mut self, cache: &mut FrameCache) {
        if self.sending == 0 {
            return;
        }
        let done = self.rings.completion.available();
        if done == 0 {
            return;
        }
        for _ in 0..done {
            let [addr] = self.rings.completion.pop();
            match self.kernel.lent.take(addr, 0) {
                Some(frame) => {
                    cache.free(frame);
                    self.sending = self.sending.saturating_sub(1);
                }
                None => self.stats.bad_descriptors += 1,
            }
        }
        self.rings.completion.release();
    }

    /// Moves received packets to `burst`, at most what it has room for.
    #[inline]
    fn receive(&mut self, burst: &mut Burst) -> usize {
        let ready = self.rings.rx.available().min(burst.remaining_capacity() as u32);
        if ready == 0 {
            return 0;
        }
        let before = burst.len();
        let mut bytes = 0;
        for _ in 0..ready {
            let (addr, len, _) = unpack(self.rings.rx.pop());
            match self.kernel.lent.take(addr, len) {
                Some(mut frame) => {
                    frame.set_port(self.port);
                    bytes += u64::from(len);
                    burst.push(frame);
                }
                None => self.stats.bad_descriptors += 1,
            }
        }
        self.rings.rx.release();
        let received = burst.len() - before;
        self.filling = self.filling.saturating_sub(received as u32);
        self.stats.rx_packets += received as u64;
        self.stats.rx_bytes += bytes;
        received
    }

    /// Sends what is in the tx ring: wakes the kernel until it has taken everything or makes no headway.
    fn push_out(&mut self) {
        let mut left = self.rings.tx.pending();
        let mut rounds = left / KERNEL_TX_BATCH + 2;
        while left > 0 && rounds > 0 && self.rings.tx.needs_wakeup() {
            rounds -= 1;
            let outcome = self.wake(Socket::wake_tx);
            let before = std::mem::replace(&mut left, self.rings.tx.pending());
            if outcome == Wake::Down || left == before {
                break;
            }
        }
    }
}

impl Queue for AfXdpQueue {
    fn port(&self) -> u16 {
        self.port
    }

    fn rx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        if self.closed {
            return 0;
        }
        let received = self.receive(burst);
        let missing = self.fill_target.saturating_sub(self.filling);
        if missing >= REFILL.min(self.fill_target) {
            self.filling += self.rings.prefill(&mut self.kernel.lent, cache, missing);
        }
        if received == 0 && (self.busy_poll || self.rings.fill.needs_wakeup()) {
            self.wake(Socket::wake_rx);
        }
        received
    }

    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        self.complete(cache);
        if self.closed || burst.is_empty() {
            return 0;
        }
        let count = self.rings.tx.free(burst.len() as u32).min(burst.len() as u32) as usize;
        for frame in burst.drain(..count) {
            let len = frame.len();
            if len < MIN_PACKET {
                // The kernel skips an empty descriptor without completing it, and the chunk would be out
                // until the socket is closed.
                self.stats.kernel_invalid += 1;
                cache.free(frame);
                continue;
            }
            match self.kernel.lent.lend(frame) {
                Ok(addr) => {
                    self.rings.tx.push(pack(addr, len as u32));
                    self.sending += 1;
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += len as u64;
                }
                Err(frame) => cache.free(frame),
            }
        }
        self.rings.tx.submit();
        count
    }

    fn kick(&mut self, cache: &mut FrameCache) {
        self.complete(cache);
        self.push_out();
        self.complete(cache);
    }

    fn tx_pending(&self) -> usize {
        self.sending as usize
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.socket.fd)
    }

    fn stats(&self) -> QueueStats {
        let mut stats = self.stats;
        if let Some(Ok(kernel)) = self.socket.socket.as_ref().map(Socket::statistics) {
            stats.kernel_rx_dropped = kernel.rx_dropped + kernel.rx_ring_full;
            stats.kernel_fill_empty = kernel.rx_fill_ring_empty_descs;
            stats.kernel_invalid += kernel.rx_invalid_descs + kernel.tx_invalid_descs;
        }
        stats
    }

    fn close(&mut self, cache: &mut FrameCache) -> usize {
        self.closed = true;
        let mut burst = Burst::new();
        while self.receive(&mut burst) > 0 {
            cache.free_burst(&mut burst);
        }
        self.kick(cache);
        self.kernel.lent.count()
    }
}

impl Drop for AfXdpQueue {
    fn drop(&mut self) {
        let mut cache = self.kernel.umem.cache();
        let until = Instant::now() + TX_WAIT;
        self.kick(&mut cache);
        while self.sending > 0 && !self.down && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            self.kick(&mut cache);
        }
        self.kernel.confirm = self.mode == Mode::ZeroCopy || self.sending > 0;
    }
}

impl Rings {
    fn new(socket: &Socket, config: &AfXdpConfig) -> io::Result<Rings> {
        let sizes = [
            (RingKind::Fill, config.fill_ring),
            (RingKind::Completion, config.completion_ring),
            (RingKind::Rx, config.rx_ring),
            (RingKind::Tx, config.tx_ring),
        ];
        for (ring, entries) in sizes {
            socket.set_ring_size(ring, entries)?;
        }
        let addresses = |ring, entries| socket.map(ring, entries, 8 * ADDRESS_WORDS);
        let descriptors = |ring, entries| socket.map(ring, entries, 8 * DESCRIPTOR_WORDS);
        let odd = || io::Error::other("the kernel's ring offsets make no sense");
        let (area, offsets) = addresses(RingKind::Fill, config.fill_ring)?;
        let fill = Producer::new(area, offsets, config.fill_ring).ok_or_else(odd)?;
        let (area, offsets) = addresses(RingKind::Completion, config.completion_ring)?;
        let completion = Consumer::new(area, offsets, config.completion_ring).ok_or_else(odd)?;
        let (area, offsets) = descriptors(RingKind::Rx, config.rx_ring)?;
        let rx = Consumer::new(area, offsets, config.rx_ring).ok_or_else(odd)?;
        let (area, offsets) = descriptors(RingKind::Tx, config.tx_ring)?;
        let tx = Producer::new(area, offsets, config.tx_ring).ok_or_else(odd)?;
        Ok(Rings { fill, completion, rx, tx })
    }

    /// Gives the kernel up to `wanted` frames to receive into and returns how many.
    #[inline]
    fn prefill(&mut self, lent: &mut Lent, cache: &mut FrameCache, wanted: u32) -> u32 {
        let mut given = 0;
        for _ in 0..self.fill.free(wanted).min(wanted) {
            let Some(frame) = cache.alloc() else { break };
            match lent.lend(frame) {
                Ok(addr) => {
                    self.fill.push([addr]);
                    given += 1;
                }
                Err(frame) => cache.free(frame),
            }
        }
        if given > 0 {
            self.fill.submit();
        }
        given
    }
}

/// Binds and notes the socket as a possible root. The registry is locked for each try, so that the root stays
/// open, but not between tries, so that the socket that holds the queue can be closed meanwhile.
fn bind(
    socket: &Socket,
    binding: &Binding<'_>,
    mode: Mode,
    root: Option<RawFd>,
    registry: &Registry,
) -> Result<(), AfXdpError> {
    let flags = match (root, mode) {
        // Mode and need_wakeup come with the root; the kernel refuses further flags.
        (Some(_), _) => libc::XDP_SHARED_UMEM,
        (None, Mode::Copy) => libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
        (None, Mode::ZeroCopy) => libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP,
    };
    let until = Instant::now() + BUSY_WAIT;
    loop {
        let mut bound = registry.lock();
        let roots = bound.of(mode);
        let error = if root.is_some_and(|root| !roots.contains(&root)) {
            io::Error::from_raw_os_error(libc::EBADF)
        } else {
            match socket.bind(binding.ifindex, binding.queue, flags, root) {
                Ok(()) => {
                    roots.push(socket.raw_fd());
                    return Ok(());
                }
                Err(error) => error,
            }
        };
        match error.raw_os_error() {
            // The kernel frees a closed socket's queue from a work queue, a little after close() returned.
            Some(libc::EBUSY) if Instant::now() < until => {
                drop(bound);
                std::thread::sleep(Duration::from_millis(2));
            }
            Some(libc::EBADF) => {
                roots.retain(|fd| Some(*fd) != root);
                return Err(binding.failed("binding")(error));
            }
            Some(libc::EBUSY | libc::ENODEV | libc::EPERM) => return Err(binding.failed("binding")(error)),
            _ if mode == Mode::ZeroCopy => {
                let (ifname, queue) = (binding.ifname.to_owned(), binding.queue);
                return Err(AfXdpError::NoZeroCopy { ifname, queue, source: error });
            }
            _ => return Err(binding.failed("binding")(error)),
        }
    }
}
