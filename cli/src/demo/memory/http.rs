//! Just enough HTTP/1.1 (RFC 9112) for the simulated pods: one request per connection, which the client
//! closes. As in the demo with real pods, `/` answers with the pod's name and `/bytes/N` with N bytes of the
//! pattern; the `Server` field names the pod in both.

use super::stack::{Stack, tcp_socket};
use fairway_tests::pod::pattern::{self, Verifier};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

/// Connections that a server takes at a time; smoltcp has no queue of those that wait.
const SERVER_SOCKETS: usize = 8;
/// Largest head of a request or response.
const MAX_HEAD_BYTES: usize = 4096;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

enum Stage {
    /// Reading a request.
    Request(Vec<u8>),
    /// Sending a response: a head, then the pattern.
    Response { head: Vec<u8>, sent: u64, total: u64 },
}

struct Connection {
    handle: SocketHandle,
    stage: Stage,
}

/// A pod's server.
pub(super) struct Server {
    name: String,
    port: u16,
    connections: Vec<Connection>,
}

impl Server {
    /// A server that listens once it is polled.
    pub(super) fn new(name: &str, port: u16, sockets: &mut SocketSet<'static>) -> Server {
        let connection =
            |_| Connection { handle: sockets.add(tcp_socket()), stage: Stage::Request(Vec::new()) };
        Server { name: name.to_owned(), port, connections: (0..SERVER_SOCKETS).map(connection).collect() }
    }

    /// Serves every connection as far as it goes.
    pub(super) fn poll(&mut self, sockets: &mut SocketSet<'static>) {
        for connection in &mut self.connections {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            if !socket.is_open() {
                connection.stage = Stage::Request(Vec::new());
                // A closed socket listens on any port but zero.
                let _ = socket.listen(self.port);
            }
            connection.poll(socket, &self.name);
        }
    }
}

impl Connection {
    fn poll(&mut self, socket: &mut tcp::Socket<'_>, name: &str) {
        if let Stage::Request(request) = &mut self.stage {
            while socket.can_recv() && request.len() < MAX_HEAD_BYTES {
                let read = socket.recv(|bytes| {
                    request.extend_from_slice(bytes);
                    (bytes.len(), ())
                });
                if read.is_err() {
                    break;
                }
            }
            if request.len() >= MAX_HEAD_BYTES {
                return socket.abort();
            }
            if let Some((head, body)) = answer(request, name) {
                let total = head.len() as u64 + body;
                self.stage = Stage::Response { head, sent: 0, total };
            }
        }
        if let Stage::Response { head, sent, total } = &mut self.stage {
            while socket.can_send() && sent < total {
                let piece = socket.send(|buffer| {
                    let n = piece(head, *sent, *total, buffer);
                    (n, n)
                });
                match piece {
                    Ok(n) if n > 0 => *sent += n as u64,
                    _ => break,
                }
            }
        }
        // The client closes when it has all it wants; what waits unsent leaves before the FIN.
        if socket.state() == tcp::State::CloseWait {
            socket.close();
        }
    }
}

/// Writes a response's bytes from `sent` on, and returns how many.
fn piece(head: &[u8], sent: u64, total: u64, buffer: &mut [u8]) -> usize {
    let head_len = head.len() as u64;
    if sent < head_len {
        let rest = &head[sent as usize..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        return n;
    }
    let n = buffer.len().min((total - sent) as usize);
    pattern::fill(sent - head_len, &mut buffer[..n]);
    n
}

/// The response to a request, once that is whole: its head, with a short body, and how many bytes of the
/// pattern follow.
fn answer(request: &[u8], name: &str) -> Option<(Vec<u8>, u64)> {
    request.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD)?;
    let text = String::from_utf8_lossy(request);
    let path = text.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let bytes = path.strip_prefix("/bytes/").and_then(|n| n.parse::<u64>().ok());
    let (status, text, pattern) = match (path, bytes) {
        ("/", _) => ("200 OK", name, 0),
        (_, Some(bytes)) => ("200 OK", "", bytes),
        _ => ("404 Not Found", "there is / and /bytes/N\n", 0),
    };
    let length = text.len() as u64 + pattern;
    let head = format!("HTTP/1.1 {status}\r\nServer: {name}\r\nContent-Length: {length}\r\n\r\n{text}");
    Some((head.into_bytes(), pattern))
}

/// A response in full.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    /// The pod that answered.
    pub(super) backend: String,
    /// Bytes of the body.
    pub(super) bytes: u64,
    /// From the first SYN to the end of the connection.
    pub(super) took: Duration,
}

struct Head {
    backend: String,
    length: u64,
}

/// A request under way.
pub(super) struct Exchange {
    handle: SocketHandle,
    path: String,
    host: SocketAddrV4,
    begun: Instant,
    sent: bool,
    received: Vec<u8>,
    head: Option<Head>,
    verifier: Verifier,
}

impl Exchange {
    /// Opens the connection.
    pub(super) fn begin(stack: &mut Stack, host: SocketAddrV4, path: &str) -> Option<Exchange> {
        Some(Exchange {
            handle: stack.connect(host)?,
            path: path.to_owned(),
            host,
            begun: Instant::now(),
            sent: false,
            received: Vec::new(),
            head: None,
            verifier: Verifier::default(),
        })
    }

    /// The connection, to be forgotten when the exchange is over.
    pub(super) fn handle(&self) -> SocketHandle {
        self.handle
    }

    /// Goes on; the reply when the connection has ended on both sides, or in words why there is none.
    pub(super) fn poll(&mut self, stack: &mut Stack) -> Result<Option<Reply>, String> {
        let socket = stack.tcp(self.handle);
        if !self.sent && socket.may_send() {
            let (path, host) = (&self.path, self.host);
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: fairway-demo\r\n\r\n");
            self.sent = socket.send_slice(request.as_bytes()) == Ok(request.len());
        }
        while socket.can_recv() {
            let taken = socket.recv(|bytes| (bytes.len(), self.take(bytes)));
            taken.map_err(|error| error.to_string())??;
        }
        let got = self.body_len();
        let ended = matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed);
        match &self.head {
            Some(head) if got == head.length => {
                if socket.may_send() {
                    socket.close();
                }
                let backend = head.backend.clone();
                Ok(ended.then(|| Reply { backend, bytes: got, took: self.begun.elapsed() }))
            }
            _ if ended && !self.sent => Err("the connection was refused".to_owned()),
            _ if ended || (self.sent && !socket.may_recv()) => {
                Err(format!("the connection ended after {got} bytes of the body"))
            }
            _ => Ok(None),
        }
    }

    fn body_len(&self) -> u64 {
        if self.head.is_none() { 0 } else { self.received.len() as u64 + self.verifier.len() }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        if self.head.is_none() {
            self.received.extend_from_slice(bytes);
            let end = self.received.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD);
            let Some(end) = end else {
                let fits = self.received.len() < MAX_HEAD_BYTES;
                return if fits { Ok(()) } else { Err("the response's head does not end".to_owned()) };
            };
            self.head = Some(parse_head(&self.received[..end])?);
            // The body's beginning is at the end of what came.
            let body = self.received.len() - end - END_OF_HEAD.len();
            rest = &bytes[bytes.len() - body..];
            self.received.clear();
        }
        if self.path == "/" {
            self.received.extend_from_slice(rest);
            return Ok(());
        }
        self.verifier.push(rest);
        match self.verifier.first_wrong() {
            None => Ok(()),
            Some(at) => Err(format!("byte {at} of the body is not the one that was sent")),
        }
    }
}

fn parse_head(head: &[u8]) -> Result<Head, String> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the answer is {status:?}"));
    }
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    let field = |name: &str| fields.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    match (field("Server"), field("Content-Length").and_then(|n| n.parse().ok())) {
        (Some(backend), Some(length)) => Ok(Head { backend: backend.to_owned(), length }),
        _ => Err(format!("the answer lacks Server or Content-Length: {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::time::Instant as StackTime;
    use std::net::Ipv4Addr;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    /// Two stacks joined by a cable that `damage` may change frames on; the outcome after at most 20 s of theirs.
    fn get(path: &str, mut damage: impl FnMut(&mut Vec<u8>)) -> Result<Option<Reply>, String> {
        let mut client = Stack::new("client", CLIENT, 1450, StackTime::ZERO);
        let mut server = Stack::new("web", SERVER, 1450, StackTime::ZERO);
        server.serve(8080);
        let mut exchange =
            Exchange::begin(&mut client, SocketAddrV4::new(SERVER, 8080), path).expect("an address");
        for time_ms in 0..20_000 {
            client.poll(StackTime::from_millis(time_ms));
            server.poll(StackTime::from_millis(time_ms));
            server.cable.inbox.append(&mut client.cable.outbox);
            server.cable.outbox.iter_mut().for_each(&mut damage);
            client.cable.inbox.append(&mut server.cable.outbox);
            if let Some(reply) = exchange.poll(&mut client)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_request_gets_the_name_of_the_pod_and_as_many_bytes_as_asked_for() {
        let reply = get("/", |_| ()).unwrap().unwrap();
        assert_eq!((reply.backend.as_str(), reply.bytes), ("web", 3));
        let reply = get("/bytes/300000", |_| ()).unwrap().unwrap();
        assert_eq!((reply.backend.as_str(), reply.bytes), ("web", 300_000));
        assert!(get("/nothing", |_| ()).unwrap_err().contains("404"));
    }

    #[test]
    fn a_stack_takes_no_packet_whose_checksum_is_wrong() {
        // The last byte of every packet with data, and no checksum.
        let damage = |frame: &mut Vec<u8>| {
            if frame.len() > 100 {
                *frame.last_mut().unwrap() ^= 1;
            }
        };
        assert!(get("/bytes/3000", damage).unwrap().is_none());
    }
}
