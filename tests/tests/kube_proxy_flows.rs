//! kube-proxy's own packet flows (its unit tests of iptables mode) through all of Fairway but the packet I/O: manifests,
//! index, compiler, tables, `process()`. Needs the vectors folder (FAIRWAY_VECTORS).
//!
//! What differs on purpose is in [`DIFFERENCES`], each flow by its own name, and in docs/kube-proxy.md.

#[path = "kube_proxy_flows/case.rs"]
mod case;
#[path = "kube_proxy_flows/node.rs"]
mod node;

use case::{Case, Expected, Flow};
use fairway_tests::vectors;
use node::Node;
use std::collections::{BTreeMap, BTreeSet};

const FILE: &str = "kube_proxy_flows.jsonl";
const CASES: usize = 52;
const FLOWS: usize = 119;

/// Flow by test and name, what Fairway does instead, and why.
const DIFFERENCES: [(&str, &str, Outcome, &str); 3] = [
    (
        "TestNodePorts/ipv4,_localhost-nodeports_enabled",
        "localhost to nodePort gets masqueraded",
        Outcome::Untouched,
        "node ports do not answer on loopback addresses, as in kube-proxy's nftables mode",
    ),
    ("TestClusterIPGeneral", "TCP-only port does not match UDP traffic", Outcome::Refused, NO_SUCH_PORT),
    ("TestClusterIPGeneral", "svc1 does not accept svc2's ports", Outcome::Refused, NO_SUCH_PORT),
];
const NO_SUCH_PORT: &str = "other ports of a cluster address are refused, as in kube-proxy's nftables mode";

/// What became of all connections of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// They went to these backends, and the source was the node's, or the client's.
    Forwarded { backends: BTreeSet<std::net::SocketAddr>, masqueraded: bool },
    /// The client was told at once that nobody is there.
    Refused,
    /// The engine dropped them without a word.
    Dropped,
    /// They are no business of the service stage: their destination stays, or they never come to the engine.
    Untouched,
}

fn expected(flow: &Flow) -> Outcome {
    match &flow.expected {
        Expected::Backends(backends) => {
            Outcome::Forwarded { backends: backends.clone(), masqueraded: flow.masquerades }
        }
        Expected::Reject => Outcome::Refused,
        Expected::Drop => Outcome::Dropped,
        // The firewall lets a health check pass to whoever answers it on the node.
        Expected::Accept | Expected::NoService => Outcome::Untouched,
    }
}

#[test]
fn every_flow_of_kube_proxys_own_tests_comes_out_as_there() {
    let Some(path) = vectors::find(FILE) else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Case> = text.lines().map(Case::parse).collect();
    let flows = cases.iter().map(|case| case.flows.len()).sum::<usize>();
    assert_eq!((cases.len(), flows), (CASES, FLOWS));
    let (mut wrong, mut differing) = (Vec::new(), BTreeMap::new());
    for case in &cases {
        let mut node = Node::of(case);
        for flow in &case.flows {
            let outcome = node.outcome(flow);
            let known = DIFFERENCES.iter().find(|(test, name, ..)| *test == case.test && *name == flow.name);
            let wanted = known.map_or_else(|| expected(flow), |(_, _, instead, _)| instead.clone());
            if outcome != wanted {
                wrong.push(format!(
                    "{} (line {}), '{}': {outcome:?}, not {wanted:?}",
                    case.test, case.line, flow.name
                ));
            }
            if known.is_some() {
                assert_ne!(
                    outcome,
                    expected(flow),
                    "'{}' of {} does not differ any more",
                    flow.name,
                    case.test
                );
                differing.extend(known.map(|(.., why)| (flow.name.as_str(), *why)));
            }
            let has_check = node.answers_health_check(flow.target.port());
            assert_eq!(has_check, flow.expected == Expected::Accept, "'{}' of {}", flow.name, case.test);
        }
        node.finish();
    }
    assert!(wrong.is_empty(), "{} of {flows} flows:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(differing.len(), DIFFERENCES.len(), "a difference is listed that no flow has: {differing:?}");
    println!("{flows} flows of {CASES} states; differing on purpose: {differing:?}");
}
