//! Two worlds on the same ground: in one Fairway carries the packets, in the other the kernel does, by kube-proxy's
//! rules.

use crate::ground::{Asker, Ground, OUTSIDE_IPS};
use crate::state::State;
use fairway_tests::kube::apiserver::SERVICE_CIDRS;
use fairway_tests::kube::{ApiServer, KubeProxy, Programs};
use fairway_tests::pod::witness::{Answer, Question};
use fairway_tests::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:244::/32";
const DEADLINE: Duration = Duration::from_secs(30);
/// Source ports go round in this range, below those that the kernel gives away. Those that somebody on the node listens at (kube-proxy itself
/// does, and health checks) are passed over.
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..56_000;
/// Most source ports that the questions of one state take.
const STATE_PORTS: u16 = 10_000;
/// No port comes again sooner: a kernel remembers UDP for 30 s, and for as long sends what comes from that port to the backend of
/// then. (It tells a new TCP connection from an old one.)
const ROUND: Duration = Duration::from_secs(40);

/// What forwards.
enum Forwarder {
    Fairway { started: bool },
    Kernel { api: Box<ApiServer>, proxy: Option<KubeProxy>, programs: Programs },
}

/// One of the two worlds.
pub(crate) struct World {
    // Its processes before the namespaces that they are in.
    forwarder: Forwarder,
    pub(crate) ground: Ground,
    next_port: u16,
    round_began: Instant,
}

impl World {
    /// The world of Fairway, which starts with the first state.
    pub(crate) fn fairway() -> Result<World> {
        let ground = Ground::build()?;
        ground.let_nodes_forward()?;
        Ok(World::on(ground, Forwarder::Fairway { started: false }))
    }

    /// The world of the kernel, in which kube-proxy starts with the first state.
    pub(crate) fn kernel(programs: &Programs) -> Result<World> {
        let ground = Ground::build()?;
        ground.forward()?;
        let api = Box::new(ApiServer::start(programs, ground.node(), ground.testbed.dir())?);
        Ok(World::on(ground, Forwarder::Kernel { api, proxy: None, programs: programs.clone() }))
    }

    fn on(ground: Ground, forwarder: Forwarder) -> World {
        World { forwarder, ground, next_port: SOURCE_PORTS.start, round_began: Instant::now() }
    }

    /// Brings a state about and waits until all of it is in force. Returns the objects as an API server holds them;
    /// Fairway's world takes these over as they are.
    pub(crate) fn hold(&mut self, state: &State, held: &[Value]) -> Result<Vec<Value>> {
        let node = self.ground.node();
        let held = match &mut self.forwarder {
            Forwarder::Kernel { api, proxy, programs } => {
                let held = api.hold(node, &[&state.objects, &state.sentinel])?;
                if proxy.is_none() {
                    *proxy = Some(KubeProxy::start(programs, api, node, "node-1", CLUSTER_CIDRS)?);
                }
                held
            }
            Forwarder::Fairway { started } => {
                // The nodes are in files of their own.
                let items: Vec<&Value> = held.iter().filter(|object| object["kind"] != "Node").collect();
                let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
                self.ground.testbed.manifests().write("state", &list.to_string())?;
                if !std::mem::replace(started, true) {
                    // kube-proxy reads them from the API server.
                    let ranges = SERVICE_CIDRS.split(',').flat_map(|range| ["--service-cidr", range]);
                    let ranges: Vec<&str> = ranges.collect();
                    for node in 0..self.ground.testbed.nodes().len() {
                        self.ground.testbed.node_mut(node).set_control_options(&ranges);
                    }
                    self.ground.testbed.start_nodes(1)?;
                }
                Vec::new()
            }
        };
        self.wait_for(state)?;
        Ok(held)
    }

    /// Waits until the sentinel of a state answers as it does in this state only.
    fn wait_for(&mut self, state: &State) -> Result<()> {
        let questions = state.sentinel_questions();
        let end = Instant::now() + DEADLINE;
        loop {
            let answers = self.ask(&questions)?;
            let right = |answer: &Answer| {
                answer.refused + answer.silent == 0
                    && answer.backends.keys().all(|at| at.port() == state.sentinel_port())
            };
            // Fairway takes in a folder as a whole, but service by service: only its own list says that all are in.
            if answers.iter().all(right) && self.lists(state)? {
                return Ok(());
            }
            self.expect_alive()?;
            if Instant::now() > end {
                return Err(Error::Timeout {
                    what: format!("state {} is in force", state.number),
                    waited_ms: DEADLINE.as_millis() as u64,
                    last: format!("{answers:?}"),
                });
            }
        }
    }

    /// Whether Fairway's control lists the sentinel of a state; the kernel has no such list.
    fn lists(&self, state: &State) -> Result<bool> {
        if let Forwarder::Kernel { .. } = self.forwarder {
            return Ok(true);
        }
        let services = self.ground.testbed.nodes()[0].ask(&["services"])?;
        let listed = services.as_array().into_iter().flatten().filter(|service| {
            service["port"] == state.sentinel_questions()[0].target.port()
                && service["backends"][0]["port"] == state.sentinel_port()
        });
        Ok(listed.count() == 2)
    }

    /// Asks the witnesses behind some addresses from everywhere at once.
    pub(crate) fn ask_all(&mut self, questions: &[Question]) -> Result<BTreeMap<Asker, Vec<Answer>>> {
        let (world, first_port) = (&*self, self.next_port);
        let answers: Result<BTreeMap<Asker, Vec<Answer>>> = std::thread::scope(|scope| {
            let ask = |asker| scope.spawn(move || world.ask_from(asker, questions, first_port));
            let asked = Asker::ALL.map(|asker| (asker, ask(asker)));
            let joined = asked.into_iter().map(|(asker, thread)| {
                Ok((asker, thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?))
            });
            joined.collect()
        });
        let answers = answers?;
        self.go_on_after(answers.values().flatten());
        Ok(answers)
    }

    /// Asks from the pod.
    fn ask(&mut self, questions: &[Question]) -> Result<Vec<Answer>> {
        let answers = self.ask_from(Asker::Pod, questions, self.next_port)?;
        self.go_on_after(&answers);
        Ok(answers)
    }

    fn ask_from(&self, asker: Asker, questions: &[Question], first_port: u16) -> Result<Vec<Answer>> {
        let file = self.ground.testbed.dir().join(format!("questions-{asker:?}.json"));
        let text = serde_json::to_vec(questions).unwrap_or_default();
        std::fs::write(&file, text).map_err(Error::io(format!("write {}", file.display())))?;
        let (file, port) = (file.display().to_string(), first_port.to_string());
        let mut args = vec!["ask", &file, "--first-port", &port];
        if asker == Asker::Outside {
            OUTSIDE_IPS.iter().for_each(|ip| args.extend(["--from", ip]));
        }
        self.ground.testbed.client(self.ground.netns_of(asker), &args, DEADLINE)
    }

    /// Leaves the source ports of these attempts alone for a round.
    fn go_on_after<'a>(&mut self, answers: impl IntoIterator<Item = &'a Answer>) {
        let last = answers.into_iter().map(|answer| answer.last_port).max().unwrap_or(self.next_port);
        let used = last - self.next_port;
        assert!(used < STATE_PORTS, "{used} attempts from one asker: more than STATE_PORTS");
        self.next_port = last + 1;
        if self.next_port > SOURCE_PORTS.end - STATE_PORTS {
            std::thread::sleep(ROUND.saturating_sub(self.round_began.elapsed()));
            (self.next_port, self.round_began) = (SOURCE_PORTS.start, Instant::now());
        }
    }

    fn expect_alive(&mut self) -> Result<()> {
        self.ground.expect_alive()?;
        match &mut self.forwarder {
            Forwarder::Kernel { proxy: Some(proxy), .. } => proxy.expect_alive(),
            _ => Ok(()),
        }
    }

    /// Stops everything in order; Fairway's engines end well only if no frame is missing (I1) and every packet is
    /// accounted for (I2).
    pub(crate) fn stop(mut self) -> Result<()> {
        for node in 0..self.ground.testbed.nodes().len() {
            self.ground.testbed.node_mut(node).stop_dataplane()?;
            self.ground.testbed.node_mut(node).stop_control()?;
        }
        Ok(())
    }
}
