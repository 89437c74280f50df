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
//! Beyond that a client that would reach itself is masqueraded, and what this node sends from its address among the
//! pods never needs to be: every node finds its way back. Which endpoints a list holds, control has decided.

use super::snat;
use crate::clock::Now;
use crate::conntrack::Tuple;
use crate::family::Parcel;
use crate::parse::Ingress;
use crate::state::WorkerState;
use fairway_tables::{
    BackendSet, DropReason, Ip, NextHopKind, PortKind, Prefix, Service, ServiceKey, ServiceView, View,
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
}

impl Client {
    fn of(tables: View<'_>, ingress: &Ingress, packet: &impl Parcel) -> Client {
        match ingress.kind {
            PortKind::Pod => Client::Pod,
            PortKind::Uplink if packet.outer().is_some() => Client::Pod,
            PortKind::Uplink => Client::Outside,
            // The kernel also forwards what others sent.
            PortKind::Host if is_of_this_node(tables, packet.tuple().src) => Client::Node,
            PortKind::Host => Client::Outside,
        }
    }
}

/// Whether the address is one of the node's own: those have a route to the host each.
fn is_of_this_node(tables: View<'_>, ip: Ip) -> bool {
    let paths = tables.exact_paths(&Prefix::host(ip));
    paths.and_then(|paths| paths.only()).is_some_and(|hop| hop.kind() == Some(NextHopKind::Host))
}

/// What a service makes of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// The connection's tuple with its destination replaced by a backend.
    pub(super) leaves: Tuple,
    /// The backend must see one of this node's own addresses instead of the client's: its replies would not pass here
    /// otherwise.
    pub(super) masquerade: bool,
}

/// The backends among which one is chosen for a new connection.
pub(super) struct Candidates<'a> {
    service: Service,
    backends: BackendSet<'a>,
    tuple: Tuple,
    first: usize,
    masquerade: bool,
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
        let Some(view) = find(tables, &tuple) else { return Ok(None) };
        let service = view.service();
        let has = |flag| service.flags & flag != 0;
        let client = Client::of(tables, ingress, packet);
        let is_local = has(Service::LOCAL) && client == Client::Outside;
        let backends = if is_local { view.local() } else { view.cluster() };
        if backends.is_empty() && !has(Service::ENDPOINTS_ELSEWHERE) {
            return Err(DropReason::NoBackend);
        }
        if has(Service::SOURCE_RANGES) && !view.source_ranges().any(|range| range.contains(tuple.src)) {
            return Err(DropReason::SourceRange);
        }
        if backends.is_empty() {
            return Err(DropReason::NoLocalBackend);
        }
        let masquerade = match client {
            Client::Pod if snat::is_bound(tables, tuple.src) => false,
            Client::Pod if snat::has_own_nic(tables, tuple.src) => true,
            _ if has(Service::MASQUERADE) => true,
            Client::Pod => false,
            Client::Node => true,
            Client::Outside => !has(Service::EXTERNAL),
        };
        let settings = tables.settings();
        let returns = tuple.src == settings.router_ip || tuple.src == settings.router_ip6;
        let first = first(worker, &service, &backends, &tuple, now);
        let masquerade = masquerade && !returns;
        Ok(Some(Candidates { service, backends, tuple, first, masquerade, tables }))
    }

    /// The number of the service.
    pub(super) fn id(&self) -> u32 {
        self.service.id
    }

    /// Choice number `attempt`, from 0: the first is the one to take, further ones follow it in order.
    pub(super) fn choice(&self, attempt: usize) -> Option<Choice> {
        let backend = self.backends.get((self.first + attempt) % self.backends.len())?;
        let leaves = Tuple { dst: backend.ip, dport: backend.port, ..self.tuple };
        // A pod that reaches itself would answer itself, past the engine; one with a NIC of its own whomever there.
        let answers_past = backend.ip == self.tuple.src || snat::has_own_nic(self.tables, backend.ip);
        Some(Choice { leaves, masquerade: self.masquerade || answers_past })
    }
}

/// Number of the backend to take: the one that the client was given last, if the service wants that and still has it;
/// else the one that the flow's hash or chance says.
fn first(
    worker: &mut WorkerState,
    service: &Service,
    backends: &BackendSet<'_>,
    tuple: &Tuple,
    now: Now,
) -> usize {
    let timeout_s = service.affinity_timeout_s;
    let (id, client) = (service.id, tuple.src);
    let last = if timeout_s > 0 { worker.affinity.find(id, client, timeout_s, now.seconds) } else { None };
    let first = last
        .and_then(|(ip, port)| backends.position(ip, port))
        .or_else(|| backends.maglev(tuple.path_hash()))
        .unwrap_or_else(|| worker.random_below(backends.len()));
    if let (true, Some(backend)) = (timeout_s > 0, backends.get(first)) {
        worker.affinity.remember(id, client, (backend.ip, backend.port), now.seconds);
    }
    first
}
