//! The running cluster, and those who ask.

use crate::ground::{CLIENT, Ground, add_uplink_ip6};
use crate::plan::{Client, Outcome, Plan, Source};
use fairway_tests::netns::Netns;
use fairway_tests::pod::witness::{Answer, Question};
use fairway_tests::{Error, Result, dual_stack, engines};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Addresses of the station behind the router.
const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8:113::9"];
/// Last byte of those of the station on the nodes' subnet.
const ON_LINK: u8 = 8;
/// Where Services are, other than on nodes' addresses.
const RANGES: [&str; 4] = ["10.96.2.0/24", "198.51.100.0/23", "fd00:96::2:0/112", "2001:db8:51::/48"];
const DEADLINE: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(20);
/// Source ports of each client's batches are counted up from these, below those that kernel and engine choose.
const SOURCE_PORTS: [u16; 2] = [10_000, 25_000];

/// See the module's head.
pub(crate) struct Clients {
    on_link: Netns,
    ground: Ground,
}

impl Clients {
    /// Starts both nodes with the plan's Services.
    pub(crate) fn start(plan: &Plan) -> Result<Clients> {
        let ground = Ground::build()?;
        let on_link = Netns::create(&format!("{}-on-link", ground.testbed.name()))?;
        ground.testbed.join_switch(&on_link, Ipv4Addr::new(192, 168, 77, ON_LINK))?;
        add_uplink_ip6(&on_link, ON_LINK)?;
        for ip in OUTSIDE {
            ground.outside().ip(["addr", "add", ip, "dev", "lo"])?;
        }
        dual_stack::allow_ipv6(ground.outside(), &["lo"])?;
        for netns in [ground.outside(), &on_link] {
            for range in RANGES {
                let node = if range.contains(':') { "fd00:77::1" } else { "192.168.77.1" };
                netns.ip(["route", "add", range, "via", node])?;
            }
        }
        for node in ground.testbed.nodes() {
            // As Kubernetes wants its nodes.
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let set = format!("echo 1 > /proc/sys/net/{setting}");
                node.netns().run("sh", &["-c", &set], DEADLINE)?.success()?;
            }
        }
        let items: Vec<_> = plan.services.iter().flat_map(|service| service.objects()).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        ground.testbed.manifests().write("services", &list.to_string())?;
        let mut clients = Clients { on_link, ground };
        clients.ground.testbed.start_nodes(1)?;
        clients
            .ground
            .testbed
            .wait("both engines carry packets", READY, |testbed| engines::carry(testbed))?;
        Ok(clients)
    }

    fn netns(&self, client: Client) -> &Netns {
        match client {
            Client::Pod => self.ground.pod(CLIENT).netns(),
            Client::Host => self.ground.node(),
            Client::Outside => self.ground.outside(),
            Client::OnLink => &self.on_link,
        }
    }

    /// Asks a batch from one of the clients.
    pub(crate) fn ask(&self, client: Client, batch: usize, questions: &[Question]) -> Result<Vec<Answer>> {
        let file = self.ground.testbed.dir().join("questions.json");
        let text = serde_json::to_vec(questions).unwrap_or_default();
        std::fs::write(&file, text).map_err(Error::io(format!("write {}", file.display())))?;
        let (file, port) = (file.display().to_string(), SOURCE_PORTS[batch].to_string());
        let mut args = vec!["ask", &file, "--first-port", &port];
        if client == Client::Outside {
            OUTSIDE.iter().for_each(|ip| args.extend(["--from", ip]));
        }
        self.ground.testbed.client(self.netns(client), &args, DEADLINE)
    }

    /// What an answer says.
    pub(crate) fn outcome(&self, client: Client, answer: &Answer) -> Outcome {
        let Answer { attempts, backends, refused, silent, errors } = answer;
        match (*refused, *silent) {
            (0, 0) if !backends.is_empty() && errors.is_empty() => {
                let mut out = BTreeMap::new();
                for (at, seen) in backends {
                    let sources: BTreeSet<Source> = seen.iter().map(|ip| self.source(client, *ip)).collect();
                    let [source] = sources.into_iter().collect::<Vec<_>>()[..] else {
                        return Outcome::Mixed(format!("{answer:?}"));
                    };
                    out.insert(*at, source);
                }
                Outcome::Answered(out)
            }
            (refused, 0) if refused == *attempts => Outcome::Refused,
            (0, silent) if silent == *attempts => Outcome::Dropped,
            _ => Outcome::Mixed(format!("{answer:?}")),
        }
    }

    fn source(&self, client: Client, seen: IpAddr) -> Source {
        let parse = |list: &[&str]| list.iter().map(|ip| ip.parse().expect("an address")).collect();
        let nodes: Vec<IpAddr> = parse(&["192.168.77.1", "10.244.1.1", "fd00:77::1", "fd00:244:1::1"]);
        let clients: Vec<IpAddr> = match client {
            Client::Pod => self.ground.addresses_of(CLIENT).to_vec(),
            Client::Host => vec![],
            Client::Outside => parse(&OUTSIDE),
            Client::OnLink => parse(&["192.168.77.8", "fd00:77::8"]),
        };
        match (clients.contains(&seen), nodes.contains(&seen)) {
            (true, false) => Source::Clients,
            (false, true) => Source::Nodes,
            _ => Source::Another,
        }
    }

    /// What node-1's engine dropped, by reason.
    pub(crate) fn drops(&self) -> String {
        let counters = self.ground.testbed.nodes()[0].ask(&["counters"]);
        counters.map_or_else(|error| error.to_string(), |counters| counters["drops"].to_string())
    }

    /// Stops everything in order; the engines end well only if no frame is missing (I1) and every packet is
    /// accounted for (I2).
    pub(crate) fn stop(mut self) -> Result<()> {
        self.ground.expect_alive()?;
        for node in 0..self.ground.testbed.nodes().len() {
            self.ground.testbed.node_mut(node).stop_dataplane()?;
            self.ground.testbed.node_mut(node).stop_control()?;
        }
        Ok(())
    }
}
