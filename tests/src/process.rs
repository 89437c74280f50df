//! Child processes with deadlines: commands that are run to their end, and daemons that are started,
//! watched and stopped. None outlives the testbed unless it was asked to.

use crate::error::{Error, Result};
use crate::sys;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(2);
const RETRY: Duration = Duration::from_millis(20);
const TERM_DEADLINE: Duration = Duration::from_secs(10);
const LOG_TAIL_LINES: usize = 25;

/// The outcome of a command that ran to its end.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output, or an error that shows everything if the command failed.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let output = format!("{}{}", self.stdout, self.stderr).trim().to_owned();
        Err(Error::Command { command: self.command, status: describe(self.status), output })
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The command line of `command`, as a person would type it.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end. It is killed when `deadline` passes or a termination signal comes.
pub fn run(mut command: Command, deadline: Duration) -> Result<Output> {
    let line = command_line(&command);
    let mut stdout = tempfile::tempfile().map_err(Error::io("create a file for output"))?;
    let mut stderr = tempfile::tempfile().map_err(Error::io("create a file for output"))?;
    command.stdin(Stdio::null());
    command.stdout(clone_of(&stdout)?).stderr(clone_of(&stderr)?);
    sys::isolate(&mut command, true);
    let mut child = command.spawn().map_err(Error::io(format!("start `{line}`")))?;
    let end = Instant::now() + deadline;
    let status = wait_until(&mut child, end);
    let out = (read_back(&mut stdout), read_back(&mut stderr));
    match status? {
        Some(status) => Ok(Output { command: line, status, stdout: out.0, stderr: out.1 }),
        None => Err(Error::Timeout {
            what: format!("`{line}` ends"),
            waited_ms: deadline.as_millis() as u64,
            last: format!("{}{}", out.0, out.1).trim().to_owned(),
        }),
    }
}

/// Waits for the child's end; at `end` or on a termination signal it is killed and `None` returned.
fn wait_until(child: &mut Child, end: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().map_err(Error::io("wait for a command"))? {
            return Ok(Some(status));
        }
        if sys::interrupted() || Instant::now() >= end {
            // The child may end just now; either way it is reaped here.
            let _ = child.kill();
            let _ = child.wait();
            return if sys::interrupted() { Err(Error::Interrupted) } else { Ok(None) };
        }
        std::thread::sleep(POLL);
    }
}

fn clone_of(file: &File) -> Result<Stdio> {
    Ok(Stdio::from(file.try_clone().map_err(Error::io("share an output file"))?))
}

fn read_back(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // An unreadable output is shown as empty: the exit status decides.
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A daemon of the testbed. Dropping it stops it, unless it was released.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    log: PathBuf,
    released: bool,
}

impl Process {
    /// Starts `command` with its output going to the file `log`. With `die_with_parent` it cannot
    /// outlive the thread that called this.
    pub fn spawn(name: &str, mut command: Command, log: &Path, die_with_parent: bool) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(Error::io(format!("open the log {}", log.display())))?;
        command.stdin(Stdio::null()).stdout(clone_of(&file)?).stderr(clone_of(&file)?);
        sys::isolate(&mut command, die_with_parent);
        let child = command.spawn().map_err(Error::io(format!("start `{}`", command_line(&command))))?;
        let name = name.to_owned();
        Ok(Process { name, child, status: None, log: log.to_owned(), released: false })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// An error if it has ended although nobody stopped it.
    pub fn expect_alive(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(Error::Ended {
                name: self.name.clone(),
                status: describe(status),
                tail: self.log_tail(LOG_TAIL_LINES),
            }),
        }
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// The last lines that it has written.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends a signal, for tests that want to see what it does.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        sys::signal(self.pid(), signal).map_err(Error::io(format!("signal {}", self.name)))
    }

    /// Asks it to end with SIGTERM, kills it if it does not within the deadline, and returns how it
    /// ended. Works on during a termination signal too: this is part of the way out.
    pub fn stop(&mut self) -> ExitStatus {
        let _ = self.signal(libc::SIGTERM);
        self.wait_end(TERM_DEADLINE)
    }

    /// Kills it at once, as a crash would, and waits for its end.
    pub fn kill(&mut self) -> ExitStatus {
        let _ = self.signal(libc::SIGKILL);
        self.wait_end(TERM_DEADLINE)
    }

    /// Asks it to end and insists that it ends with exit code 0.
    pub fn stop_cleanly(&mut self) -> Result<()> {
        let status = self.stop();
        if status.success() {
            return Ok(());
        }
        let tail = self.log_tail(LOG_TAIL_LINES);
        Err(Error::BadExit { name: self.name.clone(), status: describe(status), tail })
    }

    /// Waits for its end for at most `deadline`, then kills it.
    pub fn wait_end(&mut self, deadline: Duration) -> ExitStatus {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            if Instant::now() >= end {
                let _ = self.child.kill();
                if let Ok(status) = self.child.wait() {
                    self.status = Some(status);
                    return status;
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// Lets it live on after this value is dropped.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.released && self.ended().is_none() {
            self.stop();
        }
    }
}

/// Repeats `attempt` until its inner result is `Ok`, it fails for good, or `deadline` passes.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if sys::interrupted() {
            return Err(Error::Interrupted);
        }
        match attempt()? {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= deadline => {
                let waited_ms = start.elapsed().as_millis() as u64;
                return Err(Error::Timeout { what: what.to_owned(), waited_ms, last });
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// When a process started, in clock ticks since boot (`/proc/pid/stat` field 22); with the pid it names
/// a process for good. `None` if there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name in field 2 may hold blanks; fields count on after its closing bracket.
    let rest = stat.rsplit_once(") ")?.1;
    rest.split(' ').nth(19)?.parse().ok()
}
