//! Network namespaces and veth pairs for tests, removed when dropped.

// UNSAFETY: `setns` takes a descriptor and changes the calling thread only.
#![allow(unsafe_code)]
// Each test binary uses a part of this.
#![allow(dead_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Whether the test can run. Without root it may be skipped, with a reason, but not in CI.
pub(crate) fn privileged(test: &str) -> bool {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs root, and CI must not skip it");
    eprintln!("skipped {test}: it needs root to make network namespaces");
    false
}

/// A network namespace.
pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    pub(crate) fn new(role: &str) -> Netns {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("fwpmd-{}-{serial}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let netns = Netns { name };
        netns.ip("link set lo up");
        // No router solicitations or duplicate address detection among the packets that tests count.
        netns.sh("for c in all default; do echo 1 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; done");
        netns
    }

    /// Makes a veth pair: `here` in this namespace and `eth0` with `address` in `other`, both up, with
    /// `queues` queues each.
    pub(crate) fn veth(&self, here: &str, other: &Netns, address: &str, queues: u32) {
        let ends = format!("numrxqueues {queues} numtxqueues {queues}");
        let name = &other.name;
        self.ip(&format!("link add {here} {ends} type veth peer name eth0 {ends} netns {name}"));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("address add {address} dev eth0"));
        other.ip("link set eth0 up");
        // What AF_XDP cannot carry: checksums and segmentation left to the device.
        other.sh("ethtool -K eth0 tx off tso off gso off >/dev/null");
    }

    /// Runs `ip` in this namespace.
    pub(crate) fn ip(&self, args: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split_whitespace());
        run("ip", &all);
    }

    /// Runs a shell command in this namespace, which must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell command in this namespace.
    pub(crate) fn try_sh(&self, script: &str) -> Output {
        let args = ["netns", "exec", &self.name, "sh", "-c", script];
        Command::new("ip").args(args).output().unwrap_or_else(|error| panic!("ip: {error}"))
    }

    /// Moves the calling thread into this namespace.
    pub(crate) fn enter(&self) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        // SAFETY: an open descriptor of a network namespace.
        assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
    }

    /// Runs `work` on a thread of its own in this namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A socket for whole frames on one of this namespace's devices.
    pub(crate) fn packet_socket(&self, ifname: &str) -> PacketSocket {
        self.run(|| PacketSocket::open(ifname))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An AF_PACKET socket.
pub(crate) struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    fn open(ifname: &str) -> PacketSocket {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: opened just now.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = std::ffi::CString::new(ifname).unwrap();
        // SAFETY: plain integers, and a NUL-terminated string.
        let (mut address, index): (libc::sockaddr_ll, _) =
            unsafe { (std::mem::zeroed(), libc::if_nametoindex(name.as_ptr())) };
        assert_ne!(index, 0, "no {ifname} here");
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is readable for `len` bytes.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        PacketSocket { fd }
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: `frame` is readable for its length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }

    /// Takes the next frame, if there is one.
    pub(crate) fn recv(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65536];
        // SAFETY: `frame` is writable for its length.
        let got = unsafe {
            libc::recv(self.fd.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
        };
        frame.truncate(usize::try_from(got).ok()?);
        Some(frame)
    }
}

/// Tries until `check` says yes; panics after ten seconds.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < until, "{what}: not after ten seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes capabilities, by number, from the calling thread.
pub(crate) fn drop_capabilities(numbers: &[u32]) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // `_LINUX_CAPABILITY_VERSION_3`: two sets of effective, permitted and inheritable.
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: both structures have the kernel's layout for this version.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
    assert_eq!(got, 0);
    for number in numbers {
        sets[(number / 32) as usize][0] &= !(1 << (number % 32));
    }
    // SAFETY: as above; this changes the calling thread alone.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const sets) };
    assert_eq!(set, 0);
}
