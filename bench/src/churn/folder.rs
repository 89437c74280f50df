//! The real `fairway-control` over a folder of manifests in a network namespace of its own: first sync with parsing,
//! restart, and an edit of one file until a reader sees it.

use super::cluster::{Cluster, Member, PODS_PER_NODE, yaml};
use super::witness::{Expect, Witness};
use super::{ChurnError, Times, status_mib};
use fairway_tables::{Ip, OpenError, Reader};
use fairway_tests::netns::Netns;
use fairway_tests::process::Process;
use fairway_tests::programs;
use fairway_tests::report::Figure;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for a full sync.
const SYNC_PATIENCE: Duration = Duration::from_secs(120);
/// Most edits that are timed, and for how long at most new ones are begun.
const EDITS: usize = 20;
const EDITING: Duration = Duration::from_secs(20);

fn tests_error(error: fairway_tests::Error) -> ChurnError {
    ChurnError::Broken(error.to_string())
}

fn write(path: PathBuf, text: &str) -> Result<(), ChurnError> {
    // As careful writers do: complete under another name, then renamed into place.
    let new = path.with_extension("new");
    let what = || format!("write {}", path.display());
    std::fs::write(&new, text).map_err(ChurnError::io(what()))?;
    std::fs::rename(&new, &path).map_err(ChurnError::io(what()))
}

fn service_file(dir: &Path, service: usize) -> PathBuf {
    dir.join(format!("service-{service:05}.yaml"))
}

/// A file per node with its pods, and one per service with its slices.
fn write_folder(dir: &Path, cluster: Cluster) -> Result<(), ChurnError> {
    std::fs::create_dir_all(dir).map_err(ChurnError::io(format!("make {}", dir.display())))?;
    for n in 0..cluster.nodes {
        let mut text = yaml(&cluster.node(n))?;
        for pod in n * PODS_PER_NODE..(n + 1) * PODS_PER_NODE {
            text += &yaml(&cluster.pod(pod))?;
        }
        write(dir.join(format!("node-{n:05}.yaml")), &text)?;
    }
    for service in 0..cluster.services() {
        let mut text = yaml(&cluster.service(service))?;
        for slice in cluster.slices(service) {
            text += &yaml(&slice)?;
        }
        write(service_file(dir, service), &text)?;
    }
    Ok(())
}

struct Control {
    process: Process,
    /// When it was started.
    begin: Instant,
}

fn start(netns: &Netns, dir: &Path) -> Result<Control, ChurnError> {
    let bin = programs::bin_dir().and_then(|dir| programs::program(&dir, "fairway-control"));
    let mut command = netns.command(bin.map_err(tests_error)?);
    let path = |name: &str| dir.join(name).display().to_string();
    command.args(["--run-dir", &path("run"), "--manifests", &path("manifests")]);
    command.args(["--node", &Cluster::node_name(0), "--service-cidr", "10.96.0.0/12"]);
    command.env("NO_COLOR", "1").env("FAIRWAY_LOG", "warn");
    let begin = Instant::now();
    let process = Process::spawn("fairway-control", command, &dir.join("control.log"), true);
    Ok(Control { process: process.map_err(tests_error)?, begin })
}

/// Waits until the tables hold every service, complete with its backends.
fn wait_synced(dir: &Path, cluster: Cluster, control: &mut Control) -> Result<Duration, ChurnError> {
    let run = dir.join("run");
    let last = cluster.services() - 1;
    let members = cluster.members(last).len();
    loop {
        match Reader::open(&run, "bench-churn") {
            Ok(reader) => {
                let view = reader.view();
                let complete =
                    view.service(&Cluster::service_key(last)).is_some_and(|s| s.cluster().len() == members);
                if complete && view.services().filter(|(key, _)| key.is_port()).count() == cluster.services()
                {
                    return Ok(control.begin.elapsed());
                }
            }
            Err(OpenError::Missing { .. } | OpenError::Length { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if control.begin.elapsed() > SYNC_PATIENCE {
            let what = format!("the first sync of {} nodes from manifests", cluster.nodes);
            return Err(ChurnError::Timeout { what, waited_s: SYNC_PATIENCE.as_secs() });
        }
        control.process.expect_alive().map_err(tests_error)?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Peak resident memory of the process: `ip netns exec` becomes the program itself.
fn peak_mib(control: &Control) -> f64 {
    status_mib(&control.process.pid().to_string(), "VmHWM")
}

/// First sync, edits and restart of the real program.
///
/// # Errors
/// See [`ChurnError`].
pub fn run(dir: &Path, cluster: Cluster) -> Result<Vec<Figure>, ChurnError> {
    let params = serde_json::json!({ "nodes": cluster.nodes });
    let manifests = dir.join("manifests");
    write_folder(&manifests, cluster)?;
    std::fs::create_dir_all(dir.join("run")).map_err(ChurnError::io("make the run folder"))?;
    let netns = Netns::create(&format!("fairway-churn-{}", std::process::id())).map_err(tests_error)?;
    let ip = std::net::Ipv4Addr::from(Cluster::node_ip(0));
    let address = format!("{ip}/12");
    // Nobody answers at the other end: neighbours stay unresolved, services and routes do not depend on them.
    netns.ip(["link", "add", "eth0", "type", "veth", "peer", "name", "far0"]).map_err(tests_error)?;
    netns.ip(["link", "set", "far0", "up"]).map_err(tests_error)?;
    netns.ip(["addr", "add", &address, "dev", "eth0"]).map_err(tests_error)?;
    netns.ip(["link", "set", "eth0", "up"]).map_err(tests_error)?;

    let mut control = start(&netns, dir)?;
    let synced = wait_synced(dir, cluster, &mut control)?;
    let mut figures = vec![
        Figure::new("manifests_sync", params.clone(), "wall_s", synced.as_secs_f64(), "s"),
        Figure::new("manifests_sync", params.clone(), "control_peak_rss_mib", peak_mib(&control), "MiB"),
    ];
    figures.extend(edits(dir, cluster)?.figures("manifest_edit", &params));
    control.process.stop_cleanly().map_err(tests_error)?;

    let run = dir.join("run");
    let generation = Reader::open(&run, "bench-churn")?.view().generation();
    let mut control = start(&netns, dir)?;
    wait_listed(&run, &mut control)?;
    figures.push(Figure::new(
        "manifests_restart",
        params.clone(),
        "wall_s",
        control.begin.elapsed().as_secs_f64(),
        "s",
    ));
    let batches = Reader::open(&run, "bench-churn")?.view().generation() - generation;
    figures.push(Figure::new("manifests_restart", params, "batches_written", batches as f64, "1"));
    control.process.stop_cleanly().map_err(tests_error)?;
    Ok(figures)
}

/// Takes an endpoint out of a service's file and puts it back, over and over.
fn edits(dir: &Path, cluster: Cluster) -> Result<Times, ChurnError> {
    let witness = Witness::start(&dir.join("run"))?;
    let mut times = Times::default();
    let service = cluster.services() - 1;
    let path = service_file(&dir.join("manifests"), service);
    let members = cluster.members(service);
    let fewer: &[Member] = &members[1..];
    let begin = Instant::now();
    for edit in (0..EDITS).take_while(|_| begin.elapsed() < EDITING) {
        let present = edit % 2 == 1;
        let now = if present { &members[..] } else { fewer };
        let text = yaml(&cluster.service(service))? + &yaml(&cluster.slice(service, 0, now))?;
        let ip = Ip::v4(Cluster::pod_ip(members[0].pod));
        let expect = Expect::Backend(Cluster::service_key(service), ip, present);
        let mut written = Ok(());
        times.add(witness.time(expect, || written = write(path.clone(), &text))?);
        written?;
        // Each edit is one change, not part of the one before.
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(times)
}

/// Waits until control has read everything: its API answers only then.
fn wait_listed(run: &Path, control: &mut Control) -> Result<(), ChurnError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ChurnError::io("start a runtime"))?;
    loop {
        let get = fairway_control::api::client::get::<fairway_control::api::types::Status>(run, "/status");
        if let Ok(status) = runtime.block_on(get)
            && status.objects.get("services").is_some_and(|services| *services > 0)
        {
            return Ok(());
        }
        if control.begin.elapsed() > SYNC_PATIENCE {
            let what = "a restart of control".to_owned();
            return Err(ChurnError::Timeout { what, waited_s: SYNC_PATIENCE.as_secs() });
        }
        control.process.expect_alive().map_err(tests_error)?;
        std::thread::sleep(Duration::from_millis(20));
    }
}
