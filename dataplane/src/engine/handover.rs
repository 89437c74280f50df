//! Handing open ports over to the process's next image: the engine replaces itself by exec, in place, and what
//! the kernel holds stays open. docs/restart.md says what goes across and how.
//!
//! What the next image has to know is in a memory file of its own, whose number is in the environment:
//! magic, version, checksum, a description in JSON, then one owner per frame. Anything odd about it, and the next
//! image begins anew, as after a crash, and says why.

// UNSAFETY: descriptors are taken by their number and marked to stay open, the memory file is made, and one
// signal is held back; each is one system call with plain integers.
#![allow(unsafe_code)]

use super::Config;
use super::program::Program;
use crate::clock;
use fairway_pmd::af_xdp::{self, AdoptError, AfXdp, AfXdpQueue, Owner, QueueState};
use fairway_pmd::steering::LinkState;
use fairway_pmd::{Umem, UmemConfig};
use fairway_tables::stats::StatsWriter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Changes with the meaning of anything that is handed over.
pub(super) const STATE_VERSION: u32 = 2;
const MAGIC: [u8; 8] = *b"FWhandov";
/// Magic, version, length of the description, length of the rest, checksum of both.
const HEAD_LEN: usize = 8 + 4 + 4 + 8 + 8;
/// Far more than any engine needs.
const MAX_LEN: u64 = 256 << 20;
/// The environment's word for the number of the memory file.
const ENV_STATE: &str = "FAIRWAY_HANDOVER_FD";
/// The environment's word for why the image before this one took nothing over.
const ENV_ANEW: &str = "FAIRWAY_NOT_HANDED_OVER";

/// Why nothing could be taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The description is not one.
    #[error("the former image's state can't be read: {0}")]
    Unreadable(String),
    /// It is another version's.
    #[error("the former image's state is of version {found}, not {STATE_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// The options say otherwise now.
    #[error("the former image had {had} frames, this one is to have {wanted}")]
    Frames {
        /// Frames there are.
        had: u32,
        /// Frames asked for.
        wanted: u32,
    },
    /// A descriptor is missing.
    #[error("descriptor {0} of the former image is not open or is listed twice")]
    Descriptor(RawFd),
    /// Frames or sockets.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
}

#[derive(Serialize, Deserialize)]
struct Memory {
    fd: RawFd,
    frames: u32,
    frame_size: u32,
    huge_pages: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    /// Version of the program that wrote this, for the log.
    written_by: String,
    /// When the workers stopped, by `CLOCK_MONOTONIC`.
    stopped_ns: u64,
    tsc_per_ns: f64,
    memory: Memory,
    counters: RawFd,
    queues: Vec<QueueState>,
    links: Vec<LinkState>,
    /// Packets that the images before this one could not account for (invariant I2).
    packets_unaccounted: i64,
}

/// What the image that ends leaves to the next one.
pub(super) struct Parting<'a> {
    pub(super) umem: &'a Umem,
    pub(super) queues: &'a [&'a AfXdpQueue],
    pub(super) links: Vec<LinkState>,
    pub(super) stats: &'a StatsWriter,
    pub(super) stopped_ns: u64,
    pub(super) packets_unaccounted: i128,
}

impl Parting<'_> {
    /// Replaces the process's image by `program`. Returns only if that failed; then nothing has changed.
    pub(super) fn exec(&self, program: &Program) -> io::Error {
        let open = match self.write() {
            Ok(open) => open,
            Err(error) => return error,
        };
        // A request that comes while nobody listens would otherwise end the process.
        hold_back_hangup(true);
        let kept = open.fds.iter().try_for_each(|fd| keep_open(*fd, true));
        let state = open.state.as_raw_fd().to_string();
        let error = kept.err().unwrap_or_else(|| program.exec(&[(ENV_STATE, state.as_str())], &[ENV_ANEW]));
        for fd in &open.fds {
            // It was open a moment ago.
            let _ = keep_open(*fd, false);
        }
        hold_back_hangup(false);
        error
    }

    fn write(&self) -> io::Result<Open> {
        let (_, bytes) = self.umem.region();
        let frames = self.umem.frames() as u32;
        let counters = self.stats.file().ok_or_else(|| io::Error::other("the counters have no file"))?;
        let state = State {
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
            stopped_ns: self.stopped_ns,
            tsc_per_ns: clock::tsc_per_ns(),
            memory: Memory {
                fd: self.umem.file().as_raw_fd(),
                frames,
                frame_size: bytes as u32 / frames,
                huge_pages: self.umem.has_huge_pages(),
            },
            counters: counters.as_raw_fd(),
            queues: self.queues.iter().map(|queue| queue.state()).collect(),
            links: self.links.clone(),
            packets_unaccounted: self.packets_unaccounted as i64,
        };
        let owners = af_xdp::owners(self.umem, self.queues);
        let mut file = memory_file()?;
        file.write_all(&encode(&serde_json::to_vec(&state)?, &owners))?;
        let fds = state.fds().chain([file.as_raw_fd()]).collect();
        Ok(Open { state: file, fds })
    }
}

/// What stays open over the exec.
struct Open {
    state: File,
    fds: Vec<RawFd>,
}

impl State {
    fn fds(&self) -> impl Iterator<Item = RawFd> {
        let queues = self.queues.iter().map(|queue| queue.fd);
        let links = self.links.iter().map(|link| link.fd);
        [self.memory.fd, self.counters].into_iter().chain(queues).chain(links)
    }
}

fn encode(description: &[u8], owners: &[Owner]) -> Vec<u8> {
    let owners: Vec<u8> = owners.iter().flat_map(|owner| owner.to_ne_bytes()).collect();
    let mut bytes = Vec::with_capacity(HEAD_LEN + description.len() + owners.len());
    bytes.extend(MAGIC);
    bytes.extend(STATE_VERSION.to_ne_bytes());
    bytes.extend((description.len() as u32).to_ne_bytes());
    bytes.extend((owners.len() as u64).to_ne_bytes());
    bytes.extend(checksum(description, &owners).to_ne_bytes());
    bytes.extend(description);
    bytes.extend(owners);
    bytes
}

/// FNV-1a over words of eight bytes: against a file that was cut or belongs to somebody else.
fn checksum(description: &[u8], owners: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in description.chunks(8).chain(owners.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

fn decode(bytes: &[u8]) -> Result<(State, Vec<Owner>), HandoverError> {
    let unreadable = |what: &str| HandoverError::Unreadable(what.to_owned());
    let (head, rest) = bytes.split_at_checked(HEAD_LEN).ok_or_else(|| unreadable("it is too short"))?;
    let number = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| head[at + byte]));
    let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| head[at + byte]));
    if head[..8] != MAGIC {
        return Err(unreadable("it starts otherwise"));
    }
    if half(8) != STATE_VERSION {
        return Err(HandoverError::Version { found: half(8) });
    }
    let (description, owners) =
        rest.split_at_checked(half(12) as usize).ok_or_else(|| unreadable("it is too short"))?;
    if owners.len() as u64 != number(16) || checksum(description, owners) != number(24) {
        return Err(unreadable("its checksum is wrong"));
    }
    let state =
        serde_json::from_slice(description).map_err(|error| HandoverError::Unreadable(error.to_string()))?;
    let (owners, _) = owners.as_chunks::<2>();
    Ok((state, owners.iter().map(|bytes| Owner::from_ne_bytes(*bytes)).collect()))
}

/// What the former image left, its descriptors owned.
pub struct Handover {
    state: State,
    owners: Vec<Owner>,
    memory: OwnedFd,
    counters: File,
    sockets: Vec<OwnedFd>,
    links: Vec<OwnedFd>,
}

/// What was taken over.
pub(super) struct TakenOver {
    pub(super) af_xdp: AfXdp,
    pub(super) queues: Vec<AfXdpQueue>,
    pub(super) links: Vec<(LinkState, OwnedFd)>,
    pub(super) counters: File,
    pub(super) stopped_ns: u64,
    pub(super) packets_unaccounted: i128,
}

impl Handover {
    /// What a former image left, if there was one. To be called before anything else is opened: every other
    /// descriptor is marked to be closed by the next exec.
    ///
    /// # Errors
    /// If it cannot be used; see [`begin_anew`].
    pub fn receive() -> Result<Option<Handover>, HandoverError> {
        // What whoever started the process left open as well: no image of it needs that.
        // SAFETY: no pointers; descriptors stay as they are but for the flag.
        unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
        let Some(number) = std::env::var_os(ENV_STATE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok()).unwrap_or(-1);
        let mut file = File::from(own(number)?);
        let unreadable = |error: io::Error| HandoverError::Unreadable(error.to_string());
        let mut bytes = Vec::new();
        file.rewind().map_err(unreadable)?;
        file.take(MAX_LEN).read_to_end(&mut bytes).map_err(unreadable)?;
        let (state, owners) = decode(&bytes)?;
        let mut known = BTreeSet::from([number]);
        if let Some(twice) = state.fds().find(|fd| !known.insert(*fd)) {
            return Err(HandoverError::Descriptor(twice));
        }
        Ok(Some(Handover {
            memory: own(state.memory.fd)?,
            counters: own(state.counters)?.into(),
            sockets: state.queues.iter().map(|queue| own(queue.fd)).collect::<Result<_, _>>()?,
            links: state.links.iter().map(|link| own(link.fd)).collect::<Result<_, _>>()?,
            state,
            owners,
        }))
    }

    /// Takes frames and sockets over.
    ///
    /// # Errors
    /// See [`HandoverError`] and [`begin_anew`].
    pub(super) fn take_over(self, config: &Config) -> Result<TakenOver, HandoverError> {
        let Handover { state, owners, memory, counters, sockets, links } = self;
        let Memory { frames, frame_size, huge_pages, .. } = state.memory;
        if frames != config.frames {
            return Err(HandoverError::Frames { had: frames, wanted: config.frames });
        }
        clock::set_tsc_per_ns(state.tsc_per_ns);
        let umem = UmemConfig { frames, frame_size, huge_pages };
        let sockets = state.queues.into_iter().zip(sockets).collect();
        let (af_xdp, queues) = af_xdp::adopt(memory, umem, &owners, sockets)?;
        tracing::info!(
            from_version = state.written_by,
            queues = queues.len(),
            attachments = links.len(),
            "open ports taken over"
        );
        Ok(TakenOver {
            af_xdp,
            queues,
            links: state.links.into_iter().zip(links).collect(),
            counters,
            stopped_ns: state.stopped_ns,
            packets_unaccounted: state.packets_unaccounted.into(),
        })
    }
}

/// Executes the program once more without anything handed over: the exec closes what a former image left, all at
/// once and without having to know it. Returns only if that fails.
pub fn begin_anew(program: &Program, reason: &HandoverError) -> io::Error {
    tracing::warn!(%reason, "nothing is taken over; beginning anew");
    program.exec(&[(ENV_ANEW, reason.to_string().as_str())], &[ENV_STATE])
}

/// Why this image was begun anew by the one before it.
pub(super) fn why_anew() -> Option<String> {
    std::env::var(ENV_ANEW).ok()
}

/// What no program that this one starts is to see.
pub(super) const PRIVATE_ENV: [&str; 2] = [ENV_STATE, ENV_ANEW];

/// Takes a descriptor by its number, standard streams excepted.
fn own(fd: RawFd) -> Result<OwnedFd, HandoverError> {
    // SAFETY: asks for a flag; a number that is not open is an error.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(HandoverError::Descriptor(fd));
    }
    // SAFETY: open, and inherited from the former image: nothing was opened by this one yet, and the caller
    // takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn keep_open(fd: RawFd, keep: bool) -> io::Result<()> {
    let flags = if keep { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: sets a flag of a descriptor.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A file in memory, without a name.
pub(super) fn memory_file() -> io::Result<File> {
    // SAFETY: a NUL-terminated name.
    match unsafe { libc::memfd_create(c"fairway-handover".as_ptr(), libc::MFD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a descriptor that was just opened and that nobody else knows.
        fd => Ok(unsafe { File::from_raw_fd(fd) }),
    }
}

/// Holds SIGHUP back, or lets it through again: it asks for a restart, and between two images nobody listens.
pub fn hold_back_hangup(hold: bool) {
    let how = if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: a set of signals on the stack, emptied before use; the mask is this thread's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGHUP);
        libc::pthread_sigmask(how, &set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            written_by: "0.0.0".to_owned(),
            stopped_ns: 1,
            tsc_per_ns: 2.5,
            memory: Memory { fd: 3, frames: 64, frame_size: 2048, huge_pages: false },
            counters: 4,
            queues: Vec::new(),
            links: Vec::new(),
            packets_unaccounted: 0,
        }
    }

    fn encoded() -> Vec<u8> {
        encode(&serde_json::to_vec(&state()).unwrap(), &[af_xdp::HOME, 0, 1, af_xdp::LOST])
    }

    #[test]
    fn what_is_written_is_read() {
        let (read, owners) = decode(&encoded()).ok().unwrap();
        assert_eq!((read.stopped_ns, read.memory.fd, read.tsc_per_ns), (1, 3, 2.5));
        assert_eq!(owners, [af_xdp::HOME, 0, 1, af_xdp::LOST]);
    }

    #[test]
    fn a_state_with_any_byte_changed_or_missing_is_refused() {
        let whole = encoded();
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x10;
            assert!(decode(&bytes).is_err(), "byte {place} changed");
            assert!(decode(&whole[..place]).is_err(), "cut after {place} bytes");
        }
        let mut other = whole.clone();
        other[8..12].copy_from_slice(&(STATE_VERSION + 1).to_ne_bytes());
        assert!(
            matches!(decode(&other), Err(HandoverError::Version { found }) if found == STATE_VERSION + 1)
        );
    }
}
