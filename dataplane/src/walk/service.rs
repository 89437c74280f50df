//! Which backend answers a new connection to a service (Kubernetes `Service.spec`), and whether the client's address
//! has to be replaced so that the backend's replies come back to this node. The rules are kube-proxy's:
//!
//! | address | policy | client | backends | masqueraded |
//! |---|---|---|---|---|
//! | cluster address | any | pod | those of the policy | no |
//! | | | this node, other stations | those of the policy | yes |
//! | node port, load balancer, external | Cluster | any | those of the cluster | yes |
//! | | Local | pod | those of the cluster | no |
//! | | | this node | those of the cluster | yes |
//! | | | other stations | this node's own | no |
//!
//! A pod whose address belongs to an uplink (docs/eni.md) is never masqueraded for these: every station of its network
//! finds its way back to it. A pod with a NIC of its own always is, be it client or backend: it and the network
//! answer each other past the engine.
//!
//! Of a service with DSR (docs/dsr.md) other stations see the same, but are never masqueraded where a backend is on this node
//! or its node can be reached by a tunnel; and a node uses its own backends alone for what another has sent it so.
//!
//! Beyond that a client that would reach itself is masqueraded, and what this node sends from its address among the
//! pods never needs to be: every node finds its way back. Which endpoints a list holds, control has decided.

use super::{dsr, snat};
use crate::clock::Now;
use crate::conntrack::Tuple;
use crate::family::Parcel;
use crate::parse::Ingress;
use crate::state::WorkerState;
use fairway_tables::{
    BackendSet, DropReason, Ip, NextHop, NextHopKind, PortKind, Prefix, Service, ServiceKey, ServiceView,
    Settings, View,
};

/// The service that the destination names, if any. What is sent to an address that has services, but to none of their
/// ports, finds a record without backends there.
pub(super) fn find<'a>(tables: View<'a>, tuple: &Tuple) -> Option<ServiceView<'a>> {
    let port = tables.service(&ServiceKey::new(tuple.dst, tuple.dport, tuple.proto));
    port.or_else(|| tables.service(&ServiceKey::no_port(tuple.dst)))
}

/// Who asks a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Client {
    /// A pod of this node or, through a tunnel, of another.
    Pod,
    /// This node itself.
    Node,
    /// Anybody else.
    Outside,
    /// The same, through another node, which leaves the choice and the answer to this one.
    Delivered,
}

impl Client {
    fn of(tables: View<'_>, ingress: &Ingress, packet: &impl Parcel, dsr: bool) -> Client {
        match ingress.kind {
            PortKind::Pod => Client::Pod,
            PortKind::Uplink
                if dsr && packet.is_tunnelled() && dsr::is_foreign(tables, packet.tuple().src) =>
            {
                Client::Delivered
            }
            PortKind::Uplink if packet.is_tunnelled() => Client::Pod,
            PortKind::Uplink => Client::Outside,
            // The kernel also forwards what others sent.
            PortKind::Host if is_of_this_node(tables, packet.tuple().src) => Client::Node,
            PortKind::Host => Client::Outside,
        }
    }
}

/// Whether the address is one of the node's own: those have a route to the host each.
pub(super) fn is_of_this_node(tables: View<'_>, ip: Ip) -> bool {
    let paths = tables.exact_paths(&Prefix::host(ip));
    paths.and_then(|paths| paths.only()).is_some_and(|hop| hop.kind() == Some(NextHopKind::Host))
}

/// The address by which source ranges judge a client. This node is known by its InternalIP, from whichever address its kernel
/// sends: that among the pods, which it prefers for services, is no pod's.
fn judged_source(settings: &Settings, src: Ip) -> Ip {
    let known_by = match src {
        _ if src == settings.router_ip => settings.outside_ip,
        _ if src == settings.router_ip6 => settings.outside_ip6,
        _ => src,
    };
    if known_by == Ip::UNSPECIFIED { src } else { known_by }
}

/// What a service makes of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// The connection's tuple with its destination replaced by a backend.
    pub(super) leaves: Tuple,
    /// The backend must see one of this node's own addresses instead of the client's: its replies would not pass here
    /// otherwise.
    pub(super) masquerade: bool,
    /// The tunnel to the backend's node, which is left the rest: the packet goes there as it is.
    pub(super) via: Option<NextHop>,
}

/// The backends among which one is chosen for a new connection.
pub(super) struct Candidates<'a> {
    service: Service,
    backends: BackendSet<'a>,
    tuple: Tuple,
    first: usize,
    masquerade: bool,
    /// For a client that is answered straight from a backend's node: the ways there.
    dsr: Option<ServiceView<'a>>,
    /// Whether another node left the connection to this one.
    pub(super) is_delivered: bool,
    tables: View<'a>,
}

impl<'a> Candidates<'a> {
    /// The backends for the connection that this packet begins; `None` if its destination is no service.
    ///
    /// # Errors
    /// [`DropReason::NoBackend`] or [`DropReason::NoLocalBackend`] if the service has none for it,
    /// [`DropReason::SourceRange`] if it does not admit the client.
    pub(super) fn of(
        worker: &mut WorkerState,
        tables: View<'a>,
        ingress: &Ingress,
        packet: &impl Parcel,
        now: Now,
    ) -> Result<Option<Candidates<'a>>, DropReason> {
        let tuple = packet.tuple();
        let Some(view) = dsr::find(tables, packet) else { return Ok(None) };
        let service = view.service();
        let has = |flag| service.flags & flag != 0;
        let client = Client::of(tables, ingress, packet, has(Service::DSR));
        let is_local = match client {
            Client::Delivered => true,
            Client::Outside => has(Service::LOCAL),
            _ => false,
        };
        let backends = if is_local { view.local() } else { view.cluster() };
        let by_dsr = has(Service::DSR) && client == Client::Outside && ingress.kind == PortKind::Uplink;
        let dsr = (by_dsr && dsr::is_foreign(tables, tuple.src)).then_some(view);
        let settings = tables.settings();
        if has(Service::SOURCE_RANGES) {
            let source = judged_source(&settings, tuple.src);
            if !view.source_ranges().any(|range| range.contains(source)) {
                return Err(DropReason::SourceRange);
            }
        }
        if backends.is_empty() {
            let elsewhere = has(Service::ENDPOINTS_ELSEWHERE);
            return Err(if elsewhere { DropReason::NoLocalBackend } else { DropReason::NoBackend });
        }
        let masquerade = match client {
            Client::Pod if snat::is_bound(tables, tuple.src) => false,
            Client::Pod if snat::has_own_nic(tables, tuple.src) => true,
            Client::Delivered => false,
            _ if has(Service::MASQUERADE) => true,
            Client::Pod => false,
            Client::Node => true,
            Client::Outside => !has(Service::EXTERNAL),
        };
        let returns = tuple.src == settings.router_ip || tuple.src == settings.router_ip6;
        let is_delivered = client == Client::Delivered;
        let all = is_delivered.then(|| view.cluster());
        let first = first(worker, &service, &backends, all, &tuple, now);
        let masquerade = masquerade && !returns;
        Ok(Some(Candidates { service, backends, tuple, first, masquerade, dsr, is_delivered, tables }))
    }

    /// The number of the service.
    pub(super) fn id(&self) -> u32 {
        self.service.id
    }

    /// Choice number `attempt`, from 0: the first is the one to take, further ones follow it in order.
    pub(super) fn choice(&self, attempt: usize) -> Option<Choice> {
        let number = (self.first + attempt) % self.backends.len();
        let backend = self.backends.get(number)?;
        let way = self.dsr.and_then(|service| service.way(number));
        if let Some(via) = way.filter(|way| dsr::is_tunnel(way) && !self.is_clients(way)) {
            return Some(Choice { leaves: self.tuple, masquerade: false, via: Some(via) });
        }
        let is_here = way.is_some_and(|way| way.kind() == Some(NextHopKind::Local));
        let leaves = Tuple { dst: backend.ip, dport: backend.port, ..self.tuple };
        // A pod that reaches itself would answer itself, past the engine; one with a NIC of its own whomever there.
        let answers_past = backend.ip == self.tuple.src || snat::has_own_nic(self.tables, backend.ip);
        Some(Choice { leaves, masquerade: self.masquerade && !is_here || answers_past, via: None })
    }

    /// Whether a way leads to the node that the client itself is.
    fn is_clients(&self, way: &NextHop) -> bool {
        let node = self.tables.tunnel(way.addr);
        node.is_some_and(|node| [node.node_ports, node.node_ports6].contains(&self.tuple.src))
    }
}

/// Number of the backend to take: the one that the client was given last, if the service wants that and still has it;
/// else the one that the flow's hash or chance says. By hash it is the one that another node chose among `all`, if that is
/// one of these.
fn first(
    worker: &mut WorkerState,
    service: &Service,
    backends: &BackendSet<'_>,
    all: Option<BackendSet<'_>>,
    tuple: &Tuple,
    now: Now,
) -> usize {
    let timeout_s = service.affinity_timeout_s;
    let (id, client) = (service.id, tuple.src);
    let last = if timeout_s > 0 { worker.affinity.find(id, client, timeout_s, now.seconds) } else { None };
    let first = last
        .and_then(|(ip, port)| backends.position(ip, port))
        .or_else(|| {
            let chosen = all.and_then(|all| all.get(all.maglev(tuple.path_hash())?))?;
            backends.position(chosen.ip, chosen.port)
        })
        .or_else(|| backends.maglev(tuple.path_hash()))
        .unwrap_or_else(|| worker.random_below(backends.len()));
    if let (true, Some(backend)) = (timeout_s > 0, backends.get(first)) {
        worker.affinity.remember(id, client, (backend.ip, backend.port), now.seconds);
    }
    first
}
