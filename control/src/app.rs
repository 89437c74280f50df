//! The process: opens the tables and the socket, starts the sources, and turns what they say into tables until it is
//! told to stop.

use crate::api::client::SOCKET;
use crate::api::{ApiSocket, ListenError};
use crate::core::{Core, Options, SharedCore};
use crate::fallback;
use crate::health;
use crate::index::HostPlan;
use crate::kernel::{self, Netlink, NetlinkError, Subscription, Update, prepare};
use crate::manifests;
use fairway_tables::{Capacities, OpenError, Writer};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Events taken in at once.
const BATCH: usize = 4096;
/// How often neighbours are looked at.
const PROBE_TICK: Duration = Duration::from_millis(100);
/// How often entries are tried again that wait for a reader, or for room.
const READER_TICK: Duration = Duration::from_millis(250);
const ROOM_TICK: Duration = Duration::from_secs(5);
/// How often the node's own network is looked at although nothing is known to have changed.
const HOST_PERIOD: Duration = Duration::from_secs(30);
const HOST_RETRY: Duration = Duration::from_secs(2);

/// The process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The run directory cannot be made.
    #[error("cannot create the run directory {}: {error}; set --run-dir", path.display())]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What creating it said.
        error: io::Error,
    },
    /// The tables cannot be opened.
    #[error(transparent)]
    Tables(#[from] OpenError),
    /// The API's socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The kernel gave no answer.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The manifests folder cannot be read.
    #[error(transparent)]
    Manifests(#[from] manifests::FolderError),
    /// `--snat-ports` are the kernel's.
    #[error(transparent)]
    SnatPorts(#[from] kernel::ports::PortsInUse),
    /// `--uplink` names no device.
    #[error("there is no device {name} for the uplink; set --uplink to one of: {present}")]
    NoUplink {
        /// What was asked for.
        name: String,
        /// What there is.
        present: String,
    },
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(io::Error),
}

/// Runs the control process until SIGTERM or SIGINT.
pub async fn run(options: Options, capacities: Capacities) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    std::fs::create_dir_all(&options.run_dir)
        .map_err(|error| StartError::RunDir { path: options.run_dir.clone(), error })?;
    let writer = Writer::open(&options.run_dir, capacities)?;
    // A folder that is not there at the start is a mistake; one that vanishes later is reported.
    let first_scan = manifests::scan(&options.manifests)?;
    let subscription = Subscription::open()?;
    let mut netlink = Netlink::open()?;
    check_uplink(&options)?;
    kernel::ports::reserve(options.nat.snat_ports)?;
    let socket = ApiSocket::bind(&options.run_dir.join(SOCKET))?;
    let core = SharedCore::new(Core::new(options.clone(), writer));
    // The pair must be there before the first listing, so that its port is in the first tables.
    let prepared = blocking(|| prepare::ensure_pair(None)).await;
    core.lock().set_error("host network", prepared);
    // Listed after the subscription and the preparation, so that both are in it.
    let listing = kernel::list()?;
    core.lock().take(vec![Ok(manifests::Look::Whole(first_scan))], vec![listing]);

    let (scans_tx, mut scans) = mpsc::channel(4);
    let (updates_tx, mut updates) = mpsc::channel(BATCH);
    let (plan_tx, plan) = watch::channel(core.lock().host_plan());
    let (checks_tx, checks) = watch::channel(core.lock().health_checks());
    let tasks = [
        tokio::spawn(manifests::follow(options.manifests.clone(), scans_tx)),
        tokio::spawn(subscription.follow(updates_tx)),
        tokio::spawn(keep_host_network(plan, core.clone())),
        tokio::spawn(health::answer(checks, core.clone())),
        tokio::spawn(fallback::keep(core.clone())),
        tokio::spawn({
            let core = core.clone();
            async move {
                if let Err(error) = socket.serve(core).await {
                    tracing::error!(%error, "the API ended");
                }
            }
        }),
    ];
    tracing::info!(node = %options.node, generation = core.lock().publisher().view().generation(), "running");
    let mut probe_tick = tokio::time::interval(PROBE_TICK);
    probe_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut retried = Instant::now();
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(scan) = scans.recv() => core.lock().take(vec![scan], Vec::new()),
            1.. = updates.recv_many(&mut batch, BATCH) => core.lock().take(Vec::new(), batch),
            _ = probe_tick.tick() => {}
        }
        probe(&core, &mut netlink);
        retry(&core, &mut retried);
        if let Some(wanted) = core.lock().new_health_checks() {
            send_if_new(&checks_tx, wanted);
        }
        if let Some(wanted) = core.lock().new_host_plan() {
            send_if_new(&plan_tx, wanted);
        }
    }
    tracing::info!("stopping; the tables stay as they are");
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    Ok(())
}

fn send_if_new<T: PartialEq>(to: &watch::Sender<T>, wanted: T) {
    to.send_if_modified(|held| {
        let changed = *held != wanted;
        *held = wanted;
        changed
    });
}

fn check_uplink(options: &Options) -> Result<(), StartError> {
    let Some(name) = &options.uplink else { return Ok(()) };
    let Update::Listing(facts, _) = kernel::list()? else { return Ok(()) };
    if facts.link_named(name).is_some() {
        return Ok(());
    }
    let present: Vec<&str> = facts.links.values().map(|link| link.name.as_str()).collect();
    Err(StartError::NoUplink { name: name.clone(), present: present.join(", ") })
}

fn probe(core: &SharedCore, netlink: &mut Netlink) {
    let due = core.lock().neighbours_due(Instant::now());
    for (ifindex, ip) in due {
        if let Err(error) = netlink.probe_neighbour(ifindex, ip) {
            tracing::debug!(%error, "neighbour not asked for");
        }
    }
}

fn retry(core: &SharedCore, retried: &mut Instant) {
    let mut core = core.lock();
    let tick = if core.publisher().waits_for_reader() { READER_TICK } else { ROOM_TICK };
    if retried.elapsed() >= tick {
        *retried = Instant::now();
        core.retry();
    }
}

/// Runs blocking work on the node's own network; its error as text, if it has one.
async fn blocking(
    work: impl FnOnce() -> Result<(), prepare::PrepareError> + Send + 'static,
) -> Option<String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.err().map(|e| e.to_string()),
        Err(error) => Some(format!("node preparation ended: {error}; look at the log above")),
    }
}

/// Keeps addresses and routes of the host veth as planned, and repairs what others change.
async fn keep_host_network(mut plan: watch::Receiver<Option<(HostPlan, u64)>>, core: SharedCore) {
    loop {
        let wanted = plan.borrow_and_update().clone();
        let mut pause = HOST_PERIOD;
        if let Some((wanted, _)) = wanted {
            let error = blocking(move || prepare::reconcile(&wanted)).await;
            if error.is_some() {
                pause = HOST_RETRY;
            }
            core.lock().set_error("host network", error);
        }
        if let Ok(Err(_)) = tokio::time::timeout(pause, plan.changed()).await {
            return;
        }
    }
}
