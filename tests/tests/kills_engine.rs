//! A node's engine is killed under load at random moments, again and again, some of them while it starts. TCP
//! streams through a service to the other node, opened before the first kill, must all end byte-exact at the backend
//! where they began, and every new process must find their connections. The number of kills is
//! FAIRWAY_ENGINE_KILLS, 15 if unset; `make test-kills` asks for 30.

mod common;
#[path = "kills/spread.rs"]
mod spread;

use common::load::{self, Streams};
use common::{Cluster, number_after};
use fairway_tests::pod::probe::ProbeSummary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::process::wait_for;
use fairway_tests::programs::share_of_cores;
use fairway_tests::report::{Figure, Report};
use fairway_tests::{gate, sys};
use serde_json::json;
use spread::{Spread, percentile};
use std::time::{Duration, Instant};

const STREAMS: u64 = 50;
const RECORD_BYTES: u64 = 1000;
const INTERVAL_MS: u64 = 100;
const PROBE_PPS: u64 = 1000;
const PROBE_MS: u64 = 1000;
/// What one probe with its kills is given. On a machine too busy for that, there are fewer kills.
const ROUND_MS: u64 = 2000;
const DEADLINE: Duration = Duration::from_secs(60);
/// The node of the client, whose engine is killed.
const NODE: usize = 0;

struct Killing {
    cluster: Cluster,
    spread: Spread,
    kills: u16,
    /// Of them, how many struck an engine that had not yet said that it starts.
    while_starting: u16,
    gaps_ms: Vec<f64>,
    sent: u64,
    lost: u64,
}

impl Killing {
    /// What the engine has written; all processes of the node write to the same log.
    fn log(&mut self) -> String {
        self.cluster.testbed.node_mut(NODE).dataplane().expect("the dataplane runs").log()
    }

    /// Kills the engine and starts it at once. Returns where in the log the new one begins.
    fn strike(&mut self, last_start: usize) -> usize {
        let node = self.cluster.testbed.node_mut(NODE);
        let engine = node.dataplane().expect("the dataplane runs");
        engine.expect_alive().unwrap_or_else(|error| panic!("before kill {}: {error}", self.kills));
        engine.kill();
        let log = engine.log();
        self.kills += 1;
        self.while_starting += u16::from(connections_found(&log[last_start..]).is_none());
        let cores = share_of_cores(&sys::cores(), NODE, 1);
        node.start_dataplane(&["--cores", &cores]).expect("the dataplane starts again");
        log.len()
    }

    /// One probe and the kills during it.
    fn round(&mut self, twice: bool) {
        let last_start = self.log().rfind("engine starts").unwrap_or(0);
        let probe = load::start_probe(&self.cluster, "web-2", PROBE_PPS, PROBE_MS);
        std::thread::sleep(Duration::from_millis(100) + self.spread.up_to(Duration::from_millis(300)));
        let mut start = self.strike(last_start);
        if twice {
            std::thread::sleep(self.spread.up_to(Duration::from_millis(60)));
            start = self.strike(start);
        }
        let found = wait_for("the engine has opened the connection table", DEADLINE, || {
            Ok(connections_found(&self.log()[start..]).ok_or("no word of it".to_owned()))
        });
        let found = found.unwrap_or_else(|error| panic!("after kill {}: {error}", self.kills));
        assert!(found >= STREAMS, "after kill {} the engine finds {found} connections", self.kills);
        let probe: ProbeSummary = load::answer(&mut self.cluster, probe, DEADLINE);
        assert_eq!((probe.sent, probe.duplicates), (PROBE_PPS * PROBE_MS / 1000, 0), "{probe:?}");
        self.gaps_ms.push(probe.longest_gap_ms);
        self.sent += probe.sent;
        self.lost += probe.lost;
        assert_eq!(self.established(), STREAMS as usize, "after kill {}", self.kills);
    }

    /// The streams' connections that the node's engine holds.
    fn established(&self) -> usize {
        let args = ["flows", "--service", "shop/streams", "--state", "established"];
        let answer = self.cluster.testbed.nodes()[NODE].ask(&args).unwrap_or_else(|error| panic!("{error}"));
        answer.as_array().expect("a list").len()
    }

    fn report(&mut self, streams: &StreamSummary) {
        self.gaps_ms.sort_by(f64::total_cmp);
        let [p50, max] = [50, 100].map(|percent| percentile(&self.gaps_ms, percent));
        println!(
            "{} kills of the engine, {} of them while it started; {} of {} streams byte-exact, longest stall {} ms; \
             probe: {} of {} lost, gap p50 {p50:.0} ms, max {max:.0} ms",
            self.kills,
            self.while_starting,
            streams.byte_exact,
            streams.streams,
            streams.longest_stall_ms,
            self.lost,
            self.sent,
        );
        let params = json!({ "streams": STREAMS, "probe_pps": PROBE_PPS, "probe_ms": PROBE_MS });
        let figure = |metric: &str, value: f64, unit: &str| {
            Figure::new("kill_dataplane", params.clone(), metric, value, unit)
        };
        let figures = [
            figure("kills", f64::from(self.kills), "1"),
            figure("kills_while_starting", f64::from(self.while_starting), "1"),
            figure("gap_p50", p50, "ms"),
            figure("gap_max", max, "ms"),
            figure("packets_sent", self.sent as f64, "1"),
            figure("packets_lost", self.lost as f64, "1"),
            figure("streams_byte_exact", streams.byte_exact as f64, "1"),
            figure("longest_stream_stall", streams.longest_stall_ms as f64, "ms"),
        ];
        Report::of_target("test-kills").add(&figures).expect("report");
    }
}

/// How many connections an engine found when it started; `None` if it has not got that far.
fn connections_found(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.contains("engine starts"))?;
    number_after(&format!("{line}\n"), "connections=")
}

#[test]
fn streams_keep_their_backends_however_often_their_engine_is_killed() {
    if !gate::may_run("kills_engine") {
        return;
    }
    let _alone = gate::alone();
    let wanted = spread::kills("FAIRWAY_ENGINE_KILLS", 15);
    let mut cluster = Cluster::start(1);
    load::let_kernels_forward(&cluster);
    let service = load::stream_service(&cluster);
    // Every third round kills twice.
    let life_ms = u64::from(wanted) * 3 / 4 * ROUND_MS + ROUND_MS;
    let streams = Streams {
        count: STREAMS,
        records: life_ms / INTERVAL_MS,
        record_bytes: RECORD_BYTES,
        interval_ms: INTERVAL_MS,
        timeout_ms: life_ms + DEADLINE.as_millis() as u64,
    };
    let begin = Instant::now();
    let mut client = load::open_streams(&mut cluster, &service, streams);
    let mut killing = Killing {
        cluster,
        spread: Spread(1),
        kills: 0,
        while_starting: 0,
        gaps_ms: Vec::new(),
        sent: 0,
        lost: 0,
    };
    while killing.kills < wanted && begin.elapsed() < Duration::from_millis(life_ms - ROUND_MS) {
        let twice = killing.gaps_ms.len() % 3 == 2 && killing.kills + 2 <= wanted;
        killing.round(twice);
    }
    assert!(client.ended().is_none(), "the streams lasted until the last kill: {}", client.log());
    let streams: StreamSummary =
        load::answer(&mut killing.cluster, client, Duration::from_millis(life_ms) + DEADLINE);
    killing.report(&streams);
    assert_eq!((streams.streams, streams.byte_exact), (STREAMS, STREAMS), "{:?}", streams.errors);
    assert_eq!(streams.bytes, STREAMS * (life_ms / INTERVAL_MS) * RECORD_BYTES);
    let backends: Vec<&str> = streams.backends.keys().map(String::as_str).collect();
    assert_eq!(backends, ["web-2", "web-3"]);
    assert!(killing.kills * 3 > wanted, "there was time for {} kills only", killing.kills);
    killing.cluster.stop_and_check_invariants();
}
