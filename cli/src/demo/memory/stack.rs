//! A simulated pod, or a node's own network: a smoltcp TCP/IP stack at the far end of a port. It computes
//! and verifies every checksum, so that a wrong one from the engine breaks the demo.

use super::http::Server;
use fairway_control::names;
use fairway_tables::Ip;
use fairway_tests::pod::pattern;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{icmp, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, Ipv4Cidr,
};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Ethernet, IPv4 and ICMP headers.
const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const ECHO_BYTES: usize = 8;
/// Buffer of a TCP socket, each way: the largest window without scaling.
const TCP_BUFFER_BYTES: usize = 65_535;
/// Ports from which a stack opens connections.
const FIRST_CLIENT_PORT: u16 = 40_000;

/// Frames on their way between a stack and its port.
pub(super) struct Cable {
    /// To the stack.
    pub(super) inbox: VecDeque<Vec<u8>>,
    /// To the engine.
    pub(super) outbox: VecDeque<Vec<u8>>,
    ip_mtu: usize,
}

/// A frame received.
pub(super) struct Received(Vec<u8>);

/// Room for a frame to be sent.
pub(super) struct ToSend<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend<'_>)> {
        Some((Received(self.inbox.pop_front()?), ToSend(&mut self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        Some(ToSend(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.ip_mtu + ETHERNET_BYTES;
        // Software computes and verifies all of them; nothing is left to a device.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

/// See the module's head.
pub(super) struct Stack {
    name: String,
    pub(super) cable: Cable,
    iface: Interface,
    sockets: SocketSet<'static>,
    echo: SocketHandle,
    server: Option<Server>,
    next_port: u16,
}

impl Stack {
    /// A stack with one address, whose Ethernet address follows from it as a pod's does.
    pub(super) fn new(name: &str, ip: Ipv4Addr, ip_mtu: usize, now: Instant) -> Stack {
        let mac = EthernetAddress(names::pod_mac(Ip::v4(ip.octets())).0);
        let mut cable = Cable { inbox: VecDeque::new(), outbox: VecDeque::new(), ip_mtu };
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = fairway_dataplane::random_seed();
        let mut iface = Interface::new(config, &mut cable, now);
        // A pod has a /32 and a route to the gateway 169.254.1.1, but smoltcp takes no ARP reply from outside
        // its own network. With a /0 every address is on the link; the engine answers ARP for all of them.
        iface.update_ip_addrs(|addrs| {
            // A fresh list has room for one.
            let _ = addrs.push(IpCidr::Ipv4(Ipv4Cidr::new(ip, 0)));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 16_384]);
        let mut echo = icmp::Socket::new(buffer(), buffer());
        // A fresh socket takes any identifier but zero.
        let _ = echo.bind(icmp::Endpoint::Ident(ECHO_IDENT));
        let echo = sockets.add(echo);
        Stack {
            name: name.to_owned(),
            cable,
            iface,
            sockets,
            echo,
            server: None,
            next_port: FIRST_CLIENT_PORT,
        }
    }

    /// The pod's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Starts an HTTP server.
    pub(super) fn serve(&mut self, port: u16) {
        self.server = Some(Server::new(&self.name, port, &mut self.sockets));
    }

    /// Takes in what came, lets the server work, and puts what is due into the outbox.
    pub(super) fn poll(&mut self, now: Instant) {
        self.iface.poll(now, &mut self.cable, &mut self.sockets);
        if let Some(server) = &mut self.server {
            server.poll(&mut self.sockets);
            self.iface.poll_egress(now, &mut self.cable, &mut self.sockets);
        }
    }

    /// Sends an echo request in an IP packet of so many bytes; false if there is no room for it.
    pub(super) fn send_echo(&mut self, target: Ipv4Addr, seq_no: u16, packet_bytes: usize) -> bool {
        let mut data = vec![0; packet_bytes - IPV4_BYTES - ECHO_BYTES];
        pattern::fill(u64::from(seq_no), &mut data);
        let request = Icmpv4Repr::EchoRequest { ident: ECHO_IDENT, seq_no, data: &data };
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.echo);
        let Ok(buffer) = socket.send(request.buffer_len(), IpAddress::Ipv4(target)) else { return false };
        request.emit(&mut Icmpv4Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
        true
    }

    /// The next echo reply that carries back what was sent: from whom, and its sequence number.
    pub(super) fn receive_echo(&mut self) -> Option<(Ipv4Addr, u16)> {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.echo);
        while let Ok((bytes, IpAddress::Ipv4(from))) = socket.recv() {
            let packet = Icmpv4Packet::new_checked(bytes).ok();
            let repr = packet.and_then(|p| Icmpv4Repr::parse(&p, &ChecksumCapabilities::default()).ok());
            if let Some(Icmpv4Repr::EchoReply { seq_no, data, .. }) = repr {
                let mut expected = vec![0; data.len()];
                pattern::fill(u64::from(seq_no), &mut expected);
                if data == expected {
                    return Some((from, seq_no));
                }
            }
        }
        None
    }

    /// Opens a TCP connection; `None` if the address is none to connect to.
    pub(super) fn connect(&mut self, target: SocketAddrV4) -> Option<SocketHandle> {
        let local = self.next_port;
        self.next_port = local.checked_add(1).unwrap_or(FIRST_CLIENT_PORT);
        let mut socket = tcp_socket();
        socket.connect(self.iface.context(), (*target.ip(), target.port()), local).ok()?;
        Some(self.sockets.add(socket))
    }

    /// A connection of this stack.
    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Forgets a connection.
    pub(super) fn forget(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }
}

/// Identifier of all echo requests.
const ECHO_IDENT: u16 = 0x4657;

/// A TCP socket that acknowledges at once.
pub(super) fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_ack_delay(None);
    socket
}
