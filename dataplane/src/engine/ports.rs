//! Ports in step with the tables: opened when control lists them, closed when it does not any more.

use super::resume::Resumed;
use super::service_steering::ServiceSteering;
use crate::crew::Crew;
use crate::wire::proto;
use crate::worker::PollMode;
use fairway_pmd::Queue;
use fairway_pmd::af_xdp::{self, AfXdp, AfXdpConfig, AfXdpError, AfXdpQueue, BusyPoll};
use fairway_pmd::steering::{LinkState, PortClass, Protocol, Steering, SteeringError};
use fairway_tables::{Change, Ip, NextHopKind, OpenError, Port, PortId, PortKind, Reader, Settings, View};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait before a port that could not be opened is tried again, and devices are looked at.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
enum PortError {
    #[error(transparent)]
    AfXdp(#[from] AfXdpError),
    #[error(transparent)]
    Steering(#[from] SteeringError),
    #[error("port {0:?} has no valid kind in the tables; restart fairway-control")]
    Kind(PortId),
}

struct Open {
    port: Port,
    ifindex: u32,
}

impl Open {
    /// A device that was made anew under its old name is another device.
    fn is_replaced(&self) -> bool {
        af_xdp::ifindex(self.port.ifname()) != Some(self.ifindex)
    }
}

/// What the steering program takes from a port.
pub(super) fn class_of(kind: PortKind) -> PortClass {
    match kind {
        PortKind::Uplink => PortClass::Uplink,
        PortKind::Pod => PortClass::Pod,
        PortKind::Host => PortClass::Host,
    }
}

/// The prefixes of this node's pods, if packets to them come without encapsulation.
fn direct_prefixes(view: View<'_>) -> Vec<(IpAddr, u8)> {
    if view.settings().takes & Settings::TAKES_DIRECT == 0 {
        return Vec::new();
    }
    let local = view
        .routes()
        .filter(|(_, paths)| paths.only().is_some_and(|hop| hop.kind() == Some(NextHopKind::Local)));
    local.map(|(prefix, _)| (prefix.addr().into(), prefix.len())).collect()
}

/// What is open.
pub(super) struct Ports {
    af_xdp: AfXdp,
    steering: Steering,
    services: ServiceSteering,
    tables: Reader,
    poll: PollMode,
    /// The tables' changes that were looked at; `None` before the first look.
    seen: Option<u64>,
    /// Whether uplinks take what the node's settings say.
    is_steered: bool,
    open: BTreeMap<PortId, Open>,
    failed: BTreeMap<PortId, String>,
    retry_at: Instant,
}

impl Ports {
    pub(super) fn new(af_xdp: AfXdp, steering: Steering, tables: Reader, poll: PollMode) -> Ports {
        Ports {
            af_xdp,
            steering,
            services: ServiceSteering::new(),
            tables,
            poll,
            seen: None,
            is_steered: false,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: Instant::now(),
        }
    }

    /// Closes what is no longer listed, opens what is newly listed, and tries again what failed.
    ///
    /// # Errors
    /// [`AfXdpError::MissingCapability`]: no later try can do better.
    pub(super) fn sync(&mut self, crew: &Crew) -> Result<(), AfXdpError> {
        let unfinished = !self.failed.is_empty() || !self.is_steered;
        let due = Instant::now() >= self.retry_at && (unfinished || self.any_replaced());
        if self.anything_changed() || due {
            self.retry_at = Instant::now() + RETRY;
            let view = self.tables.view();
            let wanted: BTreeMap<PortId, Port> = view.ports().collect();
            self.steer(&view.settings(), &direct_prefixes(view));
            self.close_unwanted(&wanted, crew);
            for (id, port) in wanted {
                if !self.open.contains_key(&id) {
                    self.try_open(id, port, crew)?;
                }
            }
        }
        self.services.sync(&mut self.steering, self.tables.view());
        self.tables.quiescent();
        Ok(())
    }

    /// Whether all listed ports are open whose devices are there, and uplinks take what they are to.
    pub(super) fn all_open(&self) -> bool {
        let mut ports = self.tables.view().ports();
        self.is_steered
            && ports.all(|(id, port)| self.open.contains_key(&id) || af_xdp::ifindex(port.ifname()).is_none())
    }

    /// Whether the tables changed since the last look, services apart: these come and go all the time in a large
    /// cluster, and no port depends on them.
    fn anything_changed(&mut self) -> bool {
        let view = self.tables.view();
        let now = view.change_count();
        let Some(seen) = self.seen.replace(now) else { return true };
        let mut changed = false;
        view.changes(seen, now, |change| changed |= change == Change::Everything);
        changed
    }

    /// Whether control has begun other tables than those that are read here.
    pub(super) fn tables_superseded(&self) -> bool {
        self.tables.is_superseded()
    }

    /// Goes over to control's new tables, workers included. Connections stay.
    pub(super) fn reopen_tables(&mut self, run_dir: &Path, crew: &Crew) -> Result<(), OpenError> {
        tracing::info!("the tables were made anew; going over to them");
        self.tables = Reader::open(run_dir, "engine")?;
        self.seen = None;
        self.services.forget();
        crew.change_tables(|| Reader::open(run_dir, "worker"))
    }

    /// Has uplinks take what the node's settings say.
    fn steer(&mut self, settings: &Settings, pods: &[(IpAddr, u8)]) {
        let ports = [settings.vxlan_port, settings.second_vxlan.udp_port, settings.udp_tunnel_port];
        let ports: Vec<u16> = ports.into_iter().filter(|port| *port != 0).collect();
        let protocols = ip_in_ip(settings);
        let addresses = [settings.node_ip, settings.node_ip6];
        let addresses: Vec<IpAddr> = addresses.into_iter().filter(is_set).map(IpAddr::from).collect();
        let sources = [settings.outside_ip, settings.outside_ip6].into_iter().filter(is_set);
        let sources: Vec<IpAddr> = sources.map(IpAddr::from).collect();
        let steered = self
            .steering
            .set_node(&addresses, &ports)
            .and_then(|()| self.steering.set_protocols(&protocols))
            .and_then(|()| self.steering.set_pod_prefixes(pods))
            .and_then(|()| self.steering.set_snat(&sources, &(settings.snat_first..=settings.snat_last)));
        self.is_steered = steered.is_ok();
        if let Err(error) = steered {
            tracing::error!(%error, "not all packets from other nodes are steered to the engine");
        }
    }

    /// Whether a device was deleted, and perhaps made anew under its name, without the tables changing.
    fn any_replaced(&mut self) -> bool {
        self.retry_at = Instant::now() + RETRY;
        self.open.values().any(Open::is_replaced)
    }

    fn close_unwanted(&mut self, wanted: &BTreeMap<PortId, Port>, crew: &Crew) {
        self.failed.retain(|id, _| wanted.contains_key(id));
        let gone: Vec<PortId> = self
            .open
            .iter()
            .filter(|(id, open)| {
                wanted
                    .get(id)
                    .is_none_or(|port| port.ifname != open.port.ifname || port.kind != open.port.kind)
                    || open.is_replaced()
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            let Some(open) = self.open.remove(&id) else { continue };
            tracing::info!(port = id.0, ifname = open.port.ifname(), "port closes");
            if let Err(error) = self.steering.detach(open.ifindex) {
                tracing::debug!(%error, "the device is gone with its program");
            }
            crew.close_port(id);
        }
    }

    fn try_open(&mut self, id: PortId, port: Port, crew: &Crew) -> Result<(), AfXdpError> {
        match self.open_port(id, &port, crew) {
            Ok(ifindex) => {
                self.failed.remove(&id);
                self.open.insert(id, Open { port, ifindex });
            }
            Err(PortError::AfXdp(error @ AfXdpError::MissingCapability { .. })) => return Err(error),
            Err(error) => {
                let text = error.to_string();
                // Each fault is said once, not twice a second.
                if self.failed.get(&id) != Some(&text) {
                    tracing::warn!(
                        port = id.0,
                        ifname = port.ifname(),
                        error = text,
                        "port cannot be opened yet"
                    );
                    self.failed.insert(id, text);
                }
            }
        }
        Ok(())
    }

    /// Goes on with what a former image of this process had open and the workers serve already.
    pub(super) fn take_over(&mut self, resumed: Vec<Resumed>, crew: &Crew) {
        let view = self.tables.view();
        let (settings, pods) = (view.settings(), direct_prefixes(view));
        // First, so that no tunnel passes to the kernel when the uplink's program is exchanged.
        self.steer(&settings, &pods);
        self.services.sync(&mut self.steering, self.tables.view());
        for Resumed { id, port, state, link, sockets } in resumed {
            match self.steering.adopt(port.ifname(), &state, link, &sockets) {
                Ok(()) => {
                    self.open.insert(id, Open { port, ifindex: state.attachment.ifindex });
                }
                Err(error) => {
                    tracing::warn!(port = id.0, ifname = port.ifname(), %error, "port closes, to be opened anew");
                    crew.close_port(id);
                    crew.settle();
                    crew.reap();
                }
            }
        }
    }

    /// What the next image of this process needs to go on with the attachments.
    pub(super) fn links(&self) -> Vec<LinkState> {
        self.steering.links()
    }

    /// What an open port is.
    pub(super) fn kind(&self, id: PortId) -> Option<PortKind> {
        self.open.get(&id)?.port.kind()
    }

    fn open_port(&mut self, id: PortId, port: &Port, crew: &Crew) -> Result<u32, PortError> {
        let kind = port.kind().ok_or(PortError::Kind(id))?;
        let class = class_of(kind);
        let attachment = self.steering.attach(port.ifname(), class)?;
        let mut config = match kind {
            PortKind::Uplink => AfXdpConfig::uplink(attachment.queues),
            PortKind::Pod | PortKind::Host => AfXdpConfig::pod(),
        };
        if self.poll == PollMode::Busy && kind == PortKind::Uplink {
            config.busy_poll = Some(BusyPoll::default());
        }
        let opened =
            self.af_xdp.open(port.ifname(), id.0, &config).map_err(PortError::from).and_then(|queues| {
                self.steering.register_queues(&queues)?;
                Ok(queues)
            });
        let queues = match opened {
            Ok(queues) => queues,
            Err(error) => {
                let _ = self.steering.detach(attachment.ifindex);
                return Err(error);
            }
        };
        tracing::info!(
            port = id.0,
            ifname = port.ifname(),
            ?kind,
            queues = queues.len(),
            mode = ?queues.first().map(AfXdpQueue::mode),
            "port opens"
        );
        let boxed = |queue| Box::new(queue) as Box<dyn Queue>;
        crew.open_port(id, kind, queues.into_iter().map(boxed).collect());
        Ok(attachment.ifindex)
    }

    /// Takes the steering program off every device, so that packets go to the kernel from now on.
    pub(super) fn detach_all(&mut self) {
        for open in self.open.values() {
            if let Err(error) = self.steering.detach(open.ifindex) {
                tracing::debug!(%error, "the device is gone with its program");
            }
        }
    }
}

fn is_set(ip: &Ip) -> bool {
    *ip != Ip::UNSPECIFIED
}

/// The protocols of IP in IP that uplinks take.
fn ip_in_ip(settings: &Settings) -> Vec<Protocol> {
    let all = [(true, true), (false, true), (true, false), (false, false)].into_iter();
    let taken = all.filter(|(inner_is_v4, outer_is_v4)| {
        settings.takes & Settings::takes_ip_in_ip(*inner_is_v4, *outer_is_v4) != 0
    });
    let protocol = |(inner_is_v4, outer_is_v4): (bool, bool)| Protocol {
        number: if inner_is_v4 { proto::IPIP } else { proto::IPV6 },
        over_ipv6: !outer_is_v4,
    };
    taken.map(protocol).collect()
}
