//! The engine's options, checked against the machine.

use crate::conntrack::Timeouts;
use crate::worker::PollMode;
use core_affinity::CoreId;
use std::path::PathBuf;

/// What the engine is told at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder with control's tables; connections and counters go there too.
    pub run_dir: PathBuf,
    /// Cores to pin workers to, one each; empty: the highest-numbered `workers` cores.
    pub cores: Vec<usize>,
    /// Number of workers, where no cores are named.
    pub workers: usize,
    /// When workers may sleep.
    pub poll: PollMode,
    /// Frames of 2 KiB in the UMEM.
    pub frames: u32,
    /// Whether to ask for 2 MiB pages.
    pub huge_pages: bool,
    /// Flows per worker at best speed.
    pub flows: usize,
    /// Connections that the connection table holds.
    pub connections: u32,
    /// How long they last without a packet.
    pub timeouts: Timeouts,
    /// Whether TCP connections' windows are left alone.
    pub tcp_liberal: bool,
}

/// Why the options are refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A core is named that the machine, or this process's affinity mask, does not have.
    #[error("--cores names core {core}, which this process may not run on; it has cores {have}")]
    NoSuchCore {
        /// The core asked for.
        core: usize,
        /// Those that are there.
        have: String,
    },
    /// A core is named twice.
    #[error("--cores names core {core} twice; each worker needs a core of its own")]
    SameCore {
        /// The core asked for.
        core: usize,
    },
    /// No, or too many, workers.
    #[error("--workers is {workers}, but must be between 1 and {cores}, the number of cores here")]
    Workers {
        /// Workers asked for.
        workers: usize,
        /// Cores there are.
        cores: usize,
    },
    /// The list of cores cannot be read.
    #[error("--cores '{text}' is not a list of cores; write it as 2,3 or 2-5")]
    CoreList {
        /// What was given.
        text: String,
    },
}

impl Config {
    /// The core of each worker.
    pub fn worker_cores(&self) -> Result<Vec<CoreId>, ConfigError> {
        let have = core_affinity::get_core_ids().unwrap_or_default();
        choose_cores(&self.cores, self.workers, &have)
    }
}

fn choose_cores(named: &[usize], workers: usize, have: &[CoreId]) -> Result<Vec<CoreId>, ConfigError> {
    if named.is_empty() {
        if workers == 0 || workers > have.len() {
            return Err(ConfigError::Workers { workers, cores: have.len() });
        }
        return Ok(have[have.len() - workers..].to_vec());
    }
    for (index, core) in named.iter().enumerate() {
        if !have.iter().any(|known| known.id == *core) {
            let have: Vec<String> = have.iter().map(|known| known.id.to_string()).collect();
            return Err(ConfigError::NoSuchCore { core: *core, have: have.join(",") });
        }
        if named[..index].contains(core) {
            return Err(ConfigError::SameCore { core: *core });
        }
    }
    Ok(named.iter().map(|id| CoreId { id: *id }).collect())
}

/// Reads a list of cores such as `2,3` or `0-3,8`.
///
/// # Errors
/// [`ConfigError::CoreList`] if it is none.
pub fn parse_cores(text: &str) -> Result<Vec<usize>, ConfigError> {
    let error = || ConfigError::CoreList { text: text.to_owned() };
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < 4096).ok_or_else(error);
    let mut cores = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(error());
                }
                cores.extend(first..=last);
            }
            None => cores.push(number(part)?),
        }
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[usize]) -> Vec<CoreId> {
        ids.iter().map(|id| CoreId { id: *id }).collect()
    }

    #[test]
    fn core_lists_are_read_or_refused() {
        assert_eq!(parse_cores("2,3"), Ok(vec![2, 3]));
        assert_eq!(parse_cores("0-2,8"), Ok(vec![0, 1, 2, 8]));
        for bad in ["", "a", "3-1", "1,,2", "-1", "99999"] {
            assert!(matches!(parse_cores(bad), Err(ConfigError::CoreList { .. })), "{bad}");
        }
    }

    #[test]
    fn cores_that_are_not_there_are_refused_by_number() {
        let have = ids(&[0, 1]);
        assert_eq!(choose_cores(&[], 1, &have), Ok(ids(&[1])));
        assert_eq!(choose_cores(&[1, 0], 9, &have), Ok(ids(&[1, 0])));
        let error = choose_cores(&[0, 99], 1, &have).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--cores names core 99, which this process may not run on; it has cores 0,1"
        );
        assert_eq!(choose_cores(&[1, 1], 1, &have), Err(ConfigError::SameCore { core: 1 }));
        assert_eq!(choose_cores(&[], 3, &have), Err(ConfigError::Workers { workers: 3, cores: 2 }));
        assert_eq!(choose_cores(&[], 0, &have), Err(ConfigError::Workers { workers: 0, cores: 2 }));
    }
}
