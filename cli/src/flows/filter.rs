//! Which connections are meant.

use super::FlowsError;
use super::names::{Names, ServiceAddress, protocol};
use clap::Args;
use fairway_dataplane::conntrack::{Connection, State};
use fairway_tables::Ip;
use std::net::IpAddr;

/// What is given on the command line. All that is given must hold.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct FilterArgs {
    /// Connections of a pod of this node: NAME or NAMESPACE/NAME
    #[arg(long)]
    pub(super) pod: Option<String>,
    /// Connections begun to a service: NAME or NAMESPACE/NAME
    #[arg(long)]
    pub(super) service: Option<String>,
    /// Connections with this address at either end
    #[arg(long)]
    pub(super) ip: Option<IpAddr>,
    /// Connections with this port at either end
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// Connections of a protocol: tcp, udp, icmp, sctp, or a number
    #[arg(long, value_parser = parse_protocol)]
    pub(super) proto: Option<u8>,
    /// Connections in a state: new, syn-received, established, fin-wait, time-wait, closed
    #[arg(long, value_parser = parse_state)]
    pub(super) state: Option<State>,
}

const STATES: [(State, &str); 6] = [
    (State::New, "new"),
    (State::SynReceived, "syn-received"),
    (State::Established, "established"),
    (State::FinWait, "fin-wait"),
    (State::TimeWait, "time-wait"),
    (State::Closed, "closed"),
];

/// The name of a state.
pub(super) fn state_name(state: State) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("free", |(_, name)| name)
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    protocol(text).ok_or_else(|| "not a protocol; use tcp, udp, icmp, sctp, or a number below 256".to_owned())
}

fn parse_state(text: &str) -> Result<State, String> {
    let found = STATES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    let names = STATES.map(|(_, name)| name).join(", ");
    found.map(|(state, _)| *state).ok_or_else(|| format!("not a state; use one of {names}"))
}

impl FilterArgs {
    /// Whether everything matches.
    pub(super) fn is_empty(&self) -> bool {
        let FilterArgs { pod, service, ip, port, proto, state } = self;
        pod.is_none()
            && service.is_none()
            && ip.is_none()
            && port.is_none()
            && proto.is_none()
            && state.is_none()
    }

    pub(super) fn needs_names(&self) -> bool {
        self.pod.is_some() || self.service.is_some()
    }
}

/// A filter whose names are resolved.
pub(super) struct Filter {
    pods: Option<Vec<Ip>>,
    services: Option<Vec<ServiceAddress>>,
    ip: Option<Ip>,
    port: Option<u16>,
    proto: Option<u8>,
    state: Option<State>,
}

impl Filter {
    pub(super) fn new(args: &FilterArgs, names: &Names) -> Result<Filter, FlowsError> {
        let pods = args.pod.as_ref().map(|name| match names.pods_called(name).collect::<Vec<_>>() {
            none if none.is_empty() => Err(FlowsError::NoSuchPod(name.clone())),
            pods => Ok(pods),
        });
        let services =
            args.service.as_ref().map(|name| match names.services_called(name).collect::<Vec<_>>() {
                none if none.is_empty() => Err(FlowsError::NoSuchService(name.clone())),
                services => Ok(services),
            });
        Ok(Filter {
            pods: pods.transpose()?,
            services: services.transpose()?,
            ip: args.ip.map(Ip::from),
            port: args.port,
            proto: args.proto,
            state: args.state,
        })
    }

    pub(super) fn matches(&self, connection: &Connection) -> bool {
        let [original, reply] = &connection.tuples;
        let addresses = [original.src, original.dst, reply.src, reply.dst];
        let ports = [original.sport, original.dport, reply.sport, reply.dport];
        let service = (original.dst, original.dport, original.proto);
        self.pods.as_ref().is_none_or(|pods| pods.iter().any(|pod| addresses.contains(pod)))
            && self.services.as_ref().is_none_or(|services| services.contains(&service))
            && self.ip.is_none_or(|ip| addresses.contains(&ip))
            && self.port.is_none_or(|port| ports.contains(&port))
            && self.proto.is_none_or(|proto| proto == original.proto)
            && self.state.is_none_or(|state| state == connection.state)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use fairway_control::api::types;
    use fairway_dataplane::conntrack::{ConnRef, Tuple};
    use fairway_dataplane::wire::proto;

    pub(crate) fn names() -> Names {
        let endpoint = |namespace: &str, pod: &str, ip: &str| types::Endpoint {
            ip: ip.to_owned(),
            mac: String::new(),
            port: 2,
            ifname: String::new(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
        };
        let service = serde_json::json!({
            "namespace": "shop", "name": "web", "port_name": "", "ip": "10.96.0.80", "port": 80,
            "protocol": "TCP", "id": 3, "affinity_timeout_s": 0,
            "external": false, "masquerade": false, "balancer": "random", "forwarding": "nat", "source_ranges": [],
            "backends": [], "local_backends": null
        });
        let service = serde_json::from_value(service).expect("a service as the API gives it");
        let pods = [
            ("shop", "client", "10.244.1.10"),
            ("shop", "web-1", "10.244.1.11"),
            ("test", "client", "10.244.1.20"),
        ];
        Names::new(pods.map(|(namespace, pod, ip)| endpoint(namespace, pod, ip)).to_vec(), vec![service])
    }

    /// client → web at a backend on another node.
    pub(crate) fn connection() -> Connection {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
        let original = Tuple {
            src: ip("10.244.1.10"),
            dst: ip("10.96.0.80"),
            sport: 40_000,
            dport: 80,
            proto: proto::TCP,
        };
        let reply = Tuple { dst: ip("10.244.2.12"), dport: 8080, ..original }.reversed();
        Connection {
            conn: ConnRef { index: 5, generation: 2 },
            tuples: [original, reply],
            state: State::Established,
            replied: true,
            service: Some(3),
            via: None,
            created_s: 100,
            last_seen_s: 160,
        }
    }

    fn matches(change: impl FnOnce(&mut FilterArgs)) -> bool {
        let mut args = FilterArgs::default();
        change(&mut args);
        Filter::new(&args, &names()).unwrap().matches(&connection())
    }

    #[test]
    fn each_filter_lets_through_what_it_names_and_nothing_else() {
        assert!(matches(|_| {}));
        assert!(matches(|f| f.pod = Some("client".into())), "in any namespace");
        assert!(matches(|f| f.pod = Some("shop/client".into())));
        assert!(!matches(|f| f.pod = Some("test/client".into())));
        assert!(!matches(|f| f.pod = Some("web-1".into())));
        assert!(matches(|f| f.service = Some("shop/web".into())));
        for (text, expected) in [("10.244.2.12", true), ("10.96.0.80", true), ("10.244.2.13", false)] {
            assert_eq!(matches(|f| f.ip = Some(text.parse().unwrap())), expected, "{text}");
        }
        for (port, expected) in [(80, true), (8080, true), (40_000, true), (81, false)] {
            assert_eq!(matches(|f| f.port = Some(port)), expected, "{port}");
        }
        assert!(matches(|f| f.proto = Some(proto::TCP)));
        assert!(!matches(|f| f.proto = Some(proto::UDP)));
        assert!(matches(|f| f.state = Some(State::Established)));
        assert!(!matches(|f| f.state = Some(State::New)));
        assert!(!matches(|f| (f.port, f.state) = (Some(80), Some(State::New))), "all must hold");
    }

    #[test]
    fn names_that_nobody_has_are_refused() {
        let refused = |args: FilterArgs| Filter::new(&args, &names()).err().map(|error| error.to_string());
        let pod = refused(FilterArgs { pod: Some("nobody".into()), ..FilterArgs::default() });
        assert!(pod.is_some_and(|text| text.contains("fairway endpoints")));
        let service = refused(FilterArgs { service: Some("shop".into()), ..FilterArgs::default() });
        assert!(service.is_some_and(|text| text.contains("fairway services")));
        assert!(parse_state("open").is_err() && parse_protocol("256").is_err());
    }
}
