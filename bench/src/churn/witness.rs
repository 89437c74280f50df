//! A reader on a thread and core of its own that does what a worker does with the tables, and says when it saw a change.

use super::ChurnError;
use crate::pktgen::cores::cores;
use fairway_dataplane::worker::LOOK_US;
use fairway_tables::{Ip, NextHopKind, OpenError, Reader, ServiceKey, View};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What to wait for.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// The service has this backend, or has it no more.
    Backend(ServiceKey, Ip, bool),
    /// The service is there, or is not.
    Service(ServiceKey, bool),
    /// The address is routed into a complete tunnel, or not.
    Tunnel(Ip, bool),
}

impl Expect {
    /// Whether it is so.
    pub fn holds(&self, view: View<'_>) -> bool {
        match *self {
            Expect::Backend(key, ip, wanted) => {
                let has = view.service(&key).is_some_and(|service| service.backends().any(|b| b.ip == ip));
                has == wanted
            }
            Expect::Service(key, wanted) => view.service(&key).is_some() == wanted,
            Expect::Tunnel(ip, wanted) => {
                let hop = view.route(ip).filter(|hop| hop.kind() == Some(NextHopKind::Tunnel));
                let tunnel = hop.and_then(|hop| view.tunnel(hop.addr));
                let complete = tunnel.is_some_and(|t| view.neighbour(t.next_hop, t.port).is_some());
                complete == wanted
            }
        }
    }
}

/// The thread; it ends when this is dropped.
pub struct Witness {
    asks: Option<Sender<Expect>>,
    answers: Receiver<Option<Instant>>,
    thread: Option<JoinHandle<()>>,
}

/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

impl Witness {
    /// Starts a reader of the tables in `dir`.
    ///
    /// # Errors
    /// If the tables cannot be opened.
    pub fn start(dir: &Path) -> Result<Witness, OpenError> {
        let mut reader = Reader::open(dir, "witness")?;
        let (_, core) = cores();
        let (asks, questions) = channel::<Expect>();
        let (answer, answers) = channel();
        let thread = std::thread::spawn(move || {
            core.map(core_affinity::set_for_current);
            let mut looking = None;
            loop {
                reader.quiescent();
                match looking {
                    None => match questions.recv_timeout(Duration::from_millis(1)) {
                        Ok(expect) => {
                            looking = Some((expect, Instant::now()));
                            let _ = answer.send(None);
                        }
                        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                    },
                    Some((expect, since)) => {
                        // As a busy worker does.
                        let looked = Instant::now();
                        while looked.elapsed() < Duration::from_micros(LOOK_US) {
                            std::hint::spin_loop();
                        }
                        let seen = expect.holds(reader.view());
                        let now = Instant::now();
                        if seen || now - since > PATIENCE {
                            let _ = answer.send(seen.then_some(now));
                            looking = None;
                        }
                    }
                }
            }
        });
        Ok(Witness { asks: Some(asks), answers, thread: Some(thread) })
    }

    /// Runs `change` while the reader polls; how long from its beginning until the reader saw what is expected.
    ///
    /// # Errors
    /// [`ChurnError::Timeout`] if it was not seen.
    pub fn time(&self, expect: Expect, change: impl FnOnce()) -> Result<Duration, ChurnError> {
        let timeout = || ChurnError::Timeout { what: format!("{expect:?}"), waited_s: PATIENCE.as_secs() };
        self.asks.as_ref().and_then(|asks| asks.send(expect).ok()).ok_or_else(timeout)?;
        // The reader polls from here on.
        self.answers.recv().map_err(|_| timeout())?;
        let begin = Instant::now();
        change();
        let seen = self.answers.recv().ok().flatten().ok_or_else(timeout)?;
        Ok(seen.saturating_duration_since(begin))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
