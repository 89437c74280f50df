//! The state of a running control process: sources' state, index and publisher, behind one short-held lock. Still
//! without I/O but for the tables themselves, so that tests can drive it.

use crate::fallback::Traffic;
use crate::health::HealthChecks;
use crate::index::{
    Config, DirectRoutes, Event, FallbackPlan, HostPlan, Index, KernelEvent, NodePortAddresses,
};
use crate::kernel::{NeighbourTrust, Prober, Update, fallback};
use crate::manifests::{Folder, Look, Scan};
use crate::masquerade::NatOptions;
use crate::model::Key;
use crate::object::{Kind, Object};
use crate::publisher::Publisher;
use crate::room::DEFAULT_MAX_MIB;
use fairway_tables::{ApplyError, Ip, Prefix, ServiceKey, Writer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How a control process was asked to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the tables and sockets are.
    pub run_dir: PathBuf,
    /// This node's name.
    pub node: String,
    /// The folder of manifests.
    pub manifests: PathBuf,
    /// The uplink's device name, if it is not to be found by the node's address.
    pub uplink: Option<String>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Whether the maximum segment size in TCP's SYNs is lowered to what their way takes.
    pub clamp_mss: bool,
    /// Ranges that hold all service addresses; without them each address gets a route.
    pub service_cidrs: Vec<Prefix>,
    /// How many ports the tables hold.
    pub max_ports: u32,
    /// How large the file of tables may become, in bytes.
    pub max_tables_bytes: u64,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// What is translated, and how.
    pub nat: NatOptions,
    /// Whether the kernel is kept ready to carry pod traffic while the engine does not run.
    pub kernel_fallback: bool,
    /// Who knows the way to pods that are reached without encapsulation.
    pub direct_routes: DirectRoutes,
}

impl Options {
    /// What a control process without manifests, uplink and kernel is asked: the defaults of the command line, in
    /// tables with that many ports.
    pub fn alone(run_dir: &Path, node: &str, max_ports: u32) -> Options {
        Options {
            run_dir: run_dir.to_owned(),
            node: node.to_owned(),
            manifests: PathBuf::new(),
            uplink: None,
            vni: 4096,
            vxlan_port: 4789,
            clamp_mss: false,
            service_cidrs: Vec::new(),
            max_ports,
            max_tables_bytes: DEFAULT_MAX_MIB << 20,
            node_port_addresses: NodePortAddresses::default(),
            nat: NatOptions::default(),
            kernel_fallback: false,
            direct_routes: DirectRoutes::Nodes,
        }
    }
}

/// See the module's head.
pub struct Core {
    options: Options,
    started: Instant,
    index: Index,
    publisher: Publisher,
    folder: Folder,
    objects_listed: bool,
    kernel_listed: bool,
    /// Changes that wait for the first look at every source.
    held_back: BTreeSet<Key>,
    prober: Prober,
    /// What is wrong now, by who says so.
    errors: BTreeMap<&'static str, String>,
    /// Raised when something that we put into the kernel changed under us.
    host_epoch: u64,
    /// Whether the host plan may have changed since it was last asked for.
    plan_is_old: bool,
    /// Whether health checks may have another answer since they were last asked for.
    checks_are_old: bool,
    /// Raised when the plan of the fallback may have changed.
    fallback_epoch: u64,
    node_ports: BTreeSet<ServiceKey>,
    traffic: Traffic,
    /// Pod ranges of other nodes that the kernel would not reach.
    not_carried: BTreeSet<Prefix>,
}

impl Core {
    /// Takes over the tables; nothing is written before every source was read once.
    pub fn new(options: Options, writer: Writer) -> Core {
        let publisher = Publisher::new(writer, options.max_tables_bytes);
        let config = Config {
            node: options.node.clone(),
            uplink: options.uplink.clone(),
            vni: options.vni,
            vxlan_port: options.vxlan_port,
            clamp_mss: options.clamp_mss,
            max_ports: options.max_ports,
            service_cidrs: options.service_cidrs.clone(),
            node_port_addresses: options.node_port_addresses.clone(),
            nat: options.nat.clone(),
            direct_routes: options.direct_routes,
        };
        Core {
            index: Index::new(config, publisher.published()),
            options,
            started: Instant::now(),
            publisher,
            folder: Folder::default(),
            objects_listed: false,
            kernel_listed: false,
            held_back: BTreeSet::new(),
            prober: Prober::default(),
            errors: BTreeMap::new(),
            host_epoch: 0,
            plan_is_old: true,
            checks_are_old: true,
            fallback_epoch: 0,
            node_ports: BTreeSet::new(),
            traffic: Traffic::default(),
            not_carried: BTreeSet::new(),
        }
    }

    /// Takes in what the manifests folder and the kernel said, and brings the tables in line.
    pub fn take(&mut self, scans: Vec<Scan>, updates: Vec<Update>) {
        let mut touched = std::mem::take(&mut self.held_back);
        for update in updates {
            self.update(update, &mut touched);
        }
        // What was seen before the last look at the whole folder does not count.
        let last = scans.iter().rposition(|scan| matches!(scan, Ok(Look::Whole(_))));
        for scan in scans.into_iter().skip(last.unwrap_or(0)) {
            self.scan(scan, &mut touched);
        }
        self.publish(touched);
    }

    /// Takes in objects from a source that says itself what changed, such as a watch. Its first call must bring all
    /// that the source lists: what the tables hold beyond that is then dropped.
    pub fn take_objects(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut touched = std::mem::take(&mut self.held_back);
        for event in events {
            self.apply(event, &mut touched);
        }
        self.objects_listed = true;
        self.publish(touched);
    }

    /// Whether there are other node ports now; their backends concern nobody here.
    fn note_node_ports(&mut self, touched: &BTreeSet<Key>) -> bool {
        let mut changed = false;
        for key in touched {
            if let Key::Service(service) = key
                && [ServiceKey::NODE_PORTS, ServiceKey::NODE_PORTS6].contains(&service.ip)
            {
                changed |= match self.index.model().contains_key(key) {
                    true => self.node_ports.insert(*service),
                    false => self.node_ports.remove(service),
                };
            }
        }
        changed
    }

    fn publish(&mut self, touched: BTreeSet<Key>) {
        if !(self.objects_listed && self.kernel_listed) {
            self.held_back = touched;
            return;
        }
        let concerns_fallback = |key: &Key| !matches!(key, Key::Service(_) | Key::Neighbour(_));
        if self.note_node_ports(&touched) || touched.iter().any(concerns_fallback) {
            self.fallback_epoch += 1;
        }
        self.publisher.publish(self.index.model(), touched);
        // Objects of a broken file may be what an earlier run's entries came from: these stay until it is mended.
        if !self.folder.has_errors() {
            let freed = self.index.release_unclaimed();
            if !freed.is_empty() {
                self.publisher.publish(self.index.model(), freed.into_iter().map(|(key, _)| key));
            }
            self.publisher.drop_leftovers(self.index.model());
        }
    }

    /// Tries again what the tables refused.
    pub fn retry(&mut self) {
        if !self.publisher.refused().is_empty() {
            self.publisher.retry(self.index.model());
        }
    }

    fn apply(&mut self, event: Event, touched: &mut BTreeSet<Key>) {
        self.plan_is_old |=
            concerns_host_plan(&event) || self.index.has_enis() && !matches!(event, Event::Kernel(_));
        self.checks_are_old |= concerns_health_checks(&event);
        touched.extend(self.index.apply(event).into_iter().map(|(key, _)| key));
    }

    fn scan(&mut self, scan: Scan, touched: &mut BTreeSet<Key>) {
        let look = match scan {
            Ok(look) => look,
            Err(error) => return self.set_error("manifests", Some(error.to_string())),
        };
        self.set_error("manifests", None);
        let before = self.folder.errors();
        let events = self.folder.look(look);
        for error in self.folder.errors().iter().filter(|e| !before.contains(e)) {
            tracing::error!("{error}; the file's earlier objects stay in force");
        }
        if !events.is_empty() {
            tracing::info!(objects = events.len(), "manifests changed");
        }
        for event in events {
            self.apply(event, touched);
        }
        self.objects_listed = true;
    }

    fn update(&mut self, update: Update, touched: &mut BTreeSet<Key>) {
        match update {
            Update::Listing(facts, trusts) => {
                self.prober.replace(&trusts);
                for event in self.index.facts().events_to(&facts) {
                    self.kernel_event(event, touched);
                }
                self.kernel_listed = true;
            }
            Update::Event(event) => self.kernel_event(event, touched),
            Update::OursGone => {
                self.host_epoch += 1;
                self.plan_is_old = true;
            }
            Update::Trust(ifindex, ip, trust) => {
                self.prober.note(ifindex, ip, trust);
                // What nobody needs is forgotten with the kernel; what is needed is asked for again.
                if trust == NeighbourTrust::Unknown && !self.index.is_next_hop(ifindex, ip) {
                    self.kernel_event(KernelEvent::Neighbour(ifindex, ip, None), touched);
                }
            }
        }
    }

    fn kernel_event(&mut self, event: KernelEvent, touched: &mut BTreeSet<Key>) {
        let is_ours =
            |i: u32| self.index.facts().links.get(&i).is_some_and(|link| fallback::rests_on(&link.name));
        match &event {
            KernelEvent::LinkGone(ifindex) | KernelEvent::AddressGone(ifindex, _) if is_ours(*ifindex) => {
                self.host_epoch += 1;
            }
            KernelEvent::Link(link) if fallback::is_tunnel(&link.name) => self.host_epoch += 1,
            _ => {}
        }
        self.apply(Event::Kernel(event), touched);
    }

    /// The neighbours that the kernel should be asked for now, and on which link.
    pub fn neighbours_due(&mut self, now: Instant) -> Vec<(u32, Ip)> {
        self.prober.due(now, self.index.next_hops())
    }

    /// What the node's own network needs, and a number that changes when it must be looked at again.
    pub fn host_plan(&self) -> Option<(HostPlan, u64)> {
        Some((self.index.host_plan(&self.options.service_cidrs)?, self.host_epoch))
    }

    /// As [`Core::host_plan`], if something happened since the last call that may have changed it: working it out
    /// goes through the whole cluster.
    pub fn new_host_plan(&mut self) -> Option<Option<(HostPlan, u64)>> {
        std::mem::take(&mut self.plan_is_old).then(|| self.host_plan())
    }

    /// The health checks to answer.
    pub fn health_checks(&self) -> HealthChecks {
        let addresses = self.index.node_port_ips().map(Into::into).collect();
        HealthChecks { addresses, by_port: self.index.health_checks() }
    }

    /// As [`Core::health_checks`], if something happened since the last call that may have changed them.
    pub fn new_health_checks(&mut self) -> Option<HealthChecks> {
        std::mem::take(&mut self.checks_are_old).then(|| self.health_checks())
    }

    /// What the kernel needs so that it can do without the engine; `None` before every source was read once.
    pub fn fallback_plan(&self) -> Option<FallbackPlan> {
        if self.objects_listed && self.kernel_listed { self.index.fallback_plan() } else { None }
    }

    /// A number that changes when the fallback's plan may have changed, or what it made is gone.
    pub fn fallback_epoch(&self) -> u64 {
        self.fallback_epoch + self.host_epoch
    }

    /// Who carries the pods' traffic.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Notes who carries the pods' traffic.
    pub fn set_traffic(&mut self, traffic: Traffic) {
        self.traffic = traffic;
    }

    /// The pod ranges of other nodes that the kernel does not reach in the engine's place.
    pub fn not_carried(&self) -> &BTreeSet<Prefix> {
        &self.not_carried
    }

    /// Notes which pod ranges these are.
    pub fn set_not_carried(&mut self, ranges: BTreeSet<Prefix>) {
        self.not_carried = ranges;
    }

    /// Notes what is wrong in some part, or that it is no more.
    pub fn set_error(&mut self, part: &'static str, error: Option<String>) {
        match error {
            Some(error) if self.errors.get(part) != Some(&error) => {
                tracing::error!("{error}");
                self.errors.insert(part, error);
            }
            Some(_) => {}
            None => drop(self.errors.remove(part)),
        }
    }

    /// Everything that is wrong now, manifests apart.
    pub fn errors(&self) -> Vec<String> {
        let mut out: Vec<String> = self.errors.values().cloned().collect();
        out.extend(self.left_out());
        out
    }

    /// For each table that refused entries: why, and which objects they belong to.
    fn left_out(&self) -> Vec<String> {
        let mut objects: BTreeMap<&str, (String, BTreeSet<String>)> = BTreeMap::new();
        for (key, error) in self.publisher.refused() {
            let reason = match error {
                ApplyError::Full { table, capacity, .. } => {
                    let why_not = self.publisher.room().why_not(table);
                    format!("table {table} is full with {capacity} entries and cannot grow, {why_not}")
                }
                other => other.to_string(),
            };
            let (_, names) = objects.entry(error.table()).or_insert((reason, BTreeSet::new()));
            names.insert(
                self.index.claimant(key).unwrap_or_else(|| "what an object that is gone left".into()),
            );
        }
        let ports: BTreeSet<String> = self.index.without_port().map(|pod| pod.to_string()).collect();
        if !ports.is_empty() {
            let (ports_there, why_not) = (self.options.max_ports, self.publisher.room().why_not("ports"));
            let reason = format!("table ports is full with {ports_there} entries and cannot grow, {why_not}");
            objects.entry("ports").or_insert((reason, BTreeSet::new())).1.extend(ports);
        }
        objects
            .into_values()
            .map(|(reason, names)| format!("{reason}; left out: {}", some_of(&names)))
            .collect()
    }

    /// How it was asked to run.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// When it started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The publisher.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// The manifests folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }
}

/// The first of these names, and how many more there are.
fn some_of(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Whether the plan for the node's own network may follow another after this event: it speaks of nodes' pod ranges,
/// service addresses, the uplink and the host veth.
fn concerns_host_plan(event: &Event) -> bool {
    match event {
        Event::Upsert(object) => matches!(object, Object::Node(_) | Object::Service(_) | Object::NodeEnis(_)),
        Event::Delete(key) => matches!(key.kind, Kind::Node | Kind::Service | Kind::NodeEnis),
        Event::Kernel(event) => !matches!(
            event,
            KernelEvent::Route(..)
                | KernelEvent::RouteGone(..)
                | KernelEvent::Routes(..)
                | KernelEvent::Neighbour(..)
        ),
    }
}

/// Whether health checks may be answered otherwise after this event.
fn concerns_health_checks(event: &Event) -> bool {
    match event {
        Event::Upsert(object) => {
            matches!(object, Object::Node(_) | Object::Service(_) | Object::EndpointSlice(_))
        }
        Event::Delete(key) => matches!(key.kind, Kind::Node | Kind::Service | Kind::EndpointSlice),
        Event::Kernel(event) => {
            matches!(
                event,
                KernelEvent::Address(..) | KernelEvent::AddressGone(..) | KernelEvent::LinkGone(_)
            )
        }
    }
}

/// The core, shared between the main loop and the API.
#[derive(Clone)]
pub struct SharedCore(Arc<Mutex<Core>>);

impl SharedCore {
    /// Shares a core.
    pub fn new(core: Core) -> SharedCore {
        SharedCore(Arc::new(Mutex::new(core)))
    }

    /// The core; never hold it across an await. A panic elsewhere does not take the API down with it.
    pub fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
