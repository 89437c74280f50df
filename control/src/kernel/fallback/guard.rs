//! Keeps the fallback from ending connections through services. Their replies come from the backend's own address, and only
//! the engine knows which service that was: a client that gets them as they are answers with a reset, and the
//! backend gives up. Such a reset, of a connection that the sender does not know, has no ACK (RFC 9293 section 3.10.7.1),
//! while those of aborted and refused connections have one. It is dropped where the fallback begins: no packet comes
//! there while the engine runs.
//!
//! A classic BPF program on the ingress of the engine's end of the host pair does it (tc-bpf(8), direct action): that needs
//! no program beside this process, and no more of the kernel than rtnetlink, `sch_ingress` and `cls_bpf`.

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
type Instruction = (u16, u8, u8, u32);

const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_AT_X: u16 = 0x50;
const X_IPV4_HEADER_LEN: u16 = 0xb1;
const AND: u16 = 0x54;
const SKIP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ETHERNET: u32 = 14;
const TCP: u32 = 6;
const TCP_FLAGS: u32 = 13;
const RST: u32 = 0x04;
const ACK: u32 = 0x10;
/// `TC_ACT_SHOT` and `TC_ACT_UNSPEC` of linux/pkt_cls.h: drop it; let other filters say.
const DROP: u32 = 2;
const PASS: u32 = u32::MAX;

/// Drops TCP resets without ACK. A packet that ends too early for a load passes.
const PROGRAM: [Instruction; 17] = [
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
    pub(super) fn set_guard(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let mut qdisc = TcMessage::with_index(ifindex.cast_signed());
        qdisc.header.parent = TcHandle::CLSACT;
        qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
        qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let what = || format!("filter on link {ifindex} (qdisc clsact)");
        let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
        self.request(what, message, NLM_F_ACK | NLM_F_CREATE)?;
        let mut filter = guard(ifindex);
        let program: Vec<u8> = PROGRAM.iter().copied().flat_map(bytes_of).collect();
        let length = u16::try_from(PROGRAM.len()).unwrap_or_default().to_ne_bytes();
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
            // No such filter; no qdisc that could have one.
            Err(e) if matches!(e.error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
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
