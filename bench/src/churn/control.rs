//! Control's parts in a process of their own: full sync, restart by difference, and single changes until a reader sees
//! them. Objects go through conversion, index, compiler and publisher into a tables file, as from any source.

use super::cluster::{Cluster, Member, SLICE_ENDPOINTS, upsert};
use super::witness::{Expect, Witness};
use super::{Choices, ChurnError, Times, status_mib};
use crate::pktgen::cores::on_generator_core;
use fairway_control::core::{Core, Options};
use fairway_control::index::Event;
use fairway_control::object::{Kind, ObjectKey};
use fairway_control::{convert, services};
use fairway_tables::{Capacities, Ip, Writer};
use fairway_tests::report::Figure;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

/// How often nodes and services come and go, for every ten changes of endpoints.
const OTHERS: usize = 10;

fn core(dir: &Path, cluster: Cluster) -> Result<Core, ChurnError> {
    let capacities = Capacities::default();
    let options = Options::alone(dir, &Cluster::node_name(0), capacities.ports);
    let mut core = Core::new(options, Writer::open(dir, capacities)?);
    core.take(Vec::new(), vec![cluster.kernel()]);
    Ok(core)
}

fn entries(core: &Core) -> usize {
    core.publisher().published().len()
}

/// Full sync, restart, then `changes` changes of endpoints and a tenth of other changes.
///
/// # Errors
/// See [`ChurnError`]; [`ChurnError::Broken`] if a restart rewrites entries or a change writes more than it should.
pub fn run(dir: &Path, cluster: Cluster, changes: usize) -> Result<Vec<Figure>, ChurnError> {
    let params = serde_json::json!({ "nodes": cluster.nodes });
    let figure = |case: &str, metric: &str, value: f64, unit: &str| {
        Figure::new(case, params.clone(), metric, value, unit)
    };
    let begin = Instant::now();
    let mut synced = core(dir, cluster)?;
    synced.take_objects(cluster.events());
    let mut figures = vec![
        figure("full_sync", "wall_s", begin.elapsed().as_secs_f64(), "s"),
        figure("full_sync", "control_peak_rss_mib", status_mib("self", "VmHWM"), "MiB"),
        figure("full_sync", "control_anon_rss_mib", status_mib("self", "RssAnon"), "MiB"),
        figure("full_sync", "entries", entries(&synced) as f64, "1"),
    ];
    check_complete(&synced, cluster)?;
    let file = std::fs::metadata(dir.join("tables")).map_err(ChurnError::io("examine the tables"))?;
    figures.push(figure("tables", "file_mib", file.len() as f64 / f64::from(1 << 20), "MiB"));
    figures.push(figure("tables", "used_mib", file.blocks() as f64 * 512.0 / f64::from(1 << 20), "MiB"));
    drop(synced);

    let begin = Instant::now();
    let mut core = core(dir, cluster)?;
    let generation = core.publisher().view().generation();
    core.take_objects(cluster.events());
    figures.push(figure("restart", "wall_s", begin.elapsed().as_secs_f64(), "s"));
    let rewritten = core.publisher().view().generation() - generation;
    figures.push(figure("restart", "batches_written", rewritten as f64, "1"));
    if rewritten != 0 {
        return Err(ChurnError::Broken(format!("a restart wrote {rewritten} batches instead of none")));
    }
    let mut bench = Changes::new(core, cluster, Witness::start(dir)?);
    on_generator_core(|| bench.run(changes))?;
    figures.extend(bench.figures(&params));
    figures.push(figure("reader", "rss_tables_mib", status_mib("self", "RssFile"), "MiB"));
    Ok(figures)
}

fn check_complete(core: &Core, cluster: Cluster) -> Result<(), ChurnError> {
    let view = core.publisher().view();
    let backends: usize = view.services().map(|(_, service)| service.backends().count()).sum();
    let ports = view.services().filter(|(key, _)| key.is_port()).count();
    let seen = (ports, view.tunnels().count());
    let wanted = (cluster.services(), cluster.nodes - 1);
    let refused = core.publisher().refused().len();
    if seen != wanted || backends < cluster.pods() / 2 || refused > 0 {
        let what = format!("{seen:?} services and tunnels, {backends} backends, {refused} entries refused");
        return Err(ChurnError::Broken(format!("a full sync gave {what}; {wanted:?} were due")));
    }
    Ok(())
}

/// What the changes are made on, and what they took.
struct Changes {
    core: Core,
    cluster: Cluster,
    witness: Witness,
    choices: Choices,
    /// The endpoints of the services that were changed so far.
    members: std::collections::BTreeMap<usize, Vec<Member>>,
    small: Times,
    large: Times,
    node: Times,
    service: Times,
    /// Entries written by changes of endpoints.
    written: usize,
}

impl Changes {
    fn new(core: Core, cluster: Cluster, witness: Witness) -> Changes {
        Changes {
            core,
            cluster,
            witness,
            choices: Choices::new(0x5eed),
            members: std::collections::BTreeMap::new(),
            small: Times::default(),
            large: Times::default(),
            node: Times::default(),
            service: Times::default(),
            written: 0,
        }
    }

    fn run(&mut self, changes: usize) -> Result<(), ChurnError> {
        for number in 0..changes {
            let large = self.cluster.large_services();
            let small = self.cluster.services() - large;
            // A fifth of the changes concern the few large services.
            let is_large = number % 5 == 4;
            let service =
                if is_large { self.choices.below(large) } else { large + self.choices.below(small) };
            let time = self.change_endpoint(service)?;
            if is_large {
                self.large.add(time)
            } else {
                self.small.add(time)
            }
            if number % OTHERS == 0 {
                self.come_and_go()?;
            }
        }
        Ok(())
    }

    /// Turns an endpoint ready or not ready, removes it, or puts it back.
    fn change_endpoint(&mut self, service: usize) -> Result<std::time::Duration, ChurnError> {
        let cluster = self.cluster;
        let original = cluster.members(service);
        let pick = self.choices.below(original.len());
        let (part, pod) = (pick / SLICE_ENDPOINTS, original[pick].pod);
        let members = self.members.entry(service).or_insert_with(|| original.clone());
        let present = members.iter().position(|member| member.pod == pod);
        let appears = match present {
            Some(place) if !members[place].ready => {
                members[place].ready = true;
                true
            }
            Some(place) if self.choices.below(2) == 0 => {
                members[place].ready = false;
                false
            }
            Some(place) => {
                members.remove(place);
                false
            }
            None => {
                members.push(Member { pod, ready: true });
                true
            }
        };
        let first = original[part * SLICE_ENDPOINTS].pod;
        let in_slice: Vec<Member> = members
            .iter()
            .filter(|member| (first..first + SLICE_ENDPOINTS).contains(&member.pod))
            .copied()
            .collect();
        // What a watch hands over: the whole slice, parsed.
        let slice = cluster.slice(service, part, &in_slice);
        let expect = Expect::Backend(Cluster::service_key(service), Ip::v4(Cluster::pod_ip(pod)), appears);
        let core = &mut self.core;
        let generation = core.publisher().view().generation();
        let time =
            self.witness.time(expect, || core.take_objects([upsert(convert::endpoint_slice(&slice))]))?;
        let batches = core.publisher().view().generation() - generation;
        let entries = core.publisher().last_change().map_or(0, |change| change.entries);
        if (batches, entries) != (1, 1) {
            let what = format!("{batches} batches, the last of {entries} entries");
            return Err(ChurnError::Broken(format!("one endpoint's change wrote {what}")));
        }
        self.written += entries;
        Ok(time)
    }

    /// Lets a node join and leave, and a service with its endpoints go and come back.
    fn come_and_go(&mut self) -> Result<(), ChurnError> {
        let cluster = self.cluster;
        let core = &mut self.core;
        let new = cluster.nodes;
        let tunnel =
            |there| Expect::Tunnel(Ip::v4(Cluster::pod_ip(new * super::cluster::PODS_PER_NODE)), there);
        let node = cluster.node(new);
        self.node.add(self.witness.time(tunnel(true), || core.take_objects([upsert(convert::node(&node))]))?);
        let gone = Event::Delete(ObjectKey::new(Kind::Node, "", &Cluster::node_name(new)));
        self.node.add(self.witness.time(tunnel(false), || core.take_objects([gone]))?);

        let service =
            cluster.large_services() + self.choices.below(cluster.services() - cluster.large_services());
        let key = Cluster::service_key(service);
        let name = super::cluster::service_name(service);
        let gone = Event::Delete(ObjectKey::new(Kind::Service, "default", &name));
        let time = self.witness.time(Expect::Service(key, false), || core.take_objects([gone]))?;
        self.service.add(time);
        let back = cluster.service(service);
        let time = self.witness.time(Expect::Service(key, true), || {
            core.take_objects([upsert(services::service(&back))]);
        })?;
        self.service.add(time);
        Ok(())
    }

    fn figures(&self, params: &serde_json::Value) -> Vec<Figure> {
        let mut endpoints = Times::default();
        endpoints.extend(&self.small);
        endpoints.extend(&self.large);
        let written = self.written as f64 / endpoints.len().max(1) as f64;
        let mut figures = endpoints.figures("endpoint_change", params);
        figures.push(Figure::new("endpoint_change", params.clone(), "entries_per_change", written, "1"));
        figures.extend(self.small.figures("endpoint_change_small_service", params));
        figures.extend(self.large.figures("endpoint_change_1000_backends", params));
        figures.extend(self.node.figures("node_change", params));
        figures.extend(self.service.figures("service_change", params));
        figures
    }
}
