//! The program that this process runs: where it is, how it was started, and what takes its place.

use super::handover::{PRIVATE_ENV, STATE_VERSION, memory_file};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long the program may take to say whether it can take over.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// Its option to say so.
pub(super) const CHECK_OPTION: &str = "--check-restart";

/// Where the program is and with what arguments it was started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    name: OsString,
    args: Vec<OsString>,
}

/// What a program says of itself when asked whether it can take over.
#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its version, for people.
    pub version: String,
    /// Version of the state that it takes over.
    pub state_version: u32,
}

/// Why the program cannot take this one's place. Nothing was stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// It cannot be started.
    #[error("{path} cannot be started: {source}; put a working program there")]
    Start {
        /// The program.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It says no, or something else.
    #[error("{path} {CHECK_OPTION} failed ({status}): {output}; put a working program there")]
    Check {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// It says nothing.
    #[error("{path} {CHECK_OPTION} did not end within {} s; put a working program there", CHECK_DEADLINE.as_secs())]
    Slow {
        /// The program.
        path: PathBuf,
    },
    /// It is too old or too new.
    #[error(
        "{path} (version {version}) takes over state of version {found}, but this engine's is of version {STATE_VERSION}; stop the engine and start the other instead"
    )]
    Version {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
        /// Version of the state that it takes over.
        found: u32,
    },
}

impl Program {
    /// This process's. To be asked at start: once the file is replaced, the kernel knows the old one only.
    pub fn of_this_process() -> io::Result<Program> {
        let own = std::env::current_exe()?;
        let mut args = std::env::args_os();
        let name = args.next().unwrap_or_else(|| own.clone().into());
        // The way it was called, if that leads here: it may go over a symbolic link that an upgrade turns.
        let called =
            std::path::absolute(Path::new(&name)).ok().filter(|_| Path::new(&name).components().count() > 1);
        let same = |path: &PathBuf| std::fs::canonicalize(path).is_ok_and(|path| path == own);
        let path = called.filter(same).unwrap_or(own);
        Ok(Program { path, name, args: args.collect() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn command(&self, with: &[(&str, &str)], without: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).args(&self.args).envs(with.iter().copied());
        without.iter().for_each(|name| {
            command.env_remove(name);
        });
        command
    }

    /// Replaces this process's image by the program, environment changed as said. Returns only if that fails.
    pub(super) fn exec(&self, with: &[(&str, &str)], without: &[&str]) -> io::Error {
        self.command(with, without).exec()
    }

    /// Asks the program that is at this path now whether it can take over with these arguments.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub(super) fn check(&self) -> Result<Answer, Unfit> {
        let path = || self.path.clone();
        let mut command = self.command(&[], &PRIVATE_ENV);
        // An absolute path instead of a name that may be looked up elsewhere.
        command.arg0(&self.path).arg(CHECK_OPTION);
        let start = |source| Unfit::Start { path: self.path.clone(), source };
        // Files, not pipes: whatever holds them open, and however much is written, nobody waits.
        let (mut output, mut errors) = (memory_file().map_err(start)?, memory_file().map_err(start)?);
        command.stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(start)?).stderr(errors.try_clone().map_err(start)?);
        let ended = command.spawn().and_then(|mut child| wait(&mut child)).map_err(start)?;
        let Some(status) = ended else { return Err(Unfit::Slow { path: path() }) };
        let (output, errors) = (read(&mut output), read(&mut errors));
        let answer = serde_json::from_str::<Answer>(output.trim()).ok().filter(|_| status.success());
        let Some(answer) = answer else {
            let output = format!("{output}{errors}").trim().replace('\n', " ");
            let output = output.chars().take(500).collect();
            return Err(Unfit::Check { path: path(), status: status.to_string(), output });
        };
        if answer.state_version != STATE_VERSION {
            let Answer { version, state_version: found } = answer;
            return Err(Unfit::Version { path: path(), version, found });
        }
        Ok(answer)
    }
}

/// Waits for the end; `None`, and the child is killed, if it takes too long.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + CHECK_DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            // It may end just now; either way it is reaped.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The beginning of what was written.
fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is shown as nothing: the exit status counts too.
    let _ = file.rewind().and_then(|()| file.take(16 << 10).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
