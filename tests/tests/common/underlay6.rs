//! IPv6 between the nodes of the dual-stack cluster.

use super::Cluster;
use super::dual_stack::{self, PORT};
use fairway_tests::dual_stack::allow_ipv6;
use fairway_tests::netns::Netns;
use fairway_tests::testbed::POD_PORT;
use std::fmt::Write as _;
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);

/// What node numbers are appended to.
pub(crate) const OVER_IPV4: &str = "192.168.77.";
pub(crate) const OVER_IPV6: &str = "fd00:77::";

/// Pools of both families with these modes and annotations.
pub(crate) fn pools(modes: &str, annotations: &str) -> String {
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: \
             {{cidr: '{cidr}', {modes}}}\n---\n"
        )
    };
    pool("four", "10.244.0.0/16") + &pool("six", "fd00:244::/32")
}

/// Flannel's configuration with networks of both families.
pub(crate) fn flannel(backend: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-flannel-cfg, namespace: kube-flannel}}\ndata:\n  \
         net-conf.json: |\n    {{\"Network\": \"10.244.0.0/16\", \"EnableIPv6\": true, \"IPv6Network\": \"fd00:244::/32\", \
         \"Backend\": {{\"Type\": \"{backend}\"}}}}\n"
    )
}

/// Gives a namespace on the switch an IPv6 address there.
pub(crate) fn join(netns: &Netns, number: u8) {
    allow_ipv6(netns, &["lo", "uplink0"]).expect("IPv6");
    let ip = format!("{OVER_IPV6}{number}/64");
    netns.ip(["addr", "add", &ip, "dev", "uplink0", "nodad"]).expect("address");
}

/// Gives each node an IPv6 address on the uplink.
pub(crate) fn give_addresses(cluster: &Cluster) {
    for (index, node) in cluster.testbed.nodes().iter().enumerate() {
        join(node.netns(), index as u8 + 1);
    }
}

/// Takes the nodes' IPv4 addresses away.
pub(crate) fn take_ipv4_away(cluster: &Cluster) {
    for node in cluster.testbed.nodes() {
        let ip = format!("{}/24", node.ip());
        node.netns().ip(["addr", "del", &ip, "dev", "uplink0"]).expect("address");
    }
}

/// A dual-stack node with these addresses between nodes.
pub(crate) fn node(name: &str, number: u8, addresses: &[&str], annotations: &str) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec:\n  podCIDRs: \
         [10.244.{number}.0/24, 'fd00:244:{number}::/64']\nstatus:\n  addresses:\n"
    );
    for address in addresses {
        let _ = writeln!(yaml, "  - {{type: InternalIP, address: '{address}{number}'}}");
    }
    yaml
}

/// Has the cluster's nodes be known by these addresses.
pub(crate) fn write_nodes(cluster: &Cluster, addresses: &[&str]) {
    for (index, of) in cluster.testbed.nodes().iter().enumerate() {
        let yaml = node(of.name(), index as u8 + 1, addresses, "");
        cluster.testbed.manifests().write(&format!("node-{}", of.name()), &yaml).expect("node");
    }
}

/// Waits until a node's routes to node `number`'s pods of both families are of this kind and encapsulation and lead to these
/// addresses, which answer.
pub(crate) fn wait_for_ways(
    cluster: &mut Cluster,
    from: usize,
    number: u8,
    (kind, encapsulation): (&str, Option<&str>),
    via: [&str; 2],
) {
    let what = format!("node {from} sends to pods of node {number} by {encapsulation:?} via {via:?}");
    let prefixes = [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")];
    let waited = cluster.testbed.wait(&what, READY, |testbed| {
        let node = &testbed.nodes()[from];
        let ask = |table: &str| node.ask(&[table]).map_err(|e| e.to_string());
        let (routes, neighbours) = (ask("routes")?, ask("neighbours")?);
        for (prefix, via) in prefixes.iter().zip(via) {
            let next_hop = format!("{via}{number}");
            let route = routes.as_array().and_then(|all| all.iter().find(|route| route["prefix"] == *prefix));
            let route = route.ok_or_else(|| format!("no route {prefix}: {routes}"))?;
            let right = route["kind"] == kind
                && route["encapsulation"].as_str() == encapsulation
                && route["next_hop"] == next_hop;
            let answers = neighbours.to_string().contains(&format!("\"{next_hop}\""));
            if !right || !answers {
                return Err(format!("{route}, neighbours {neighbours}"));
            }
        }
        Ok(())
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// Where a pod's servers listen, by IPv4 and by IPv6.
pub(crate) fn servers(cluster: &Cluster, name: &str) -> [String; 2] {
    let ip = cluster.testbed.pod(cluster.pod(name)).ip();
    [format!("{ip}:{POD_PORT}"), format!("[{}]:{PORT}", dual_stack::address(cluster, name))]
}
