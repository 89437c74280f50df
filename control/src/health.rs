//! `Service.spec.healthCheckNodePort`: load balancers ask every node over HTTP whether it has ready endpoints of a
//! service under `externalTrafficPolicy: Local`, and send to those that answer 200. Status codes, headers and body are
//! kube-proxy's; so are the addresses, which are those of node ports.

use crate::core::SharedCore;
use crate::index::HealthCheck;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long to wait before an address is tried again that could not be listened on.
const RETRY: Duration = Duration::from_secs(2);

/// The health checks that are to be answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HealthChecks {
    /// This node's addresses on which they are.
    pub addresses: BTreeSet<IpAddr>,
    /// What is asked on which port.
    pub by_port: BTreeMap<u16, HealthCheck>,
}

impl HealthChecks {
    fn sockets(&self) -> BTreeSet<SocketAddr> {
        let on =
            |ip: &IpAddr| self.by_port.keys().map(|port| SocketAddr::new(*ip, *port)).collect::<Vec<_>>();
        self.addresses.iter().flat_map(on).collect()
    }
}

/// Ends a server when it is no longer needed.
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an answer is made of.
#[derive(Clone)]
struct Asked {
    address: SocketAddr,
    checks: watch::Receiver<HealthChecks>,
    core: SharedCore,
}

/// Answers health checks as `checks` says, until the task is dropped.
pub async fn answer(mut checks: watch::Receiver<HealthChecks>, core: SharedCore) {
    let mut servers: BTreeMap<SocketAddr, Server> = BTreeMap::new();
    loop {
        let wanted = checks.borrow_and_update().sockets();
        servers.retain(|address, _| wanted.contains(address));
        let mut failures = Vec::new();
        for address in wanted {
            if servers.contains_key(&address) {
                continue;
            }
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let asked = Asked { address, checks: checks.clone(), core: core.clone() };
                    servers.insert(address, serve(listener, asked));
                }
                Err(error) => failures.push(format!(
                    "cannot answer health checks on {address}: {error}; free the port or change spec.healthCheckNodePort"
                )),
            }
        }
        let failed = !failures.is_empty();
        core.lock().set_error("health checks", failed.then(|| failures.join("; ")));
        let changed = checks.changed();
        if failed {
            let _ = tokio::time::timeout(RETRY, changed).await;
        } else if changed.await.is_err() {
            return;
        }
    }
}

fn serve(listener: TcpListener, asked: Asked) -> Server {
    let router = Router::new().fallback(state_of).with_state(asked);
    Server(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "health checks of a service are not answered any more");
        }
    }))
}

/// Whatever is asked, kube-proxy tells the service's state.
async fn state_of(State(asked): State<Asked>) -> impl IntoResponse {
    let check = asked.checks.borrow().by_port.get(&asked.address.port()).cloned();
    let is_healthy = asked.core.lock().dataplane_is_alive();
    let of_family = |check: &HealthCheck| {
        if asked.address.is_ipv4() { check.local_v4 } else { check.local_v6 }
    };
    let count = check.as_ref().map_or(0, of_family);
    let (namespace, name) = check.map(|check| check.service).unwrap_or_default();
    let status = if count > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), count.to_string()),
    ];
    (status, headers, body(&namespace, &name, count, is_healthy))
}

/// Names of objects hold nothing that JSON would escape.
fn body(namespace: &str, name: &str, local_endpoints: usize, is_healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_load_balancers_read() {
        let body: serde_json::Value = serde_json::from_str(&body("shop", "web", 2, true)).unwrap();
        let service = serde_json::json!({"namespace": "shop", "name": "web"});
        let wanted =
            serde_json::json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, wanted);
    }
}
