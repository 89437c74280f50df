//! Which backend answers a new connection to a service (Kubernetes `Service.spec`), and whether the client's address
//! has to be replaced so that the backend's replies come back to this node.

use crate::conntrack::Tuple;
use crate::state::WorkerState;
use fairway_tables::{DropReason, Service, ServiceKey, ServiceView, View};

/// The service that the destination names, if any.
pub(super) fn find<'a>(tables: View<'a>, tuple: &Tuple) -> Option<ServiceView<'a>> {
    tables.service(&ServiceKey::new(tuple.dst, tuple.dport, tuple.proto))
}

/// What a service makes of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// The connection's tuple with its destination replaced by a backend.
    pub(super) leaves: Tuple,
    /// The backend must see one of this node's own addresses instead of the client's: its replies would not pass here
    /// otherwise.
    #[expect(dead_code, reason = "for source translation, which follows")]
    pub(super) masquerade: bool,
}

/// The backends among which one is chosen for a new connection.
pub(super) struct Candidates<'a> {
    service: ServiceView<'a>,
    tuple: Tuple,
    first: usize,
}

impl<'a> Candidates<'a> {
    /// The backends for a connection that begins with this tuple; `None` if its destination is no service.
    ///
    /// # Errors
    /// [`DropReason::NoBackend`] or [`DropReason::NoLocalBackend`] if the service has none for it.
    pub(super) fn of(
        worker: &mut WorkerState,
        tables: View<'a>,
        tuple: &Tuple,
    ) -> Result<Option<Candidates<'a>>, DropReason> {
        let Some(service) = find(tables, tuple) else { return Ok(None) };
        if service.is_empty() {
            let elsewhere = service.service().flags & Service::ENDPOINTS_ELSEWHERE != 0;
            return Err(if elsewhere { DropReason::NoLocalBackend } else { DropReason::NoBackend });
        }
        let first = worker.random_below(service.len());
        Ok(Some(Candidates { service, tuple: *tuple, first }))
    }

    /// The number of the service.
    pub(super) fn id(&self) -> u32 {
        self.service.service().id
    }

    /// Choice number `attempt`, from 0: the first is each backend with equal chance, further ones follow it in order.
    pub(super) fn choice(&self, attempt: usize) -> Option<Choice> {
        let backend = self.service.backend((self.first + attempt) % self.service.len())?;
        let leaves = Tuple { dst: backend.ip, dport: backend.port, ..self.tuple };
        let always = self.service.service().flags & Service::MASQUERADE != 0;
        // A pod that reaches itself would answer itself, past the engine.
        Some(Choice { leaves, masquerade: always || backend.ip == self.tuple.src })
    }
}
