//! Opening a socket: registering or sharing the UMEM, making the rings, binding.

use super::fill::Fill;
use super::held::{BoundSocket, InKernel};
use super::queue::{AfXdpQueue, Rings};
use super::ring::{ADDRESS_WORDS, Consumer, DESCRIPTOR_WORDS, Producer};
use super::sys::{RingKind, Socket};
use super::{AfXdp, AfXdpConfig, AfXdpError, Mode, Registry};
use crate::lent::Lent;
use crate::queue::QueueStats;
use serde::{Deserialize, Serialize};
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
    /// `None` leaves the mode to the kernel: zero-copy where the driver can. That takes a registration of the
    /// UMEM for this socket alone, as one that is shared has a mode already.
    pub(super) fn open(
        af_xdp: &AfXdp,
        binding: &Binding<'_>,
        mode: Option<Mode>,
    ) -> Result<AfXdpQueue, AfXdpError> {
        loop {
            let root = mode.and_then(|mode| af_xdp.registry.lock().of(mode).first().copied());
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
        mode: Option<Mode>,
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
        let mut cache = umem.cache();
        let fill = Fill::new(config, &cache);
        let had = rings.prefill(&mut kernel.lent, &mut cache, fill.target());
        let result = if had < config.fill_min {
            Err(AfXdpError::OutOfFrames { ifname: ifname.to_owned(), queue, had, wanted: config.fill_min })
        } else {
            bind(&socket, binding, mode, root, &af_xdp.registry)
        };
        let mode = match result {
            Ok(mode) => mode,
            Err(error) => {
                // Before `kernel`, which takes the frames back.
                drop(rings);
                drop(socket);
                return Err(error);
            }
        };
        let fd = socket.raw_fd();
        let socket = BoundSocket { socket: Some(socket), fd, mode, registry: af_xdp.registry.clone() };
        Ok(AfXdpQueue {
            rings,
            socket,
            kernel,
            port,
            mode,
            fill,
            filling: had,
            sending: 0,
            busy_poll,
            polls_pay: false,
            closed: false,
            down: false,
            skip_kicks: 0,
            stats: QueueStats::default(),
        })
    }
}

impl Rings {
    fn new(socket: &Socket, config: &AfXdpConfig) -> io::Result<Rings> {
        let sizes = RingSizes::of(config);
        for (ring, entries) in sizes.each() {
            socket.set_ring_size(ring, entries)?;
        }
        Rings::map(socket, &sizes)
    }

    /// Maps the rings of a socket, which may be in use already: our cursors are in them.
    pub(super) fn map(socket: &Socket, sizes: &RingSizes) -> io::Result<Rings> {
        let addresses = |ring, entries| socket.map(ring, entries, 8 * ADDRESS_WORDS);
        let descriptors = |ring, entries| socket.map(ring, entries, 8 * DESCRIPTOR_WORDS);
        let odd = || io::Error::other("the kernel's ring offsets make no sense");
        let (area, offsets) = addresses(RingKind::Fill, sizes.fill)?;
        let fill = Producer::new(area, offsets, sizes.fill).ok_or_else(odd)?;
        let (area, offsets) = addresses(RingKind::Completion, sizes.completion)?;
        let completion = Consumer::new(area, offsets, sizes.completion).ok_or_else(odd)?;
        let (area, offsets) = descriptors(RingKind::Rx, sizes.rx)?;
        let rx = Consumer::new(area, offsets, sizes.rx).ok_or_else(odd)?;
        let (area, offsets) = descriptors(RingKind::Tx, sizes.tx)?;
        let tx = Producer::new(area, offsets, sizes.tx).ok_or_else(odd)?;
        Ok(Rings { fill, completion, rx, tx })
    }

    pub(super) fn sizes(&self) -> RingSizes {
        let Rings { fill, completion, rx, tx } = self;
        RingSizes { fill: fill.size(), completion: completion.size(), rx: rx.size(), tx: tx.size() }
    }
}

/// Entries of each ring of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    fill: u32,
    completion: u32,
    rx: u32,
    tx: u32,
}

impl RingSizes {
    fn of(config: &AfXdpConfig) -> RingSizes {
        let AfXdpConfig { rx_ring: rx, tx_ring: tx, fill_ring: fill, completion_ring: completion, .. } =
            *config;
        RingSizes { fill, completion, rx, tx }
    }

    fn each(&self) -> [(RingKind, u32); 4] {
        [
            (RingKind::Fill, self.fill),
            (RingKind::Completion, self.completion),
            (RingKind::Rx, self.rx),
            (RingKind::Tx, self.tx),
        ]
    }
}

/// Binds and notes the socket as a possible root. The registry is locked for each try, so that the root stays
/// open, but not between tries, so that the socket that holds the queue can be closed meanwhile.
fn bind(
    socket: &Socket,
    binding: &Binding<'_>,
    mode: Option<Mode>,
    root: Option<RawFd>,
    registry: &Registry,
) -> Result<Mode, AfXdpError> {
    let flags = match (root, mode) {
        // Mode and need_wakeup come with the root; the kernel refuses further flags.
        (Some(_), _) => libc::XDP_SHARED_UMEM,
        (None, None) => libc::XDP_USE_NEED_WAKEUP,
        (None, Some(Mode::Copy)) => libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
        (None, Some(Mode::ZeroCopy)) => libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP,
    };
    let until = Instant::now() + BUSY_WAIT;
    loop {
        let mut bound = registry.lock();
        let gone = root.zip(mode).is_some_and(|(root, mode)| !bound.of(mode).contains(&root));
        let error = if gone {
            io::Error::from_raw_os_error(libc::EBADF)
        } else {
            match socket.bind(binding.ifindex, binding.queue, flags, root) {
                Ok(()) => {
                    let mode = match (mode, socket.is_zero_copy()) {
                        (Some(mode), _) => mode,
                        (None, Ok(true)) => Mode::ZeroCopy,
                        (None, Ok(false)) => Mode::Copy,
                        (None, Err(error)) => return Err(binding.failed("asking for the mode")(error)),
                    };
                    bound.of(mode).push(socket.raw_fd());
                    return Ok(mode);
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
                bound.forget(root);
                return Err(binding.failed("binding")(error));
            }
            Some(libc::EBUSY | libc::ENODEV | libc::EPERM) => return Err(binding.failed("binding")(error)),
            _ if mode == Some(Mode::ZeroCopy) => {
                let (ifname, queue) = (binding.ifname.to_owned(), binding.queue);
                return Err(AfXdpError::NoZeroCopy { ifname, queue, source: error });
            }
            _ => return Err(binding.failed("binding")(error)),
        }
    }
}
