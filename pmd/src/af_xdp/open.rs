//! Opening a socket: registering or sharing the UMEM, making the rings, binding.

use super::held::{BoundSocket, InKernel};
use super::queue::{AfXdpQueue, Rings};
use super::ring::{ADDRESS_WORDS, Consumer, DESCRIPTOR_WORDS, Producer};
use super::sys::{RingKind, Socket};
use super::{AfXdp, AfXdpConfig, AfXdpError, Mode, Registry};
use crate::lent::Lent;
use crate::queue::QueueStats;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// How long opening waits for the kernel to release a queue that was just closed.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// Descriptors per `sendto` asked for in copy mode, where it can be set.
const TX_BUDGET: u32 = 256;

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
            tracing::debug!(ifname, queue, "the kernel sends 32 descriptors per wake-up");
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
            skip_kicks: 0,
            stats: QueueStats::default(),
        })
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
