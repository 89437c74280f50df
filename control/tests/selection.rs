//! The choice of endpoints: kube-proxy's own cases, and every combination of two endpoints against the rules as
//! sentences. Needs the vectors folder for the former (FAIRWAY_VECTORS).

use fairway_control::selection::{Candidate, Hint, Policies, Selection, select};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;

#[path = "../../tests/src/vectors.rs"]
mod vectors;

const FILE: &str = "kube_proxy_endpoint_selection.jsonl";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    name: String,
    #[serde(deserialize_with = "null_is_empty")]
    endpoints: Vec<Endpoint>,
    expect: Expected,
    computed: Computed,
    node_labels: Option<std::collections::BTreeMap<String, String>>,
    node_name: String,
    prefer_same_traffic_distribution: bool,
    service: Service,
}

fn null_is_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Endpoint>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    endpoint: String,
    is_local: bool,
    node_hints: Option<Vec<String>>,
    zone_hints: Option<Vec<String>>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

#[derive(Deserialize)]
struct Expected {
    cluster: Option<Vec<String>>,
    local: Option<Vec<String>>,
    all: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Computed {
    has_any_endpoints: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    external_policy_local: bool,
    internal_policy_local: bool,
    node_port: u16,
}

impl Case {
    fn candidate(&self, endpoint: &Endpoint) -> Candidate {
        let zone = self.node_labels.as_ref().and_then(|l| l.get("topology.kubernetes.io/zone"));
        // Without the feature of that name kube-proxy does not see the hints for nodes.
        let nodes = endpoint.node_hints.as_deref().filter(|_| self.prefer_same_traffic_distribution);
        Candidate {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.is_local,
            node_hint: Hint::seen(nodes.unwrap_or_default(), &self.node_name),
            zone_hint: Hint::seen(
                endpoint.zone_hints.as_deref().unwrap_or_default(),
                zone.map_or("", String::as_str),
            ),
        }
    }
}

#[test]
fn endpoints_are_chosen_as_kube_proxy_chooses() {
    let Some(path) = vectors::find(FILE) else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Case> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(cases.len(), 32);
    for case in &cases {
        let candidates: Vec<Candidate> = case.endpoints.iter().map(|e| case.candidate(e)).collect();
        let policies = Policies {
            internal_local: case.service.internal_policy_local,
            external_local: case.service.external_policy_local,
            external: case.service.node_port != 0,
        };
        let selection = select(&candidates, policies);
        let names = |places: &[usize]| -> BTreeSet<&str> {
            places.iter().map(|place| case.endpoints[*place].endpoint.as_str()).collect()
        };
        let check = |what: &str, found: BTreeSet<&str>, expected: &Option<Vec<String>>| {
            // Null: nothing of the kind is used by this service, or not looked at by the case.
            if let Some(expected) = expected {
                let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
                assert_eq!(found, expected, "{what} of '{}'", case.name);
            }
        };
        check("cluster", names(&selection.cluster), &case.expect.cluster);
        check("local", names(&selection.local), &case.expect.local);
        let all: BTreeSet<&str> = &names(&selection.cluster) | &names(&selection.local);
        check("all", all, &case.expect.all);
        assert_eq!(selection.anywhere, case.computed.has_any_endpoints, "'{}'", case.name);
        assert!(policies.use_cluster() || case.expect.cluster.is_none(), "'{}'", case.name);
    }
}

const HINTS: [Hint; 3] = [Hint::Absent, Hint::Elsewhere, Hint::Here];

/// Every endpoint that there can be.
fn universe() -> Vec<Candidate> {
    let mut all = Vec::new();
    for bits in 0..16u32 {
        for node_hint in HINTS {
            for zone_hint in HINTS {
                let bit = |n: u32| bits >> n & 1 == 1;
                let (ready, serving, terminating, local) = (bit(0), bit(1), bit(2), bit(3));
                all.push(Candidate { ready, serving, terminating, local, node_hint, zone_hint });
            }
        }
    }
    all
}

fn policies() -> impl Iterator<Item = Policies> {
    (0..8u32).map(|bits| Policies {
        internal_local: bits & 1 != 0,
        external_local: bits & 2 != 0,
        external: bits & 4 != 0,
    })
}

/// The rules, each as one sentence about the result.
fn check_rules(pair: &[Candidate; 2], policies: Policies, selection: &Selection) {
    let in_cluster = |n: usize| selection.cluster.contains(&n);
    let in_local = |n: usize| selection.local.contains(&n);
    let usable = |c: &Candidate| c.ready || (c.serving && c.terminating);
    let any_ready = pair.iter().any(|c| c.ready);
    let local_ready = pair.iter().any(|c| c.ready && c.local);
    let hinted = |hint: fn(&Candidate) -> Hint| {
        pair.iter().filter(|c| c.ready).all(|c| hint(c) != Hint::Absent)
            && pair.iter().any(|c| c.ready && hint(c) == Hint::Here)
    };
    let by_node = hinted(|c| c.node_hint);
    let by_zone = !by_node && hinted(|c| c.zone_hint);
    assert_eq!(selection.anywhere, pair.iter().any(usable));
    for (n, c) in pair.iter().enumerate() {
        let expected_cluster = policies.use_cluster()
            && if any_ready {
                c.ready && (!by_node || c.node_hint == Hint::Here) && (!by_zone || c.zone_hint == Hint::Here)
            } else {
                c.serving && c.terminating
            };
        assert_eq!(in_cluster(n), expected_cluster, "cluster of {pair:?} under {policies:?}");
        let expected_local =
            policies.use_local() && c.local && if local_ready { c.ready } else { c.serving && c.terminating };
        assert_eq!(in_local(n), expected_local, "local of {pair:?} under {policies:?}");
    }
    // What the table of a cluster address is filled from: never empty while the policy could be served.
    if policies.use_cluster() {
        assert_eq!(selection.cluster.is_empty(), !pair.iter().any(usable));
    }
}

#[test]
fn every_pair_of_endpoints_under_every_policy_follows_the_rules() {
    let universe = universe();
    assert_eq!(universe.len(), 144);
    for a in &universe {
        for b in &universe {
            for policies in policies() {
                let pair = [*a, *b];
                check_rules(&pair, policies, &select(&pair, policies));
            }
        }
    }
}

#[test]
fn no_endpoints_give_an_empty_choice() {
    for policies in policies() {
        assert_eq!(select(&[], policies), Selection::default());
    }
}
