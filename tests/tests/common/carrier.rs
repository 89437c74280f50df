//! Engines that come and go, and who carries the pods' traffic meanwhile.

use super::Cluster;
use fairway_tests::process::wait_for;
use fairway_tests::programs::share_of_cores;
use fairway_tests::sys;
use serde_json::Value;
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
/// The nodes.
pub(crate) const BOTH: [usize; 2] = [0, 1];

/// What a node's status says about its pods' traffic.
pub(crate) fn traffic(cluster: &Cluster, node: usize) -> Result<Value, String> {
    Ok(cluster.testbed.nodes()[node].ask(&["status"]).map_err(|error| error.to_string())?["traffic"].take())
}

/// Waits until the status of these nodes says who carries the traffic.
pub(crate) fn wait_for_carrier(cluster: &mut Cluster, nodes: &[usize], carrier: &str) {
    for node in nodes {
        let what = format!("node {node} says that traffic is carried by: {carrier}");
        let waited = wait_for(&what, READY, || {
            Ok(match traffic(cluster, *node) {
                Ok(traffic) if traffic["carried_by"] == carrier => Ok(()),
                other => Err(format!("{other:?}")),
            })
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Starts a node's engine.
pub(crate) fn start_engine(cluster: &mut Cluster, node: usize) {
    let cores = share_of_cores(&sys::cores(), node, 1);
    cluster.testbed.node_mut(node).start_dataplane(&["--cores", &cores]).expect("the engine starts");
}

/// Stops a node's engine in order.
pub(crate) fn stop_engine(cluster: &mut Cluster, node: usize) {
    let lines = cluster.testbed.node_mut(node).stop_dataplane().unwrap_or_else(|error| panic!("{error}"));
    assert!(!lines.is_empty(), "the engine's last words speak of I1 and I2");
}
