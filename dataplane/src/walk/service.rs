//! Which backend answers a new connection to a service (Kubernetes `Service.spec.clusterIPs`/`ports`).

use crate::conntrack::Tuple;
use crate::state::WorkerState;
use fairway_tables::{DropReason, Service, ServiceKey, ServiceView, View};

/// The service that the destination names, if any.
pub(super) fn find<'a>(tables: View<'a>, tuple: &Tuple) -> Option<ServiceView<'a>> {
    tables.service(&ServiceKey::new(tuple.dst, tuple.dport, tuple.proto))
}

/// The connection's tuple with its destination replaced by a backend, each equally likely. `attempt` counts
/// from zero: further ones take the next backend after the first choice.
pub(super) fn choose(
    worker: &mut WorkerState,
    service: &ServiceView<'_>,
    tuple: &Tuple,
    first: &mut Option<usize>,
    attempt: usize,
) -> Result<Tuple, DropReason> {
    let count = service.len();
    if count == 0 {
        let elsewhere = service.service().flags & Service::ENDPOINTS_ELSEWHERE != 0;
        return Err(if elsewhere { DropReason::NoLocalBackend } else { DropReason::NoBackend });
    }
    let first = *first.get_or_insert_with(|| worker.random_below(count));
    let backend = service.backend((first + attempt) % count).ok_or(DropReason::NoBackend)?;
    Ok(Tuple { dst: backend.ip, dport: backend.port, ..*tuple })
}
