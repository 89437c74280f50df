//! `fairway status`, `routes`, `services` and the other questions to the control process of this node.

use crate::table;
use clap::{Args, Subcommand, ValueEnum};
use fairway_control::api::client::{ClientError, get_blocking};
use fairway_control::api::types;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::ExitCode;

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// Columns for people.
    Table,
    /// The API's own answer, for programs.
    Json,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct QueryArgs {
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Questions to fairway-control.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Query {
    /// How the node is: objects, pending things, errors, table usage, dataplane.
    Status(QueryArgs),
    /// The routing table.
    Routes(QueryArgs),
    /// Services and their backends.
    Services(QueryArgs),
    /// Pods of this node that are connected.
    Endpoints(QueryArgs),
    /// Resolved next hops on the uplink.
    Neighbours(QueryArgs),
    /// Tunnels to the other nodes.
    Tunnels(QueryArgs),
    /// Ports of the engine.
    Ports(QueryArgs),
    /// Packets, drops by reason and cost per stage.
    Counters(QueryArgs),
}

/// Asks, prints, and says why if there is no answer.
pub(crate) fn run(query: &Query, run_dir: &Path) -> ExitCode {
    let result = match query {
        Query::Status(args) => ask(run_dir, "/status", args, status),
        Query::Routes(args) => ask(run_dir, "/routes", args, routes),
        Query::Services(args) => ask(run_dir, "/services", args, services),
        Query::Endpoints(args) => ask(run_dir, "/endpoints", args, endpoints),
        Query::Neighbours(args) => ask(run_dir, "/neighbours", args, neighbours),
        Query::Tunnels(args) => ask(run_dir, "/tunnels", args, tunnels),
        Query::Ports(args) => ask(run_dir, "/ports", args, ports),
        Query::Counters(args) => ask(run_dir, "/counters", args, counters),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask<T: Serialize + DeserializeOwned>(
    run_dir: &Path,
    page: &str,
    args: &QueryArgs,
    show: fn(T),
) -> Result<(), ClientError> {
    let answer: T = get_blocking(run_dir, page)?;
    match args.output {
        Format::Table => show(answer),
        Format::Json => {
            let text = serde_json::to_string_pretty(&answer);
            println!("{}", text.map_err(|error| ClientError::Json { page: page.to_owned(), error })?);
        }
    }
    Ok(())
}

fn status(status: types::Status) {
    let dataplane = match &status.dataplane {
        d if d.error.is_some() => format!("not known: {}", d.error.as_deref().unwrap_or_default()),
        d if !d.alive => format!("not running (last: {}, process {})", d.state, d.pid),
        d => format!("{}, process {}, {} workers", d.state, d.pid, d.workers),
    };
    let uplink = status.uplink.as_ref().map_or("not found".to_owned(), |u| {
        format!("{} ({}, MTU {}; pods {})", u.ifname, u.mac, u.mtu, status.pod_mtu)
    });
    let objects: Vec<String> = status.objects.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let ignored: Vec<String> =
        status.manifests.ignored.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let changed = status.last_change.as_ref().map_or(String::new(), |last| {
        format!(", {} entries changed {:.1} s ago in {} µs", last.entries, last.ago_s, last.took_us)
    });
    println!("node        {}", status.node);
    println!("control     {}, up {} s", status.version, status.uptime_s);
    println!("dataplane   {dataplane}");
    println!("traffic     {}", traffic(&status.traffic));
    println!("uplink      {uplink}");
    println!("tables      generation {}{changed}", status.generation);
    println!("manifests   {} ({} files)", status.manifests.folder, status.manifests.files);
    println!("objects     {}", objects.join(", "));
    if !ignored.is_empty() {
        println!("not read    {}", ignored.join(", "));
    }
    println!();
    let usage = status.tables.iter().filter(|t| t.used > 0 || t.retired > 0 || t.left_out > 0);
    let rows = usage.map(|t| {
        let numbers = [t.used, t.capacity, t.retired, t.left_out].map(|number| number.to_string());
        [vec![t.table.clone()], numbers.to_vec()].concat()
    });
    table::print(&["table", "used", "capacity", "retired", "left out"], &rows.collect::<Vec<_>>());
    for (title, lines) in [
        ("warnings", status.warnings.clone()),
        ("pending", status.pending.iter().map(|p| format!("{}: {}", p.what, p.reason)).collect::<Vec<_>>()),
        ("errors", status.errors.iter().chain(&status.manifests.errors).cloned().collect()),
    ] {
        println!("\n{title}: {}", lines.len());
        lines.iter().for_each(|line| println!("  {line}"));
    }
}

/// Who carries the pods' traffic, and what that means for them.
fn traffic(traffic: &types::Traffic) -> String {
    let text = match traffic.carried_by.as_str() {
        "engine" => "carried by the engine".to_owned(),
        "kernel" => format!(
            "the engine is not running: the kernel carries pod-to-pod traffic (no Services: {}; no NetworkPolicy)",
            traffic.services
        ),
        _ => "the engine is not running and the kernel fallback is off: pod traffic is dropped".to_owned(),
    };
    let except = match traffic.not_carried.as_slice() {
        [] => String::new(),
        ranges => format!("; not to {}", ranges.join(", ")),
    };
    format!("{text}{except}, for {} s", traffic.for_s)
}

fn routes(routes: Vec<types::Route>) {
    let row = |r: types::Route| {
        let text = Option::unwrap_or_default;
        let weight = r.weight.map(|weight| weight.to_string());
        vec![r.prefix, r.kind, text(r.encapsulation), text(r.next_hop), text(weight), text(r.node)]
    };
    let header = ["prefix", "kind", "encapsulation", "next hop", "weight", "node"];
    table::print(&header, &routes.into_iter().map(row).collect::<Vec<_>>());
}

fn services(services: Vec<types::Service>) {
    let mut rows = Vec::new();
    for s in services {
        let name = format!("{}/{}", s.namespace, s.name);
        let name = if s.port_name.is_empty() { name } else { format!("{name}:{}", s.port_name) };
        let local = s.local_backends.as_deref().unwrap_or_default();
        let backends = s.backends.iter().map(|b| {
            let mark = if local.contains(b) { " (local)" } else { "" };
            format!("{}{mark}", join(&b.ip, b.port))
        });
        let mut backends: Vec<String> = backends.collect();
        if backends.is_empty() {
            backends.push("(none)".to_owned());
        }
        for (i, backend) in backends.into_iter().enumerate() {
            // One line per backend; what they share stands on the first.
            let first = |text: String| if i == 0 { text } else { String::new() };
            let affinity =
                if s.affinity_timeout_s > 0 { format!("{} s", s.affinity_timeout_s) } else { String::new() };
            rows.push(vec![
                first(name.clone()),
                first(join(&s.ip, s.port)),
                first(s.protocol.clone()),
                first(policy(&s)),
                first(affinity),
                backend,
            ]);
        }
    }
    table::print(&["service", "address", "protocol", "policy", "affinity", "backend"], &rows);
}

/// How an address of a service treats its clients.
fn policy(s: &types::Service) -> String {
    let mut words = Vec::new();
    if s.external {
        let is_local = s.local_backends.is_some() && s.forwarding != "dsr";
        words.push(if is_local { "Local" } else { "Cluster" });
    }
    if s.forwarding != "nat" {
        words.push(&s.forwarding);
    }
    if s.balancer != "random" {
        words.push(&s.balancer);
    }
    if !s.source_ranges.is_empty() {
        words.push("source ranges");
    }
    words.join(", ")
}

/// `address:port`, with brackets around IPv6.
fn join(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn endpoints(endpoints: Vec<types::Endpoint>) {
    let row = |e: types::Endpoint| {
        vec![format!("{}/{}", e.namespace, e.pod), e.ip, e.mac, e.port.to_string(), e.ifname]
    };
    table::print(
        &["pod", "ip", "mac", "port", "device"],
        &endpoints.into_iter().map(row).collect::<Vec<_>>(),
    );
}

fn neighbours(neighbours: Vec<types::Neighbour>) {
    let row = |n: types::Neighbour| vec![n.ip, n.mac, n.port.to_string(), n.nodes.join(", ")];
    table::print(&["ip", "mac", "port", "nodes"], &neighbours.into_iter().map(row).collect::<Vec<_>>());
}

fn tunnels(tunnels: Vec<types::Tunnel>) {
    let row = |t: types::Tunnel| {
        let mac = t.next_hop_mac.unwrap_or_else(|| "(not resolved)".to_owned());
        vec![
            t.node,
            t.local,
            t.remote,
            t.next_hop,
            mac,
            t.vni.to_string(),
            t.udp_port.to_string(),
            t.remote_mac,
        ]
    };
    let header = ["node", "local", "remote", "next hop", "next hop mac", "vni", "udp port", "vtep mac"];
    table::print(&header, &tunnels.into_iter().map(row).collect::<Vec<_>>());
}

fn ports(ports: Vec<types::Port>) {
    let row = |p: types::Port| {
        vec![p.id.to_string(), p.ifname, p.kind, p.mtu.to_string(), p.mac, p.pod.unwrap_or_default()]
    };
    table::print(
        &["port", "device", "kind", "mtu", "mac", "pod"],
        &ports.into_iter().map(row).collect::<Vec<_>>(),
    );
}

fn counters(counters: types::Counters) {
    if let Some(error) = &counters.dataplane.error {
        println!("no counters: {error}");
        return;
    }
    if !counters.dataplane.alive {
        println!("the dataplane is not running; these are its last counters\n");
    }
    let rows = |map: std::collections::BTreeMap<String, u64>| {
        map.into_iter().map(|(name, value)| vec![name, value.to_string()]).collect::<Vec<_>>()
    };
    table::print(&["counter", "value"], &rows(counters.counters));
    println!();
    table::print(&["dropped because", "packets"], &rows(counters.drops));
    println!();
    let stages = counters.stages.into_iter().map(|(name, s)| {
        [vec![name], [s.count, s.mean_ns, s.p50_ns, s.p99_ns, s.max_ns].iter().map(u64::to_string).collect()]
            .concat()
    });
    table::print(&["stage", "count", "mean ns", "p50 ns", "p99 ns", "max ns"], &stages.collect::<Vec<_>>());
    println!();
    let ports = counters.ports.into_iter().map(|p| {
        let received = [p.rx_packets, p.rx_bytes, p.tx_packets, p.tx_bytes, p.drops];
        let numbers = [&received[..], &[p.kernel_rx_dropped, p.kernel_fill_empty]].concat();
        [vec![p.id.to_string(), p.ifname], numbers.iter().map(u64::to_string).collect()].concat()
    });
    let sums = ["port", "device", "rx packets", "rx bytes", "tx packets", "tx bytes", "drops"];
    let header = [&sums[..], &["kernel drops", "fill empty"]].concat();
    table::print(&header, &ports.collect::<Vec<_>>());
}
