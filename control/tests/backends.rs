//! Which endpoints of a Service get into the tables, from manifests on: conditions, `internalTrafficPolicy`, hints,
//! and what changes when this node's zone does.

mod common;

use fairway_control::core::Core;
use fairway_control::index::Facts;
use fairway_control::kernel::Update;
use fairway_tables::{Capacities, Ip, ServiceKey, Tables};

struct Cluster {
    core: Core,
    zone: &'static str,
    policy: &'static str,
}

impl Cluster {
    fn new(policy: &'static str) -> Cluster {
        let (writer, _) = Tables::heap(Capacities::default());
        let mut core = Core::new(common::options(std::path::Path::new("/nowhere")), writer);
        core.take(vec![], vec![Update::Listing(Facts::default(), vec![])]);
        Cluster { core, zone: "", policy }
    }

    /// Last byte of the addresses of the backends, given the slice's endpoints as YAML flow mappings.
    fn backends(&mut self, endpoints: &[&str]) -> Vec<u8> {
        let list: String = endpoints.iter().map(|endpoint| format!("- {endpoint}\n")).collect();
        self.backends_of(
            &common::slice("web-1", "web", &[]).replace("endpoints:\n", &format!("endpoints:\n{list}")),
        )
    }

    /// The same, given the whole slice.
    fn backends_of(&mut self, slice: &str) -> Vec<u8> {
        let service = common::service("web", "10.96.0.1", 80)
            .replace("  clusterIP:", &format!("  internalTrafficPolicy: {}\n  clusterIP:", self.policy));
        let node = common::node("a", "10.244.1.0/24", "192.0.2.1").replace(
            "{name: a}",
            &format!("{{name: a, labels: {{topology.kubernetes.io/zone: '{}'}}}}", self.zone),
        );
        let files = [("node.yaml", node), ("web.yaml", service + slice)];
        let scan = files.into_iter().map(|(name, text)| (name.to_owned(), Ok(text))).collect();
        self.core.take(vec![Ok(scan)], vec![]);
        assert_eq!(self.core.status().manifests.errors, Vec::<String>::new());
        let key = ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6);
        let view = self.core.publisher().view();
        view.service(&key).expect("the service is in the tables").backends().map(|b| b.ip.0[15]).collect()
    }
}

const READY: &str = "{addresses: [10.244.1.1], nodeName: a}";
const READY_FAR: &str = "{addresses: [10.244.2.2], nodeName: b}";
const STARTING: &str = "{addresses: [10.244.1.3], nodeName: a, conditions: {ready: false, serving: false}}";
const ENDING: &str =
    "{addresses: [10.244.1.4], nodeName: a, conditions: {ready: false, serving: true, terminating: true}}";
const ENDING_FAR: &str =
    "{addresses: [10.244.2.5], nodeName: b, conditions: {ready: false, serving: true, terminating: true}}";
const ENDED: &str =
    "{addresses: [10.244.2.6], nodeName: b, conditions: {ready: false, serving: false, terminating: true}}";

#[test]
fn terminating_endpoints_answer_only_when_no_ready_one_is_left() {
    let mut cluster = Cluster::new("Cluster");
    assert_eq!(cluster.backends(&[READY, READY_FAR, STARTING, ENDING, ENDED]), [1, 2]);
    assert_eq!(cluster.backends(&[STARTING, ENDING, ENDING_FAR, ENDED]), [4, 5]);
    assert_eq!(cluster.backends(&[STARTING, ENDED]), [0u8; 0]);
    assert_eq!(cluster.backends(&[READY_FAR, ENDING]), [2]);
}

#[test]
fn a_local_internal_policy_keeps_to_this_node() {
    let mut cluster = Cluster::new("Local");
    assert_eq!(cluster.backends(&[READY, READY_FAR]), [1]);
    assert_eq!(
        cluster.backends(&[READY_FAR, ENDING, ENDING_FAR]),
        [4],
        "its own terminating one before remote"
    );
    assert_eq!(cluster.backends(&[READY_FAR]), [0u8; 0]);
}

#[test]
fn hints_narrow_the_choice_to_this_zone_and_follow_it() {
    let hinted =
        |n: u8, zone: &str| format!("{{addresses: [10.244.2.{n}], hints: {{forZones: [{{name: {zone}}}]}}}}");
    let (a, b) = (hinted(7, "a"), hinted(8, "b"));
    let mut cluster = Cluster::new("Cluster");
    assert_eq!(cluster.backends(&[&a, &b]), [7, 8], "this node has no zone");
    cluster.zone = "a";
    assert_eq!(cluster.backends(&[&a, &b]), [7]);
    cluster.zone = "b";
    assert_eq!(cluster.backends(&[&a, &b]), [8]);
    assert_eq!(cluster.backends(&[&a, &b, READY_FAR]), [2, 7, 8], "one without a hint: none counts");
    cluster.zone = "c";
    assert_eq!(cluster.backends(&[&a, &b]), [7, 8], "no endpoint for this zone");
}

#[test]
fn hints_for_this_node_come_before_those_for_its_zone() {
    let hinted = |n: u8, node: &str| {
        format!(
            "{{addresses: [10.244.2.{n}], hints: {{forNodes: [{{name: {node}}}], forZones: [{{name: z}}]}}}}"
        )
    };
    let mut cluster = Cluster::new("Cluster");
    cluster.zone = "z";
    assert_eq!(cluster.backends(&[&hinted(7, "a"), &hinted(8, "b")]), [7]);
    assert_eq!(cluster.backends(&[&hinted(7, "c"), &hinted(8, "b")]), [7, 8]);
}

#[test]
fn an_endpoint_in_two_slices_is_used_once() {
    let mut cluster = Cluster::new("Cluster");
    assert_eq!(cluster.backends(&[READY, READY, ENDING]), [1]);
}

#[test]
fn of_one_address_twice_what_does_not_terminate_counts() {
    // A pod has got the address of one that is still terminating.
    let old = ENDING.replace("10.244.1.4", "10.244.1.1");
    let mut cluster = Cluster::new("Cluster");
    assert_eq!(cluster.backends(&[READY, &old, READY_FAR]), [1, 2]);
    assert_eq!(cluster.backends(&[&old, READY, READY_FAR]), [1, 2]);
}

#[test]
fn an_endpoint_counts_by_the_first_of_its_addresses() {
    let mut cluster = Cluster::new("Cluster");
    assert_eq!(cluster.backends(&[&READY.replace("[10.244.1.1]", "[10.244.1.1, 10.244.1.9]")]), [1]);
}

#[test]
fn slices_of_names_of_another_service_or_without_a_port_have_no_backends_for_this_one() {
    let mut cluster = Cluster::new("Cluster");
    let slice = common::slice("web-1", "web", &["10.244.1.1"]);
    assert_eq!(cluster.backends_of(&slice), [1]);
    let changed = |from: &str, to: &str| {
        assert!(slice.contains(from), "{from} is not in\n{slice}");
        slice.replace(from, to)
    };
    let names = changed("addressType: IPv4", "addressType: FQDN").replace("10.244.1.1", "pod.example");
    let others = changed("kubernetes.io/service-name: web", "kubernetes.io/service-name: other");
    for slice in [names, others, changed("port: 8080", "protocol: TCP")] {
        assert_eq!(cluster.backends_of(&slice), Vec::<u8>::new(), "{slice}");
    }
}

#[test]
fn an_unknown_policy_is_refused_by_name() {
    let text = common::service("web", "10.96.0.1", 80)
        .replace("  clusterIP:", "  internalTrafficPolicy: Nearby\n  clusterIP:");
    let mut folder = fairway_control::manifests::Folder::default();
    folder.update([("web.yaml".to_owned(), Ok(text))].into_iter().collect());
    let errors = folder.errors().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(errors[0].contains("spec.internalTrafficPolicy: 'Nearby' is not a traffic policy"), "{errors:?}");
}
