//! `fairway-control`: the control process of a node.

use clap::Parser;
use fairway_control::core::Options;
use fairway_control::index::{DirectRoutes, NodePortAddresses};
use fairway_control::masquerade::{NatOptions, SnatPorts};
use fairway_control::{app, kernel, manifests, room};
use fairway_tables::{Capacities, Prefix};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Reads the cluster's objects and the kernel's state, and keeps Fairway's tables in line with them.
#[derive(Parser, Debug)]
#[command(name = "fairway-control", version)]
struct Args {
    /// Directory of the tables and of the API's socket.
    #[arg(long, default_value = "/run/fairway")]
    run_dir: PathBuf,
    /// This node's name, as in its Node object; the host's name by default.
    #[arg(long)]
    node: Option<String>,
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json) to follow.
    #[arg(long, required_unless_present_any = ["check", "cleanup"])]
    manifests: Option<PathBuf>,
    /// Device towards the other nodes; by default the one that holds the node's InternalIP.
    #[arg(long)]
    uplink: Option<String>,
    /// VXLAN network identifier of the pod network.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vni: u32,
    /// UDP port of VXLAN.
    #[arg(long, default_value_t = 4789, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
    /// Lower the maximum segment size in TCP's SYNs to what the tunnel takes, for pods that ignore ICMP errors.
    #[arg(long)]
    clamp_mss: bool,
    /// Range of the service addresses, routed as one; may be repeated. By default each address is routed by itself.
    #[arg(long)]
    service_cidr: Vec<Prefix>,
    /// How large the file of tables may become, in MiB. Only what is used of it takes memory.
    #[arg(long, default_value_t = room::DEFAULT_MAX_MIB, value_parser = clap::value_parser!(u64).range(room::MIN_MAX_MIB..=1 << 20))]
    max_table_mib: u64,
    /// Where node ports answer: `primary` for the node's first InternalIP of each family, or ranges of the node's
    /// addresses; may be repeated.
    #[arg(long, value_name = "primary|CIDR", value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// Let pods' packets leave the cluster with the pods' own addresses.
    #[arg(long)]
    no_masquerade: bool,
    /// Destinations outside the cluster that see pods' own addresses; may be repeated.
    #[arg(long)]
    non_masquerade_cidr: Vec<Prefix>,
    /// Ports of translated sources; the kernel must leave them alone.
    #[arg(long, default_value = "61000-65535")]
    snat_ports: SnatPorts,
    /// Do not keep the kernel ready to carry pod traffic while the engine is not running, and remove what an earlier
    /// run made for that.
    #[arg(long)]
    no_kernel_fallback: bool,
    /// Who knows the way to pods of other nodes that are reached without encapsulation: the Node objects, or a routing
    /// daemon by the kernel's table alone.
    #[arg(long, value_enum, default_value_t = DirectRoutes::Nodes)]
    direct_routes: DirectRoutes,
    /// Check a folder of manifests, print every error, and exit.
    #[arg(long, value_name = "DIR", conflicts_with = "manifests")]
    check: Option<PathBuf>,
    /// Remove the host veth pair, the routes into it and the kernel fallback, and exit.
    #[arg(long)]
    cleanup: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("FAIRWAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    let result = match (&args.check, args.cleanup) {
        (Some(folder), _) => return check(folder),
        (None, true) => cleanup(),
        (None, false) => run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway-control: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), String> {
    let max_tables_bytes = args.max_table_mib << 20;
    let capacities = Capacities::default().within(max_tables_bytes);
    let capacities = capacities.ok_or("--max-table-mib is less than the smallest tables take; raise it")?;
    let options = Options {
        node: args.node.map_or_else(hostname, Ok)?,
        run_dir: args.run_dir,
        manifests: args.manifests.unwrap_or_default(),
        uplink: args.uplink,
        vni: args.vni,
        vxlan_port: args.vxlan_port,
        clamp_mss: args.clamp_mss,
        service_cidrs: args.service_cidr,
        max_ports: capacities.ports,
        max_tables_bytes,
        node_port_addresses: node_port_addresses(&args.nodeport_addresses)?,
        nat: NatOptions {
            no_masquerade: args.no_masquerade,
            non_masquerade_cidrs: args.non_masquerade_cidr,
            snat_ports: args.snat_ports,
        },
        kernel_fallback: !args.no_kernel_fallback,
        direct_routes: args.direct_routes,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start threads: {e}"))?;
    runtime.block_on(app::run(options, capacities)).map_err(|e| e.to_string())
}

fn node_port_addresses(texts: &[String]) -> Result<NodePortAddresses, String> {
    match texts {
        [] => Ok(NodePortAddresses::Primary),
        [only] if only == "primary" => Ok(NodePortAddresses::Primary),
        ranges => {
            let range = |text: &String| {
                text.parse().map_err(|error| format!("--nodeport-addresses: {error}; `primary` stands alone"))
            };
            Ok(NodePortAddresses::In(ranges.iter().map(range).collect::<Result<_, _>>()?))
        }
    }
}

fn cleanup() -> Result<(), String> {
    let fallback = kernel::fallback::cleanup().map_err(|e| e.to_string());
    let host = kernel::prepare::cleanup().map_err(|e| e.to_string());
    fallback.and(host)
}

fn hostname() -> Result<String, String> {
    let path = "/proc/sys/kernel/hostname";
    std::fs::read_to_string(path)
        .map(|name| name.trim().to_owned())
        .map_err(|e| format!("cannot read this host's name from {path}: {e}; set --node"))
}

fn check(folder: &std::path::Path) -> ExitCode {
    let listing = match manifests::scan(folder) {
        Ok(listing) => listing,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut state = manifests::Folder::default();
    let objects = state.update(listing).len();
    let errors = state.errors();
    for error in &errors {
        eprintln!("{error}");
    }
    for (kind, count) in state.ignored() {
        println!("{count} of kind {kind}: not read by Fairway");
    }
    println!("{} files, {objects} objects, {} errors", state.file_count(), errors.len());
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
