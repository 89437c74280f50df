//! The few system calls that std does not offer: signals, namespaces, the parent-death signal, file locks.
//!
// UNSAFETY: libc calls for namespaces, signals and locks have no safe wrapper in std; each is one call
// with plain integers or one owned file descriptor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Effective user id of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The cores that this process may run on, ascending.
pub fn cores() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and its size is the one passed; on failure it stays empty.
    unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    let all = 0..8 * size_of::<libc::cpu_set_t>();
    // SAFETY: the index is within the set.
    let cores: Vec<usize> = all.filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

extern "C" fn note_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Turns SIGINT, SIGTERM and SIGHUP into a flag that every wait of the testbed looks at, so that an
/// interrupted run takes the ordinary way out and cleans up behind itself.
pub fn catch_termination() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: an all-zero sigaction is valid: empty mask, no flags.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = note_signal as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: `action` is initialised and its handler only stores to an atomic, which is
            // async-signal-safe.
            unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
        }
    });
}

/// Whether a termination signal has come since [`catch_termination`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill takes two integers; the pid is positive, so it names one process, never a group.
    if pid > 0 && unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts the child into a session of its own, so that a Ctrl-C at the terminal reaches only the testbed,
/// which then stops the child in order. With `die_with_parent` the kernel kills the child as soon as the
/// thread that spawned it ends, however it ends.
pub(crate) fn isolate(command: &mut Command, die_with_parent: bool) {
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls and does not
    // allocate.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            if die_with_parent {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the call above took effect.
                if libc::getppid() as u32 != parent {
                    libc::_exit(1);
                }
            }
            Ok(())
        });
    }
}

/// Moves the calling thread into the network namespace behind `file`.
pub(crate) fn enter_netns(file: &File) -> io::Result<()> {
    // SAFETY: setns takes an open descriptor, which `file` keeps open during the call.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Tries to take the exclusive lock of an open file; false if another holder has it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: flock takes an open descriptor, which `file` keeps open during the call.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}
