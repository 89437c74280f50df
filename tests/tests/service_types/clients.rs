//! The running cluster, and those who ask.

use crate::ground::{Asker, Ground, NODE_IPS, OUTSIDE_IPS};
use crate::plan::{Client, Outcome, Plan, Source};
use fairway_tests::netns::Netns;
use fairway_tests::pod::witness::{Answer, Question};
use fairway_tests::{Error, Result, engines};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Last byte of the addresses of the station on the nodes' subnet.
const ON_LINK: u8 = 8;
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
        let on_link = ground.add_on_link(ON_LINK)?;
        ground.let_nodes_forward()?;
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
        match client.asker() {
            Some(asker) => self.ground.netns_of(asker),
            None => &self.on_link,
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
            OUTSIDE_IPS.iter().for_each(|ip| args.extend(["--from", ip]));
        }
        self.ground.testbed.client(self.netns(client), &args, DEADLINE)
    }

    /// What an answer says.
    pub(crate) fn outcome(&self, client: Client, answer: &Answer) -> Outcome {
        let Answer { attempts, backends, refused, silent, errors, .. } = answer;
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
        let nodes: Vec<IpAddr> = parse(&NODE_IPS);
        let clients: Vec<IpAddr> = match client {
            // As a node's, they say enough.
            Client::Host => vec![],
            Client::OnLink => parse(&["192.168.77.8", "fd00:77::8"]),
            Client::Pod => self.ground.ips_of(Asker::Pod),
            Client::Outside => self.ground.ips_of(Asker::Outside),
        };
        match (clients.contains(&seen), nodes.contains(&seen)) {
            (true, false) => Source::Clients,
            (false, true) => Source::Nodes,
            _ => Source::Another,
        }
    }

    /// What a load balancer outside is told on a port of node-1 over each family: status and body.
    pub(crate) fn health(&self, port: u16) -> Result<Vec<(u16, Value)>> {
        let ask = |node: &str| {
            let url = format!("http://{node}:{port}/healthz");
            let args = ["-sS", "-g", "-m", "5", "-w", "\\n%{http_code}", &url];
            let output = self.ground.netns_of(Asker::Outside).run("curl", &args, DEADLINE)?;
            let (command, said) = (output.command.clone(), output.success()?);
            let answer =
                |(body, status): (&str, &str)| Some((status.parse().ok()?, serde_json::from_str(body).ok()?));
            let answer = said.rsplit_once('\n').and_then(answer);
            answer.ok_or_else(|| Error::Answer { what: command, reason: said.clone() })
        };
        [NODE_IPS[0].to_owned(), format!("[{}]", NODE_IPS[2])].iter().map(|node| ask(node)).collect()
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
