//! The few system calls that the standard library does not offer: open-file-description locks, free
//! space, and who this process is.

// UNSAFETY: fcntl(2) locks and fstatvfs(3) have no safe form.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

fn lock_call(file: &File, command: i32, kind: i32, start: u64, len: u64) -> io::Result<libc::flock> {
    // SAFETY: flock is plain integers, for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start as libc::off_t;
    lock.l_len = len as libc::off_t;
    // SAFETY: the descriptor is open for as long as `file`, and `lock` is a valid flock to read and fill.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// Takes the exclusive lock on a byte range if nobody has it. It ends with the open file, however the
/// process dies.
pub(crate) fn try_lock(file: &File, start: u64, len: u64) -> io::Result<bool> {
    match lock_call(file, libc::F_OFD_SETLK, libc::F_WRLCK, start, len) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives a byte range free.
pub(crate) fn unlock(file: &File, start: u64, len: u64) -> io::Result<()> {
    lock_call(file, libc::F_OFD_SETLK, libc::F_UNLCK, start, len).map(|_| ())
}

/// Whether another open file holds an exclusive lock in the byte range.
pub(crate) fn is_locked(file: &File, start: u64, len: u64) -> io::Result<bool> {
    let lock = lock_call(file, libc::F_OFD_GETLK, libc::F_RDLCK, start, len)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Bytes that a file on this file system may still grow by.
pub(crate) fn free_space(file: &File) -> io::Result<u64> {
    // SAFETY: statvfs is plain integers, for which zero is valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for as long as `file`, and `stat` is a valid statvfs to fill.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &mut stat) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
    }
}

/// When this process started, in clock ticks since boot (proc(5), `stat` field 22); 0 if unknown.
pub(crate) fn start_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// A number that differs from boot to boot and is the same in every container of a node.
pub(crate) fn boot_number() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    crate::layout::fnv(id.iter().copied())
}

/// A number nobody can guess.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds this from the operating system.
    std::hash::RandomState::new().build_hasher().finish()
}
