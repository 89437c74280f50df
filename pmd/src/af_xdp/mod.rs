//! The AF_XDP driver: sockets on the receive queues of netdevs, all over one shared UMEM.
//!
//! It speaks the kernel's interface (`linux/if_xdp.h`) directly instead of through `xsk-rs`/libxdp, for reasons
//! of the data path:
//! - There a frame's descriptor address is fixed, so a packet that grew at its front (encapsulation into the
//!   headroom) could be sent only after a copy. Here a descriptor carries any start within its chunk.
//! - There the library makes the UMEM's memory and registers it once. The kernel gives every socket that
//!   shares a registration the copy or zero-copy mode of its first socket, so one registration cannot
//!   serve a zero-copy NIC and the pods' veths. Here the same memory is registered once per mode: see
//!   [`AfXdp`].
//! - What the kernel returns is checked against what it was lent, in release builds too (`lent.rs`).
//!
//! It also spares libxdp, libelf, m4 and bindgen at build time. `docs/af_xdp.md` explains modes, ownership of
//! frames at shutdown, and tuning.
//!
//! - `ring.rs`, `area.rs`: the rings shared with the kernel, and their memory.
//! - `sys.rs`: the system calls.
//! - `netdev.rs`: what is asked about a netdev.
//! - `open.rs`: opening a socket.
//! - `fill.rs`: how many frames a socket keeps to receive into.
//! - `queue.rs`: one socket as a [`Queue`](crate::Queue).
//! - `held.rs`: bringing its frames home at the end.
//! - `handover.rs`: leaving open sockets to the process's next image.
//! - here: configuration, errors, and opening a netdev.

mod area;
mod fill;
mod handover;
mod held;
pub(crate) mod netdev;
mod open;
mod queue;
mod ring;
mod sys;

pub use handover::{AdoptError, HOME, LOST, Owner, QueueState, adopt, owners};
pub use netdev::ifindex;
pub use open::RingSizes;
pub use queue::AfXdpQueue;

use crate::umem::Umem;
use open::Binding;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which mode to ask the kernel for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeChoice {
    /// Zero-copy if the driver can, copy otherwise.
    #[default]
    Auto,
    /// Copy only: for veths, and for netdevs with the program attached in generic mode.
    Copy,
    /// Zero-copy or fail.
    ZeroCopy,
}

/// The mode that a socket came to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The device reads and writes the UMEM itself.
    ZeroCopy,
    /// The kernel copies each packet between its buffers and the UMEM.
    Copy,
}

/// Busy polling of a queue's NAPI context from the worker instead of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// `SO_BUSY_POLL`: longest time in one poll.
    pub timeout_us: u32,
    /// `SO_BUSY_POLL_BUDGET`: most packets in one poll.
    pub budget: u32,
    /// `napi_defer_hard_irqs`: empty polls before interrupts come on again.
    pub defer_hard_irqs: u32,
    /// `gro_flush_timeout`: time after which the kernel polls by itself if the worker does not.
    pub gro_flush_timeout_ns: u64,
}

impl Default for BusyPoll {
    fn default() -> BusyPoll {
        BusyPoll { timeout_us: 20, budget: 64, defer_hard_irqs: 2, gro_flush_timeout_ns: 200_000 }
    }
}

/// How to open a netdev's queues. Ring sizes are in entries and powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfXdpConfig {
    /// Mode to ask for.
    pub mode: ModeChoice,
    /// Size of the rx ring.
    pub rx_ring: u32,
    /// Size of the tx ring.
    pub tx_ring: u32,
    /// Size of the fill ring.
    pub fill_ring: u32,
    /// Size of the completion ring.
    pub completion_ring: u32,
    /// Frames to keep with the kernel for receiving, per queue, while the pool has plenty.
    pub fill_target: u32,
    /// Frames to keep there however little the pool can spare.
    pub fill_min: u32,
    /// Send buffer: in copy mode, bytes of packets on their way through the kernel.
    pub send_buffer_bytes: u32,
    /// Busy polling, if wanted. What cannot be set is logged as a warning.
    pub busy_poll: Option<BusyPoll>,
}

impl AfXdpConfig {
    /// For a NIC with so many queues: 2048 frames for each, 512 where there are many; zero-copy if possible.
    pub fn uplink(queues: u32) -> AfXdpConfig {
        let frames = (4096 / queues.max(1)).clamp(512, 2048);
        AfXdpConfig {
            mode: ModeChoice::Auto,
            rx_ring: 2048,
            tx_ring: 2048,
            fill_ring: 2048,
            completion_ring: 2048,
            fill_target: frames,
            fill_min: frames,
            send_buffer_bytes: 8 << 20,
            busy_poll: None,
        }
    }

    /// For a pod's veth: 32 to 1024 frames, copy mode.
    pub fn pod() -> AfXdpConfig {
        AfXdpConfig {
            mode: ModeChoice::Copy,
            rx_ring: 1024,
            tx_ring: 1024,
            fill_ring: 1024,
            completion_ring: 1024,
            fill_target: 1024,
            fill_min: 32,
            send_buffer_bytes: 4 << 20,
            busy_poll: None,
        }
    }

    fn check(&self) -> Result<(), AfXdpError> {
        let rings = [
            ("rx_ring", self.rx_ring),
            ("tx_ring", self.tx_ring),
            ("fill_ring", self.fill_ring),
            ("completion_ring", self.completion_ring),
        ];
        for (field, value) in rings {
            if !value.is_power_of_two() || value > 1 << 20 {
                let rule = "must be a power of two up to 1048576";
                return Err(AfXdpError::Config { field, value, rule });
            }
        }
        let value = self.fill_target;
        if value == 0 || value > self.fill_ring || value > self.rx_ring {
            let rule = "must be at least 1 and fit in the fill ring and in the rx ring";
            return Err(AfXdpError::Config { field: "fill_target", value, rule });
        }
        let value = self.fill_min;
        if value == 0 || value > self.fill_target {
            let rule = "must be at least 1 and at most fill_target";
            return Err(AfXdpError::Config { field: "fill_min", value, rule });
        }
        Ok(())
    }
}

impl Default for AfXdpConfig {
    fn default() -> AfXdpConfig {
        AfXdpConfig::uplink(1)
    }
}

/// Why a netdev's queues could not be opened. Nothing stays open, and every frame is home again.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// There is no netdev of this name.
    #[error(
        "interface {ifname}: no such interface in this network namespace; check its name with `ip link` and that Fairway runs in the right namespace"
    )]
    NoInterface {
        /// Name asked for.
        ifname: String,
    },
    /// The process may not open AF_XDP sockets.
    #[error(
        "interface {ifname}: opening AF_XDP sockets needs {missing}, which this process lacks; run as root or grant it (Kubernetes: securityContext.capabilities.add)"
    )]
    MissingCapability {
        /// Netdev to be opened.
        ifname: String,
        /// Names of the capabilities.
        missing: String,
    },
    /// The kernel was built without AF_XDP.
    #[error(
        "interface {ifname}: this kernel has no AF_XDP sockets; use one built with CONFIG_XDP_SOCKETS (Linux 5.11 or later)"
    )]
    Unsupported {
        /// Netdev to be opened.
        ifname: String,
    },
    /// Another socket holds the queue.
    #[error(
        "interface {ifname}, queue {queue}: another AF_XDP socket is bound to it; stop the program that uses it (`ss --xdp -p` names it)"
    )]
    QueueBusy {
        /// Netdev to be opened.
        ifname: String,
        /// Its receive queue.
        queue: u32,
    },
    /// Zero-copy was demanded and the driver cannot.
    #[error(
        "interface {ifname}, queue {queue}: the driver refuses zero-copy ({source}); use mode auto or copy, or a driver that supports it"
    )]
    NoZeroCopy {
        /// Netdev to be opened.
        ifname: String,
        /// Its receive queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not let the process pin the UMEM.
    #[error(
        "interface {ifname}: the kernel refuses to pin {bytes} bytes of UMEM ({source}); raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) or grant CAP_IPC_LOCK, or lower the number of frames"
    )]
    Pin {
        /// Netdev to be opened.
        ifname: String,
        /// Size of the UMEM.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pool cannot fill the queues.
    #[error(
        "interface {ifname}, queue {queue}: the frame pool has too few frames left to receive into ({had} of {wanted}); raise the number of UMEM frames"
    )]
    OutOfFrames {
        /// Netdev to be opened.
        ifname: String,
        /// Its receive queue.
        queue: u32,
        /// Frames that were left.
        had: u32,
        /// Fewest frames per queue.
        wanted: u32,
    },
    /// A value in the configuration is out of range.
    #[error("AF_XDP setting {field} is {value}, but {rule}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What it must be.
        rule: &'static str,
    },
    /// The kernel refused a step for another reason.
    #[error(
        "interface {ifname}, queue {queue}: {step} failed: {source}; the kernel log (dmesg) may say more"
    )]
    Kernel {
        /// Netdev to be opened.
        ifname: String,
        /// Its receive queue.
        queue: u32,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The bound sockets of one UMEM, by mode. Any of them can be the root that a further socket shares the
/// registration of. The lock is held while a socket binds and while one closes, so that a root is alive
/// during a bind; no worker takes it while packets move.
#[derive(Default)]
struct Bound {
    copy: Vec<RawFd>,
    zero_copy: Vec<RawFd>,
}

impl Bound {
    fn of(&mut self, mode: Mode) -> &mut Vec<RawFd> {
        match mode {
            Mode::Copy => &mut self.copy,
            Mode::ZeroCopy => &mut self.zero_copy,
        }
    }

    fn forget(&mut self, socket: Option<RawFd>) {
        for bound in [&mut self.copy, &mut self.zero_copy] {
            bound.retain(|fd| Some(*fd) != socket);
        }
    }
}

#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Bound>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Bound> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A UMEM as the kernel knows it: registered once for copy mode and once for zero-copy mode, when the first
/// socket of that mode is bound; every further socket shares its mode's registration (`XDP_SHARED_UMEM`) and
/// brings its own fill and completion rings. Cheap to clone (shared).
#[derive(Clone)]
pub struct AfXdp {
    umem: Umem,
    registry: Registry,
}

impl AfXdp {
    /// Opens no socket yet.
    pub fn new(umem: &Umem) -> AfXdp {
        AfXdp { umem: umem.clone(), registry: Registry::default() }
    }

    /// The UMEM behind the sockets.
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Opens a socket on each receive queue of the netdev `ifname` of the caller's network namespace. `port` is
    /// noted in each received frame. The sockets receive nothing until they are registered with
    /// [`Steering`](crate::steering::Steering).
    ///
    /// May block for up to two seconds while the kernel frees the queues of sockets that were just closed.
    pub fn open(&self, ifname: &str, port: u16, config: &AfXdpConfig) -> Result<Vec<AfXdpQueue>, AfXdpError> {
        config.check()?;
        if let Some(missing) = netdev::missing_capabilities(&[netdev::CAP_NET_RAW]) {
            return Err(AfXdpError::MissingCapability { ifname: ifname.to_owned(), missing });
        }
        let no_interface = || AfXdpError::NoInterface { ifname: ifname.to_owned() };
        let ifindex = netdev::ifindex(ifname).ok_or_else(no_interface)?;
        let count = netdev::rx_queues(ifname).map_err(|source| AfXdpError::Kernel {
            ifname: ifname.to_owned(),
            queue: 0,
            step: "asking for the number of queues",
            source,
        })?;
        let mut queues = Vec::with_capacity(count as usize);
        for queue in 0..count {
            let binding = Binding { ifname, ifindex, queue, port, config };
            // All queues of a netdev are in one mode, so that they share a registration.
            let mode = queues.first().map(AfXdpQueue::mode);
            queues.push(self.open_queue(&binding, mode)?);
        }
        if let Some(busy_poll) = config.busy_poll {
            let BusyPoll { defer_hard_irqs, gro_flush_timeout_ns, .. } = busy_poll;
            if let Err(error) =
                netdev::defer_interrupts(ifname, ifindex, defer_hard_irqs, gro_flush_timeout_ns)
            {
                tracing::warn!(ifname, %error, "interrupts of the netdev are not deferred; busy polling will compete with them");
            }
        }
        Ok(queues)
    }

    fn open_queue(&self, binding: &Binding<'_>, auto: Option<Mode>) -> Result<AfXdpQueue, AfXdpError> {
        let opened = match binding.config.mode {
            ModeChoice::Copy => AfXdpQueue::open(self, binding, Some(Mode::Copy))?,
            ModeChoice::ZeroCopy => AfXdpQueue::open(self, binding, Some(Mode::ZeroCopy))?,
            ModeChoice::Auto => AfXdpQueue::open(self, binding, auto)?,
        };
        tracing::info!(
            ifname = binding.ifname,
            queue = binding.queue,
            mode = ?opened.mode(),
            fd = opened.raw_fd(),
            "AF_XDP socket bound"
        );
        Ok(opened)
    }
}
