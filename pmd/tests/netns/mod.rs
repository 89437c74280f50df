//! Network namespaces and veth pairs for tests, removed when dropped.

// UNSAFETY: `setns` takes a descriptor and changes the calling thread only.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

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
        netns.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        netns
    }

    /// Makes a veth pair: `here` in this namespace and `eth0` with `address` in `other`, both up.
    pub(crate) fn veth(&self, here: &str, other: &Netns, address: &str) {
        let (a, b) = (&self.name, &other.name);
        self.ip(&format!("link add {here} type veth peer name eth0 netns {b}"));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("address add {address} dev eth0"));
        other.ip("link set eth0 up");
        // What AF_XDP cannot carry: checksums and segmentation left to the device.
        other.sh("ethtool -K eth0 tx off tso off gso off >/dev/null");
        assert!(!a.is_empty());
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
