//! Services with direct server return, as control writes them, at one node.

use super::tuples::ip;
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_tables::{Backend, Ip, NextHop, NextHopKind, Op, PortId, Service, ServiceKey, Targets};

pub(crate) const FLAGS: u32 = Service::EXTERNAL | Service::MASQUERADE | Service::DSR;
pub(crate) const NODE_PORT: u16 = 30_080;

pub(crate) fn vip(is_v4: bool) -> Ip {
    ip([198, 51, 100, 1], [0x20, 1, 0x0d, 0xb8, 0x51, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], is_v4)
}

pub(crate) fn client(n: u8, is_v4: bool) -> Ip {
    ip(addr::outside(n), addr::outside6(n), is_v4)
}

/// A backend of this node, or of a remote one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    Here(u16),
    There(u8),
}

impl At {
    pub(crate) fn ip(self, is_v4: bool) -> Ip {
        match self {
            At::Here(n) => ip(addr::pod(n), addr::pod6(n), is_v4),
            At::There(n) => ip(addr::remote_pod(n, 7), addr::remote_pod6(n, 7), is_v4),
        }
    }

    pub(crate) fn way(self, kind: NextHopKind) -> NextHop {
        match self {
            At::Here(_) => NextHop::new(NextHopKind::Local, Ip::UNSPECIFIED, PortId::NONE),
            At::There(n) => NextHop::new(kind, Ip::v4(addr::node(n)), PortId::NONE),
        }
    }
}

/// A service's record with these backends, as control writes it.
pub(crate) fn targets(backends: &[At], is_v4: bool, kind: NextHopKind) -> Targets {
    let mut all: Vec<(Backend, At)> =
        backends.iter().map(|at| (Backend { ip: at.ip(is_v4), port: 8080, flags: 0 }, *at)).collect();
    all.sort_unstable_by_key(|(backend, _)| *backend);
    let local = all.iter().filter(|(_, at)| matches!(at, At::Here(_))).map(|(backend, _)| *backend);
    Targets {
        cluster: all.iter().map(|(backend, _)| *backend).collect(),
        local: local.collect(),
        ways: all.iter().map(|(_, at)| at.way(kind)).collect(),
        source_ranges: vec![],
    }
}

pub(crate) fn set_with(
    world: &mut World,
    key: ServiceKey,
    flags: u32,
    affinity_timeout_s: u32,
    targets: Targets,
) {
    let flags = match targets.local.is_empty() && !targets.cluster.is_empty() {
        true => flags | Service::ENDPOINTS_ELSEWHERE,
        false => flags,
    };
    world.apply(Op::SetService(
        key,
        Service { id: u32::from(key.proto), flags, affinity_timeout_s },
        targets,
    ));
}

pub(crate) fn set(world: &mut World, key: ServiceKey, backends: &[At]) {
    set_with(world, key, FLAGS, 0, targets(backends, key.ip.is_v4(), NextHopKind::Tunnel));
}

pub(crate) fn world() -> World {
    let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
    world.open_outside();
    world
}

/// A client's packet to a service.
pub(crate) fn to(key: ServiceKey, n: u8, sport: u16) -> Tuple {
    Tuple { src: client(n, key.ip.is_v4()), dst: key.ip, sport, dport: key.port, proto: key.proto }
}
