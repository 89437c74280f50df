//! kube-proxy's nftables mode on the kernel's node: the real one, from `tests/kube`. It reads Services and
//! EndpointSlices from a real API server, writes its rules, and idles while packets flow. The API server, which is on
//! no such node, is stopped once the rules are there.
//!
//! Services come while kube-proxy runs, a part at a time: the kernel compares each of a transaction's sets, of which every port of a
//! Service has one, with all of the transaction's changes, so that 10,000 Services at once would take it minutes.

use super::DeviceError;
use super::ground::{Ground, SERVER, SERVICES};
use crate::pktgen::paths::{BACKEND_PORT, SERVICE_PORT};
use crate::pktgen::scenario::TableSizes;
use fairway_tests::kube::{ApiServer, KubeProxy, Programs, apiserver};
use fairway_tests::process::wait_for;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;

const NODE: &str = "node-1";
const POD_CIDRS: &str = "10.244.0.0/16";
/// Longest time for the rules of 10,000 Services.
const RULES: Duration = Duration::from_secs(180);
/// Longest time to list the map of Services: while a transaction is under way, it waits.
const LIST: Duration = Duration::from_secs(90);
/// How often it is listed. Listing takes the time of a core that kube-proxy has use for.
const LOOK: Duration = Duration::from_secs(1);
/// Services that are written at a time.
const PART: usize = 500;

/// Brings up API server and kube-proxy, and waits until all Services are in its rules.
///
/// # Errors
/// If the programs have not been built or something does not start.
pub(super) fn start(ground: &mut Ground, tables: &TableSizes) -> Result<KubeProxy, DeviceError> {
    let Some(programs) = Programs::find("the device kube-proxy")? else {
        let why = "its programs have not been built; run `make kube`";
        return Err(DeviceError::Unfit { device: "kube-proxy", why });
    };
    let dir = ground.testbed().dir().to_owned();
    let api = ApiServer::start(&programs, ground.node(), &dir)?;
    api.hold(ground.node(), &[&[node()]])?;
    let proxy = KubeProxy::start(&programs, &api, ground.node(), NODE, POD_CIDRS)?;
    let services: Vec<Vec<Value>> = (0..tables.services).map(|n| service(n, tables.backends)).collect();
    let parts: Vec<Vec<Value>> = services.chunks(PART).map(<[_]>::concat).collect();
    api.hold(ground.node(), &parts.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    // Two ports each; a Service without endpoints would be in another map.
    let wanted = 2 * tables.services as usize;
    wait_for("kube-proxy's rules have all Services", RULES, || {
        let map = ["list", "map", "ip", "kube-proxy", "service-ips"];
        let list = ground.node().run("nft", &map, LIST)?.stdout;
        let there = list.matches(&format!("-{}/s", apiserver::NAMESPACE)).count();
        if there >= wanted {
            return Ok(Ok(()));
        }
        std::thread::sleep(LOOK);
        Ok(Err(format!("{there} of {wanted}")))
    })?;
    Ok(proxy)
}

fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"}]},
    })
}

/// One of the Services that Fairway's device has too, with its slices. All backends are the server's pod, on different ports.
fn service(number: u32, backends: u32) -> Vec<Value> {
    let port =
        |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port});
    let ports = |number: u16| json!([port("u", "UDP", number), port("t", "TCP", number)]);
    let name = format!("s{number}");
    let mut objects = vec![json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": apiserver::NAMESPACE, "name": name},
        "spec": {"clusterIP": Ipv4Addr::from(SERVICES + number), "ports": ports(SERVICE_PORT)},
    })];
    objects.extend((0..backends).map(|b| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": apiserver::NAMESPACE,
                "name": format!("{name}-{b}"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": ports(BACKEND_PORT + (b % 1000) as u16),
            "endpoints": [{"addresses": [SERVER], "conditions": {"ready": true}}],
        })
    }));
    objects
}
