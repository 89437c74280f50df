//! Requests to the running engine: `<run-dir>/dataplane.sock`, one JSON object per line, one line of answer to
//! each, in order. The main thread serves them between its looks at the ports; no worker is involved but where
//! an answer needs one. Room for further kinds: a new variant of [`Request`], obeyed in one place.

use crate::conntrack::ConnRef;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the socket in the run folder.
pub const SOCKET: &str = "dataplane.sock";
/// Connections in one request, at most.
pub const BATCH: usize = 4096;
/// Bytes of one request, at most: more than [`BATCH`] connections take.
const LINE_MAX: usize = 256 * 1024;
/// Clients served at once; a further one waits in the kernel.
const CLIENTS: usize = 8;
/// How long a client waits for an answer. The engine answers within one look at its ports.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What may be asked of the engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Forget these connections, each named by its place and generation; those that are no more count as none.
    DeleteConnections(Vec<(u32, u32)>),
}

/// What it answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// So many connections were forgotten, and no worker uses them any more.
    Deleted(usize),
    /// The request was not understood.
    Refused(String),
}

impl Request {
    /// To forget these connections.
    pub fn delete(connections: impl IntoIterator<Item = ConnRef>) -> Request {
        Request::DeleteConnections(connections.into_iter().map(|c| (c.index, c.generation)).collect())
    }
}

/// Why the engine was not asked, or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens.
    #[error("fairway-dataplane is not running here: {}: {source}; start it, or set --run-dir", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// The connection broke, or no answer came in time.
    #[error("fairway-dataplane did not answer: {0}; look at its log")]
    Io(#[from] io::Error),
    /// An answer of another shape, or a request that the engine does not know.
    #[error("{0}; use the same version of fairway and fairway-dataplane")]
    Misunderstood(String),
}

/// Asks the engine of a run folder, and waits for its answer.
///
/// # Errors
/// See [`RequestError`].
pub fn ask(run_dir: &Path, request: &Request) -> Result<Answer, RequestError> {
    let path = run_dir.join(SOCKET);
    let mut stream =
        UnixStream::connect(&path).map_err(|source| RequestError::NotRunning { path, source })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&line(request))?;
    let mut answer = String::new();
    BufReader::new(stream).take(LINE_MAX as u64).read_line(&mut answer)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Refused(why)) => Err(RequestError::Misunderstood(why)),
        Ok(answer) => Ok(answer),
        Err(error) => Err(RequestError::Misunderstood(format!("the answer was not understood: {error}"))),
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Numbers and strings under fixed names: there is nothing in it that cannot be written.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

/// The engine's side.
pub struct Requests {
    path: PathBuf,
    listener: UnixListener,
    clients: Vec<Client>,
}

impl Requests {
    /// Listens in a run folder. Only one engine at a time does: it holds the connection table's lock.
    ///
    /// # Errors
    /// The kernel's, if the socket cannot be made.
    pub fn listen(run_dir: &Path) -> io::Result<Requests> {
        let path = run_dir.join(SOCKET);
        // A socket that a killed engine has left behind.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Requests { path, listener, clients: Vec::new() })
    }

    /// Answers what has come in so far. Never waits.
    pub fn serve(&mut self, mut obey: impl FnMut(Request) -> Answer) {
        while self.clients.len() < CLIENTS {
            let Ok((stream, _)) = self.listener.accept() else { break };
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, received: Vec::new() });
            }
        }
        self.clients.retain_mut(|client| client.serve(&mut obey).is_ok());
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // So that who asks next hears that nobody is there.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// An error ends the client: it has gone, or sends what is no request.
    fn serve(&mut self, obey: &mut impl FnMut(Request) -> Answer) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        // What one client sends in one go is bounded, so that others and the ports have their turn.
        for _ in 0..LINE_MAX / buffer.len() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.answer_lines(obey)?;
        }
        Ok(())
    }

    fn answer_lines(&mut self, obey: &mut impl FnMut(Request) -> Answer) -> io::Result<()> {
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let answer = match serde_json::from_slice(&self.received[..end]) {
                Ok(Request::DeleteConnections(connections)) if connections.len() > BATCH => Answer::Refused(
                    format!("{} connections in one request, more than {BATCH}", connections.len()),
                ),
                Ok(request) => obey(request),
                Err(error) => Answer::Refused(format!("the request was not understood: {error}")),
            };
            self.received.drain(..=end);
            // Answers are short: a client whose socket is full of them does not read, and is given up.
            self.stream.write_all(&line(&answer))?;
        }
        if self.received.len() > LINE_MAX { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Serves as the engine's main thread does, while `client` asks.
    fn with_engine<T>(client: impl FnOnce(&Path) -> T) -> T {
        let dir = tempfile::tempdir().unwrap();
        let mut requests = Requests::listen(dir.path()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let engine = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    requests.serve(|Request::DeleteConnections(all)| Answer::Deleted(all.len()));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let result = client(dir.path());
            stop.store(true, Ordering::Relaxed);
            engine.join().unwrap();
            result
        })
    }

    #[test]
    fn the_largest_request_is_answered() {
        let conn = ConnRef { index: u32::MAX, generation: u32::MAX };
        let request = Request::delete(std::iter::repeat_n(conn, BATCH));
        let answer = with_engine(|dir| ask(dir, &request));
        assert_eq!(answer.unwrap(), Answer::Deleted(BATCH));
        let request = Request::delete(std::iter::repeat_n(conn, BATCH + 1));
        let error = with_engine(|dir| ask(dir, &request)).unwrap_err();
        assert!(matches!(error, RequestError::Misunderstood(_)), "{error}");
    }

    #[test]
    fn a_client_that_talks_nonsense_disturbs_no_other() {
        with_engine(|dir| {
            let mut idle: Vec<UnixStream> =
                (0..CLIENTS - 2).map(|_| UnixStream::connect(dir.join(SOCKET)).unwrap()).collect();
            idle[0].write_all(b"{\"delete-connections\":[[1").unwrap();
            let mut nonsense = UnixStream::connect(dir.join(SOCKET)).unwrap();
            nonsense.write_all(b"what?\n").unwrap();
            let mut answer = String::new();
            BufReader::new(&nonsense).read_line(&mut answer).unwrap();
            assert!(answer.contains("refused"), "{answer}");
            // One that never ends its line is given up.
            let mut endless = nonsense;
            let sent = (0..64).try_for_each(|_| endless.write_all(&[b'x'; 64 * 1024]));
            assert!(sent.is_err(), "the engine hangs up");
            let conn = ConnRef { index: 1, generation: 2 };
            assert_eq!(ask(dir, &Request::delete([conn])).unwrap(), Answer::Deleted(1));
        });
    }

    #[test]
    fn who_asks_where_nobody_listens_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        drop(Requests::listen(dir.path()).unwrap());
        let error = ask(dir.path(), &Request::delete([])).unwrap_err();
        assert!(error.to_string().contains("not running"), "{error}");
        // A socket that a killed engine left is taken over.
        drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        Requests::listen(dir.path()).unwrap();
    }
}
