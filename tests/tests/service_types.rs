//! Every way to a Service, end to end: type × policy × family × protocol × where the backends are, asked from a pod, from
//! the node itself, from outside, and from the node's own subnet. Real clients and servers; nothing but the rules of
//! [`plan::Way::expected`] says what must come out: who answers, with which source, or whether the client is refused or dropped.
//! Prints a table of ticks.

#[path = "service_types/clients.rs"]
mod clients;
#[allow(dead_code, reason = "the comparison with kube-proxy uses more of it")]
#[path = "kube_proxy/ground.rs"]
mod ground;
#[path = "service_types/plan.rs"]
mod plan;
#[path = "service_types/table.rs"]
mod table;

use clients::Clients;
use fairway_tests::gate;
use fairway_tests::kube::apiserver::NAMESPACE;
use plan::{Client, Plan};
use serde_json::json;
use std::time::Instant;
use table::Table;

fn walk_all_ways() -> fairway_tests::Result<()> {
    let plan = Plan::all();
    let clients = Clients::start(&plan)?;
    let start = Instant::now();
    let mut table = Table::default();
    for client in Client::ALL {
        for (number, batch) in plan.batches().iter().enumerate() {
            let questions: Vec<_> = batch.iter().map(|way| way.question()).collect();
            let answers = clients.ask(client, number, &questions)?;
            for (way, answer) in batch.iter().zip(&answers) {
                let (wanted, got) = (way.expected(client), clients.outcome(client, answer));
                table.enter(way, client, &wanted, &got);
            }
        }
    }
    println!("{table}, after {} s", start.elapsed().as_secs());
    let wrong = table.wrong();
    assert!(
        wrong.is_empty(),
        "{} of {} ways are wrong:\n{}\nnode-1 dropped {}",
        wrong.len(),
        table.ways(),
        wrong.join("\n"),
        clients.drops()
    );
    check_health(&plan, &clients)?;
    clients.stop()
}

/// A load balancer is told where the endpoints are of Services under `externalTrafficPolicy: Local`.
fn check_health(plan: &Plan, clients: &Clients) -> fairway_tests::Result<()> {
    for service in &plan.services {
        let Some(port) = service.health_check_port() else { continue };
        let local = service.local_endpoints();
        let body = json!({
            "service": {"namespace": NAMESPACE, "name": service.name()},
            "localEndpoints": local, "serviceProxyHealthy": true,
        });
        let wanted = (if local > 0 { 200 } else { 503 }, body);
        assert_eq!(clients.health(port)?, [wanted.clone(), wanted], "{}", service.name());
    }
    Ok(())
}

#[test]
fn every_type_of_service_works_from_everywhere() {
    if !gate::may_run("service_types") {
        return;
    }
    let _alone = gate::alone();
    walk_all_ways().unwrap_or_else(|error| panic!("{error}"));
}
