//! One line of the vectors: a cluster's state, kube-proxy's configuration, and flows.

use fairway_control::index::NodePortAddresses;
use fairway_tables::Prefix;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// What kube-proxy does with a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Expected {
    /// Sends it to one of these.
    Backends(BTreeSet<SocketAddr>),
    /// Refuses it.
    Reject,
    /// Drops it.
    Drop,
    /// Lets it pass to the node itself.
    Accept,
    /// Has no rule for it.
    NoService,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) name: String,
    pub(crate) protocol: u8,
    pub(crate) source: IpAddr,
    pub(crate) target: SocketAddr,
    pub(crate) expected: Expected,
    /// Whether backends must see an address of the node.
    pub(crate) masquerades: bool,
}

/// One state.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) test: String,
    pub(crate) line: String,
    pub(crate) node: String,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) node_port_addresses: NodePortAddresses,
    /// Services and EndpointSlices.
    pub(crate) objects: Vec<Value>,
    pub(crate) flows: Vec<Flow>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn parsed<T: std::str::FromStr>(value: &Value) -> T {
    text(value).parse().unwrap_or_else(|_| panic!("{value} does not parse"))
}

fn list(value: &Value) -> &[Value] {
    // Go writes an empty list as null.
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Case {
    pub(crate) fn parse(line: &str) -> Case {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let config = &line["config"];
        assert_eq!(config["masquerade_all"], false, "Fairway has no such setting");
        assert_eq!(config["topology_labels"], Value::Null, "no state has zones");
        let ranges = text(&config["nodeport_addresses"]);
        let ranges = ranges.trim_matches(['[', ']']).split_whitespace();
        let ranges: Vec<Prefix> = ranges.map(|range| range.parse().expect("a range")).collect();
        let mut objects = Vec::new();
        let kinds =
            [("services", "v1", "Service"), ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice")];
        for (field, version, kind) in kinds {
            for object in list(&line[field]) {
                let mut object = object.clone();
                (object["apiVersion"], object["kind"]) = (version.into(), kind.into());
                objects.push(object);
            }
        }
        Case {
            test: text(&line["test"]),
            line: text(&line["line"]),
            node: text(&config["node_name"]),
            node_ips: list(&config["node_ips"]).iter().map(parsed).collect(),
            node_port_addresses: NodePortAddresses::In(ranges),
            objects,
            flows: list(&line["flows"]).iter().map(flow).collect(),
        }
    }

    /// Addresses of all endpoints.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let endpoints = self.objects.iter().flat_map(|object| list(&object["endpoints"]));
        endpoints.map(|endpoint| parsed(&endpoint["addresses"][0]))
    }
}

fn flow(flow: &Value) -> Flow {
    let expected = match text(&flow["expect"]).as_str() {
        "REJECT" => Expected::Reject,
        "DROP" => Expected::Drop,
        "ACCEPT" => Expected::Accept,
        "" => Expected::NoService,
        backends => {
            Expected::Backends(backends.split(", ").map(|one| one.parse().expect("a backend")).collect())
        }
    };
    let protocol = match text(&flow["proto"]).as_str() {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        other => panic!("protocol {other}"),
    };
    let port = flow["dport"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    Flow {
        name: text(&flow["name"]),
        protocol,
        source: parsed(&flow["src"]),
        target: SocketAddr::new(parsed(&flow["dst"]), port),
        expected,
        masquerades: flow["masq"].as_bool().expect("masq"),
    }
}
