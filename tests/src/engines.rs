//! Whether the engines carry the pods' traffic. An answer alone does not tell: without an engine, the kernel answers too.

use crate::node::Node;
use crate::ping::ping;
use crate::testbed::Testbed;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// An engine that sleeps when idle shows its counters this much later, at most.
const COUNTERS: Duration = Duration::from_millis(20);

/// Packets that the node's engine received, by device.
pub fn received(node: &Node) -> Result<BTreeMap<String, u64>, String> {
    let counters = node.ask(&["counters"]).map_err(|error| error.to_string())?;
    let ports = counters["ports"].as_array().ok_or("no ports among the counters")?;
    let port =
        |port: &serde_json::Value| Some((port["ifname"].as_str()?.to_owned(), port["rx_packets"].as_u64()?));
    Ok(ports.iter().filter_map(port).collect())
}

/// Ok once every pod reaches its gateway and it is the engine that answers.
pub fn carry(testbed: &Testbed) -> Result<(), String> {
    (0..testbed.nodes().len()).try_for_each(|node| carries(testbed, node))
}

/// The same for one node and its pods.
pub fn carries(testbed: &Testbed, node: usize) -> Result<(), String> {
    let pods = || testbed.pods().iter().filter(|pod| pod.node() == node);
    let before = received(&testbed.nodes()[node])?;
    for pod in pods() {
        match ping(pod.netns(), GATEWAY, 1, 84) {
            Ok(summary) if summary.complete() => {}
            Ok(summary) => return Err(format!("{}: {}", pod.name(), summary.output)),
            Err(error) => return Err(error.to_string()),
        }
    }
    std::thread::sleep(COUNTERS);
    let after = received(&testbed.nodes()[node])?;
    for pod in pods() {
        let veth = fairway_control::names::host_veth(pod.namespace(), pod.name());
        if after.get(&veth).copied().unwrap_or_default() <= before.get(&veth).copied().unwrap_or_default() {
            return Err(format!("{}: its gateway answers, but the engine has nothing from it", pod.name()));
        }
    }
    Ok(())
}
