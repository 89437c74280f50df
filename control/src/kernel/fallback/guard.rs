//! Keeps the node's own stack from ending connections that only the engine knows. A segment of a connection that a stack does not
//! know is answered with a reset, and its sender gives up. Classic BPF programs at tc's ingress prevent that (tc-bpf(8), direct
//! action), where no packet comes while the engine runs: that needs no program beside this process, and no more of the kernel
//! than rtnetlink, `sch_ingress` and `cls_bpf`.
//!
//! - On the engine's end of the host pair, resets are dropped. Replies to services' clients come from the backend's own address,
//!   and only the engine knows which service that was; the client answers them with a reset. It has no ACK (RFC 9293 section
//!   3.10.7.1), while those of aborted and refused connections have one.
//! - On uplinks, segments and datagrams to the node's own addresses are dropped before the stack sees them: answers to pods whose
//!   source is translated, and what belongs to a node port. A SYN passes, so that new connections are refused at once, and
//!   so does a reset. `answers.rs` writes that program.

use super::answers;
use crate::index::Guarded;
use crate::kernel::netlink::{Netlink, NetlinkError};
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

/// The filter's place among others on the device, should there be any.
const PRIORITY: u32 = 70;
/// Frames of every protocol (`ETH_P_ALL` of linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 3;
/// `TCA_BPF_OPS_LEN` and `TCA_BPF_OPS` of linux/pkt_cls.h: classic BPF, as a count and that many instructions.
const OPS_LEN: u16 = 4;
const OPS: u16 = 5;

/// `struct sock_filter` of linux/filter.h: operation, how many instructions to skip if true and if false, operand.
pub(super) type Instruction = (u16, u8, u8, u32);

pub(super) const LOAD_BYTE: u16 = 0x30;
pub(super) const LOAD_HALF: u16 = 0x28;
pub(super) const LOAD_BYTE_AT_X: u16 = 0x50;
pub(super) const X_IPV4_HEADER_LEN: u16 = 0xb1;
pub(super) const AND: u16 = 0x54;
pub(super) const SKIP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;

pub(super) const ETHERNET: u32 = 14;
pub(super) const TCP: u32 = 6;
pub(super) const TCP_FLAGS: u32 = 13;
pub(super) const RST: u32 = 0x04;
pub(super) const ACK: u32 = 0x10;
/// `TC_ACT_SHOT` and `TC_ACT_UNSPEC` of linux/pkt_cls.h: drop it; let other filters say.
pub(super) const DROP: u32 = 2;
pub(super) const PASS: u32 = u32::MAX;

/// Drops TCP resets without ACK. A packet that ends too early for a load passes.
const RESETS: [Instruction; 17] = [
    (LOAD_HALF, 0, 0, 12),
    (IF_EQUAL, 5, 0, 0x0800),
    (IF_EQUAL, 0, 12, 0x86dd),
    // IPv6, without extension headers.
    (LOAD_BYTE, 0, 0, ETHERNET + 6),
    (IF_EQUAL, 0, 10, TCP),
    (LOAD_BYTE, 0, 0, ETHERNET + 40 + TCP_FLAGS),
    (SKIP, 0, 0, 6),
    // IPv4, but for all fragments after the first.
    (LOAD_BYTE, 0, 0, ETHERNET + 9),
    (IF_EQUAL, 0, 6, TCP),
    (LOAD_HALF, 0, 0, ETHERNET + 6),
    (IF_ANY_BIT, 4, 0, 0x1fff),
    (X_IPV4_HEADER_LEN, 0, 0, ETHERNET),
    (LOAD_BYTE_AT_X, 0, 0, ETHERNET + TCP_FLAGS),
    // Either.
    (AND, 0, 0, RST | ACK),
    (IF_EQUAL, 1, 0, RST),
    (RETURN, 0, 0, PASS),
    (RETURN, 0, 0, DROP),
];

impl Netlink {
    /// Has the kernel drop resets without ACK that come in from this link; replaces the filter that is there.
    pub(super) fn drop_resets(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        self.set_guard(ifindex, &RESETS)
    }

    /// Has the kernel drop what comes in from this uplink and is the engine's alone; replaces the filter that is there.
    pub(super) fn drop_answers(&mut self, ifindex: u32, guarded: &Guarded) -> Result<(), NetlinkError> {
        self.set_guard(ifindex, &answers::program(guarded))
    }

    fn set_guard(&mut self, ifindex: u32, program: &[Instruction]) -> Result<(), NetlinkError> {
        let mut qdisc = TcMessage::with_index(ifindex.cast_signed());
        qdisc.header.parent = TcHandle::CLSACT;
        qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
        qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let what = || format!("filter on link {ifindex} (qdisc clsact)");
        let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
        self.request(what, message, NLM_F_ACK | NLM_F_CREATE)?;
        let mut filter = guard(ifindex);
        let length = u16::try_from(program.len()).unwrap_or_default().to_ne_bytes();
        let program: Vec<u8> = program.iter().copied().flat_map(bytes_of).collect();
        filter.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(OPS_LEN, length.to_vec()))),
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(OPS, program))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let what = || format!("filter on link {ifindex} (classifier bpf)");
        let message = RouteNetlinkMessage::NewTrafficFilter(filter);
        self.request(what, message, NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Removes the filter, if there is one.
    pub(super) fn remove_guard(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let what = || format!("remove the filter on link {ifindex}");
        let message = RouteNetlinkMessage::DelTrafficFilter(guard(ifindex));
        match self.request(what, message, NLM_F_ACK) {
            // No such filter; no qdisc that could have one; no such device any more.
            Err(e) if matches!(e.error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
                Ok(())
            }
            result => result.map(drop),
        }
    }
}

/// The filter's name for the kernel: device, hook, number, priority and protocol.
fn guard(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
    message.header.handle = TcHandle { major: 0, minor: 1 };
    message.header.info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message
}

fn bytes_of((operation, if_true, if_false, operand): Instruction) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (operation.to_ne_bytes(), operand.to_ne_bytes());
    [a, b, if_true, if_false, c, d, e, f]
}
