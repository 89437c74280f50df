//! Connections and counts as they are printed.

use super::filter::state_name;
use super::names::{Names, protocol_name};
use super::{CountBy, FlowsError, Format};
use crate::table;
use fairway_dataplane::Now;
use fairway_dataplane::conntrack::Connection;
use fairway_tables::Ip;
use serde::Serialize;
use std::collections::BTreeMap;

/// One end of a connection.
#[derive(Serialize, Debug, PartialEq)]
pub(super) struct End {
    ip: String,
    port: u16,
    /// Namespace and name, if it is a pod of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
}

impl End {
    fn new(ip: Ip, port: u16, names: &Names) -> End {
        End { ip: ip.to_string(), port, pod: names.pod(ip).map(str::to_owned) }
    }

    fn address(&self) -> String {
        if self.ip.contains(':') {
            format!("[{}]:{}", self.ip, self.port)
        } else {
            format!("{}:{}", self.ip, self.port)
        }
    }
}

/// A connection as programs get it.
#[derive(Serialize, Debug, PartialEq)]
pub(super) struct Flow {
    proto: String,
    source: End,
    /// What the source sends to.
    destination: End,
    /// What answers: differs from the destination where it is translated.
    backend: End,
    /// As whom the answering side sees the source, where that is translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_as: Option<End>,
    /// The node that the connection is left to, which chooses the backend and alone sees what it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<String>,
    /// Namespace and name of the service at the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    state: &'static str,
    /// Whether packets have come back.
    replied: bool,
    /// Seconds since its last packet, give or take four.
    idle_s: u32,
    /// Seconds since its first packet.
    age_s: u32,
    /// Its place in the table.
    place: u32,
}

impl Flow {
    pub(super) fn new(connection: &Connection, names: &Names, now: Now) -> Flow {
        let [original, reply] = &connection.tuples;
        let since = |second: u32| (now.seconds.wrapping_sub(second) as i32).max(0) as u32;
        Flow {
            proto: protocol_name(original.proto),
            source: End::new(original.src, original.sport, names),
            destination: End::new(original.dst, original.dport, names),
            backend: End::new(reply.src, reply.sport, names),
            seen_as: ((reply.dst, reply.dport) != (original.src, original.sport))
                .then(|| End::new(reply.dst, reply.dport, names)),
            via: connection.via.map(|via| via.addr.to_string()),
            service: service_of(connection, names),
            state: state_name(connection.state),
            replied: connection.replied,
            idle_s: since(connection.last_seen_s),
            age_s: since(connection.created_s),
            place: connection.conn.index,
        }
    }

    fn row(&self, wide: bool) -> Vec<String> {
        let translated = self.backend.address() != self.destination.address();
        let backend = match &self.via {
            Some(node) => format!("via {node}"),
            None if translated => self.backend.address(),
            None => String::new(),
        };
        let state = if self.replied || self.via.is_some() {
            self.state.to_owned()
        } else {
            format!("{}, no reply", self.state)
        };
        let seen_as = self.seen_as.as_ref().map(End::address).unwrap_or_default();
        let (source, destination) = (self.source.address(), self.destination.address());
        let mut row = vec![self.proto.clone(), source, destination, backend, seen_as, state];
        row.push(format!("{} s", self.idle_s));
        if wide {
            row.push(format!("{} s", self.age_s));
            row.push(self.source.pod.clone().unwrap_or_default());
            row.push(self.service.clone().unwrap_or_default());
            row.push(self.backend.pod.clone().unwrap_or_default());
            row.push(self.place.to_string());
        }
        row
    }
}

fn service_of(connection: &Connection, names: &Names) -> Option<String> {
    let original = &connection.tuples[0];
    names.service(&(original.dst, original.dport, original.proto)).map(str::to_owned)
}

pub(super) fn flows(flows: &[Flow], format: Format) -> Result<(), FlowsError> {
    let wide = format == Format::Wide;
    let mut header = vec!["proto", "source", "destination", "backend", "seen as", "state", "idle"];
    if wide {
        header.extend(["age", "source pod", "service", "backend pod", "place"]);
    }
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(flows)?),
        _ => table::print(&header, &flows.iter().map(|flow| flow.row(wide)).collect::<Vec<_>>()),
    }
    Ok(())
}

/// How many connections there are of something.
#[derive(Serialize, Debug, PartialEq)]
pub(super) struct Count {
    /// A pod, a service, or protocol and state.
    name: String,
    /// All of them.
    connections: u64,
    /// Those that the pod began.
    #[serde(skip_serializing_if = "Option::is_none")]
    begun: Option<u64>,
    /// Those that it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    served: Option<u64>,
}

/// Counts connections; most first.
pub(super) fn count(
    connections: impl Iterator<Item = Connection>,
    count_by: CountBy,
    names: &Names,
) -> Vec<Count> {
    let mut counts: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for connection in connections {
        let [original, reply] = &connection.tuples;
        let mut add = |name: String, begun: bool, served: bool| {
            let count = counts.entry(name).or_default();
            count[0] += 1;
            count[1] += u64::from(begun);
            count[2] += u64::from(served);
        };
        match count_by {
            CountBy::Pod => {
                // Without control's names, a pod is its address.
                let name = |ip: Ip| names.pod(ip).map_or_else(|| ip.to_string(), str::to_owned);
                let (source, backend) = (name(original.src), name(reply.src));
                let itself = source == backend;
                add(source, true, itself);
                if !itself {
                    add(backend, false, true);
                }
            }
            CountBy::Service => {
                add(service_of(&connection, names).unwrap_or_else(|| "(none)".to_owned()), false, false);
            }
            CountBy::State => {
                let protocol = protocol_name(original.proto);
                add(format!("{protocol} {}", state_name(connection.state)), false, false);
            }
        }
    }
    let of_pods = count_by == CountBy::Pod;
    let count = |(name, [connections, begun, served]): (String, [u64; 3])| Count {
        name,
        connections,
        begun: of_pods.then_some(begun),
        served: of_pods.then_some(served),
    };
    let mut counts: Vec<Count> = counts.into_iter().map(count).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.connections));
    counts
}

pub(super) fn counts(counts: &[Count], count_by: CountBy, format: Format) -> Result<(), FlowsError> {
    if format == Format::Json {
        println!("{}", serde_json::to_string_pretty(counts)?);
        return Ok(());
    }
    let header: &[&str] = match count_by {
        CountBy::Pod => &["pod", "connections", "begun", "served"],
        CountBy::Service => &["service", "connections"],
        CountBy::State => &["state", "connections"],
    };
    let row = |count: &Count| {
        let numbers = [Some(count.connections), count.begun, count.served];
        let numbers = numbers.into_iter().flatten().map(|number| number.to_string());
        std::iter::once(count.name.clone()).chain(numbers).collect()
    };
    table::print(header, &counts.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::{connection, names};
    use super::*;
    use fairway_tables::{NextHop, NextHopKind, PortId};

    #[test]
    fn a_flow_shows_addresses_names_and_times() {
        let flow = Flow::new(&connection(), &names(), Now { seconds: 170 });
        let expected =
            ["tcp", "10.244.1.10:40000", "10.96.0.80:80", "10.244.2.12:8080", "", "established", "10 s"];
        assert_eq!(flow.row(false), expected);
        assert_eq!(flow.row(true)[7..], ["70 s", "shop/client", "shop/web", "", "5"]);
        let json = serde_json::to_value(&flow).unwrap();
        assert_eq!(json["source"]["pod"], "shop/client");
        assert_eq!((&json["service"], &json["backend"]["port"]), (&"shop/web".into(), &8080.into()));
        assert_eq!(json.get("seen_as"), None, "its source is its own");
        let mut translated = connection();
        translated.tuples[1].dst = Ip::v4([10, 244, 1, 1]);
        translated.tuples[1].dport = 61_234;
        let flow = Flow::new(&translated, &names(), Now { seconds: 170 });
        assert_eq!(flow.row(false)[4], "10.244.1.1:61234");
        let mut forwarded = connection();
        forwarded.tuples[1] = forwarded.tuples[0].reversed();
        forwarded.via = Some(NextHop::new(NextHopKind::Tunnel, Ip::v4([192, 168, 77, 2]), PortId::NONE));
        forwarded.replied = false;
        let flow = Flow::new(&forwarded, &names(), Now { seconds: 170 });
        assert_eq!(flow.row(false)[3..6], ["via 192.168.77.2", "", "established"]);
        assert_eq!(serde_json::to_value(&flow).unwrap()["via"], "192.168.77.2");
        let plain = Flow::new(&connection(), &Names::default(), Now { seconds: 100 });
        assert_eq!((plain.service, plain.idle_s), (None, 0), "seen later than now is no age");
    }

    #[test]
    fn counts_name_both_ends_of_a_connection() {
        let both = || [connection(), connection()].into_iter();
        let by = |count_by| count(both(), count_by, &names());
        let pods: Vec<_> = by(CountBy::Pod).into_iter().map(|c| (c.name, c.begun, c.served)).collect();
        assert_eq!(
            pods,
            [("10.244.2.12".into(), Some(0), Some(2)), ("shop/client".to_string(), Some(2), Some(0))]
        );
        assert_eq!(by(CountBy::Service)[0].name, "shop/web");
        assert_eq!(by(CountBy::State)[0].name, "tcp established");
        assert_eq!(by(CountBy::State)[0].connections, 2);
    }
}
