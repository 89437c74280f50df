//! The witness and who asks it: a server that tells what it sees of each connection, and a client that finds
//! out, by many short connections to one address, who may answer there and what becomes of the source.

use super::association::{self, Packet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What is sent to a witness over UDP; over TCP it speaks first.
const QUESTION: &[u8] = b"who answers?";
/// Datagrams sent before an address counts as silent.
const DATAGRAMS: u32 = 4;
const DATAGRAM_TIMEOUT: Duration = Duration::from_millis(350);
/// Room for a SYN, two that follow a second apart, and the answer. What the kernel's own rules refuse on a SYN's way out comes
/// back while `connect` still holds the socket, and is lost (`LockDroppedIcmps`); only what repeats the SYN later can be refused.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(2500);
/// Attempts per backend that could be there, see [`enough`].
const ATTEMPTS_PER_BACKEND: u32 = 16;
/// Attempts at an address that refuses.
const REFUSED_ATTEMPTS: u32 = 2;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: an INIT and its answer.
    Sctp,
}

/// What a witness says of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Its own address and port.
    pub local: SocketAddr,
    /// The client's, as it sees them.
    pub peer: SocketAddr,
}

/// Tells every client on these addresses, over TCP, UDP and SCTP, what is seen of it, for as long as the process lives.
/// Prints `listening on …` once all sockets are open.
pub async fn serve(listen: &[SocketAddr]) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    for local in listen {
        let tcp = TcpListener::bind(*local).await?;
        let udp = UdpSocket::bind(*local).await?;
        tasks.spawn(tell_tcp(tcp, *local));
        tasks.spawn(tell_udp(udp, *local));
    }
    let mut ports: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
    listen.iter().for_each(|local| ports.entry(local.ip()).or_default().push(local.port()));
    for (ip, ports) in ports {
        tasks.spawn(tell_sctp(association::open(ip)?, ip, ports));
    }
    println!("listening on {listen:?}");
    tasks.join_all().await;
    Ok(())
}

fn sight(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    serde_json::to_vec(&Sight { local, peer }).unwrap_or_default()
}

async fn tell_tcp(listener: TcpListener, local: SocketAddr) {
    loop {
        // A client that has gone before its answer is no reason to stop.
        if let Ok((mut stream, peer)) = listener.accept().await {
            let _ = stream.write_all(&sight(local, peer)).await;
        }
    }
}

async fn tell_udp(socket: UdpSocket, local: SocketAddr) {
    let mut buffer = [0; 64];
    loop {
        // Errors here are ICMP errors about earlier answers.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&sight(local, peer), peer).await;
        }
    }
}

async fn tell_sctp(socket: UdpSocket, ip: IpAddr, ports: Vec<u16>) {
    let mut buffer = [0; association::PACKET_LEN];
    loop {
        let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(packet) = Packet::received(ip.is_ipv4(), &buffer[..len]) else { continue };
        if packet.is_init() && ports.contains(&packet.dport) {
            let peer = SocketAddr::new(peer.ip(), packet.sport);
            let said = sight(SocketAddr::new(ip, packet.dport), peer);
            let _ = socket.send_to(&packet.answer(said).bytes(), association::address(peer.ip())).await;
        }
    }
}

/// An address to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Question {
    /// Over what.
    pub transport: Transport,
    /// Whom.
    pub target: SocketAddr,
}

/// What came of all attempts at one address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Connections made, answered or not.
    pub attempts: u32,
    /// Who answered, and the sources that they saw.
    pub backends: BTreeMap<SocketAddr, BTreeSet<IpAddr>>,
    /// Attempts that were refused: by RST, or ICMP port unreachable.
    pub refused: u32,
    /// Attempts without any answer.
    pub silent: u32,
    /// Other ends of attempts.
    pub errors: BTreeMap<String, u32>,
    /// The source port of the last attempt that was refused, silent, or ended so otherwise.
    pub ports: BTreeMap<String, u16>,
    /// The source port of the last attempt.
    pub last_port: u16,
}

/// Whether so many attempts that met so many backends leave no other one unseen: had a backend with a fair share been
/// left out, it would have been so by a chance of e⁻¹⁶.
fn enough(attempts: u32, backends: usize) -> bool {
    attempts >= ATTEMPTS_PER_BACKEND * (backends as u32 + 1)
}

impl Answer {
    fn is_complete(&self) -> bool {
        match self.backends.len() {
            // Silence has been tried several times by then.
            0 => self.silent > 0 || self.attempts >= REFUSED_ATTEMPTS,
            met => enough(self.attempts, met),
        }
    }

    fn add(&mut self, outcome: io::Result<Sight>, port: u16) {
        self.attempts += 1;
        self.last_port = port;
        let end = match outcome {
            Ok(sight) => {
                self.backends.entry(sight.local).or_default().insert(sight.peer.ip());
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.refused += 1;
                "refused".to_owned()
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.silent += 1;
                "silent".to_owned()
            }
            Err(error) => {
                *self.errors.entry(error.to_string()).or_default() += 1;
                error.to_string()
            }
        };
        self.ports.insert(end, port);
    }
}

/// Asks all questions at once, one attempt after the other at each, until everyone who may answer has been met. Source
/// ports are counted up from `first_port`, so that no attempt meets what is remembered of an earlier one; ports that others have
/// are passed over. Attempts come from the address of the target's family that is given, else from that which the kernel chooses.
pub async fn ask(questions: &[Question], first_port: u16, from: &[IpAddr]) -> Vec<Answer> {
    let ports = Arc::new(AtomicU16::new(first_port));
    let mut tasks = JoinSet::new();
    for (place, question) in questions.iter().copied().enumerate() {
        let ports = ports.clone();
        let local = from.iter().copied().find(|ip| ip.is_ipv4() == question.target.is_ipv4());
        let local = local.unwrap_or_else(|| unspecified(question.target));
        tasks.spawn(async move {
            let mut answer = Answer::default();
            while !answer.is_complete() {
                let port = ports.fetch_add(1, Ordering::Relaxed);
                match attempt(question, SocketAddr::new(local, port)).await {
                    // Somebody else here has this port. Nothing was sent.
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && port < u16::MAX => {}
                    outcome => answer.add(outcome, port),
                }
            }
            (place, answer)
        });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn unspecified(target: SocketAddr) -> IpAddr {
    if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

async fn attempt(question: Question, local: SocketAddr) -> io::Result<Sight> {
    let said = match question.transport {
        Transport::Tcp => timeout(CONNECT_TIMEOUT, over_tcp(local, question.target)).await??,
        Transport::Udp => over_udp(local, question.target).await?,
        Transport::Sctp => over_sctp(local, question.target).await?,
    };
    serde_json::from_slice(&said).map_err(io::Error::other)
}

async fn over_tcp(local: SocketAddr, target: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = if local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(local)?;
    let mut said = Vec::new();
    socket.connect(target).await?.read_to_end(&mut said).await?;
    Ok(said)
}

/// A connected socket takes no answer from another address than the one that it asked.
async fn over_udp(local: SocketAddr, target: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(local).await?;
    socket.connect(target).await?;
    let mut buffer = vec![0; 512];
    for _ in 0..DATAGRAMS {
        match socket.send(QUESTION).await {
            // The kernel's own rules drop it on its way out. If they refuse it, that is told like any other refusal.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            sent => drop(sent?),
        }
        if let Ok(received) = timeout(DATAGRAM_TIMEOUT, socket.recv(&mut buffer)).await {
            buffer.truncate(received?);
            return Ok(buffer);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// All sockets that are connected to one address get its errors: refusals tell nothing of single ports.
async fn over_sctp(local: SocketAddr, target: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = association::open(local.ip())?;
    socket.connect(association::address(target.ip())).await?;
    let init = Packet::init(local.port(), target.port(), QUESTION).bytes();
    for _ in 0..DATAGRAMS {
        socket.send(&init).await?;
        if let Ok(answer) = timeout(DATAGRAM_TIMEOUT, answer_of(&socket, local, target)).await {
            return answer;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// The answer to an association; the socket receives those of others with the same peer, too.
async fn answer_of(socket: &UdpSocket, local: SocketAddr, target: SocketAddr) -> io::Result<Vec<u8>> {
    let mut buffer = [0; association::PACKET_LEN];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let packet = Packet::received(target.is_ipv4(), &buffer[..len]);
        let is_ours = |p: &Packet| !p.is_init() && (p.sport, p.dport) == (target.port(), local.port());
        if let Some(packet) = packet.filter(is_ours) {
            return Ok(packet.data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(backend: u8) -> io::Result<Sight> {
        let at = |last: u8, port: u16| SocketAddr::from(([10, 244, 1, last], port));
        Ok(Sight { local: at(backend, 8080), peer: at(200, 4000) })
    }

    #[test]
    fn every_backend_met_asks_for_more_attempts() {
        let mut answer = Answer::default();
        for attempt in 0..48 {
            assert!(!answer.is_complete(), "after {attempt} attempts at two backends");
            answer.add(sight((attempt % 2) as u8), attempt);
        }
        assert!(answer.is_complete());
        answer.add(sight(2), 48);
        assert!(!answer.is_complete(), "a third backend has shown");
        assert_eq!((answer.backends.len(), answer.refused, answer.silent), (3, 0, 0));
    }

    #[tokio::test]
    async fn no_attempt_is_made_from_a_port_that_somebody_has() {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let witness = TcpListener::bind(local).await.expect("bind");
        let target = witness.local_addr().expect("address");
        tokio::spawn(tell_tcp(witness, target));
        let taken = TcpListener::bind(local).await.expect("bind");
        let first_port = taken.local_addr().expect("address").port();
        let questions = [Question { transport: Transport::Tcp, target }];
        let answers = ask(&questions, first_port, &[target.ip()]).await;
        let answer = &answers[0];
        assert_eq!((answer.backends.len(), answer.errors.len()), (1, 0), "{answer:?}");
        assert_eq!(answer.backends[&target], BTreeSet::from([target.ip()]));
    }

    #[test]
    fn refusal_silence_and_other_errors_are_told_apart() {
        let end = |kind: io::ErrorKind| Err(kind.into());
        let mut answer = Answer::default();
        answer.add(end(io::ErrorKind::ConnectionRefused), 7);
        assert!(!answer.is_complete(), "one refusal may be of one backend");
        answer.add(end(io::ErrorKind::HostUnreachable), 8);
        assert!(answer.is_complete());
        answer.add(end(io::ErrorKind::TimedOut), 9);
        assert_eq!((answer.refused, answer.silent, answer.errors.len()), (1, 1, 1));
        assert_eq!((answer.ports["refused"], answer.ports["silent"]), (7, 9));
        let mut silent = Answer::default();
        silent.add(end(io::ErrorKind::TimedOut), 10);
        assert!(silent.is_complete());
    }
}
