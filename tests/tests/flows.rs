//! `fairway flows` on a node with traffic: what it lists, counts and deletes.

mod common;

use common::Cluster;
use fairway_tests::gate;
use fairway_tests::pod::client::Summary;
use serde_json::Value;
use std::time::Duration;

const REQUESTS: usize = 20;

/// The answer of `fairway flows …` on the client's node, a list.
fn flows(cluster: &Cluster, args: &[&str]) -> Vec<Value> {
    let args = [&["flows"], args].concat();
    let answer = cluster.testbed.nodes()[0].ask(&args).unwrap_or_else(|error| panic!("{error}"));
    answer.as_array().expect("a list").clone()
}

/// What `fairway …` prints on the client's node, or the error that it ends with.
fn run(cluster: &Cluster, args: &[&str]) -> Result<String, String> {
    let node = &cluster.testbed.nodes()[0];
    let run_dir = node.run_dir().display().to_string();
    let args = [&["--run-dir", run_dir.as_str()], args].concat();
    node.run("fairway", &args).and_then(|output| output.success()).map_err(|error| error.to_string())
}

/// It ends well only if invariants I1 and I2 hold.
fn stop_dataplane(cluster: &mut Cluster, node: usize) {
    let lines = cluster.testbed.node_mut(node).stop_dataplane().unwrap_or_else(|error| panic!("{error}"));
    assert!(!lines.is_empty(), "the engine's last words speak of I1 and I2");
}

fn requests(cluster: &Cluster) -> Summary {
    let (url, count) = (cluster.url("/"), REQUESTS.to_string());
    let args = ["get", url.as_str(), "--no-keepalive", "--count", &count];
    cluster.client(&args, Duration::from_secs(30))
}

#[test]
fn connections_are_listed_filtered_counted_and_deleted() {
    if !gate::may_run("connections_are_listed_filtered_counted_and_deleted") {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    // What waiting left behind goes first.
    run(&cluster, &["flows", "delete", "--all"]).expect("everything is deleted");
    assert_eq!(flows(&cluster, &["--service", "shop/web"]), Vec::<Value>::new());
    assert_eq!(requests(&cluster).failures, 0);

    let all = flows(&cluster, &["--pod", "shop/client", "--service", "web", "--proto", "tcp"]);
    assert_eq!(all.len(), REQUESTS);
    let web_2 = cluster.testbed.pod(cluster.pod("web-2")).ip().to_string();
    for flow in &all {
        assert_eq!(flow["source"]["pod"], "shop/client");
        assert_eq!((&flow["service"], &flow["destination"]["port"]), (&"shop/web".into(), &80.into()));
        assert_eq!((&flow["backend"]["ip"], &flow["backend"]["port"]), (&web_2.clone().into(), &8080.into()));
        assert_eq!((&flow["state"], &flow["replied"]), (&"time-wait".into(), &true.into()));
    }
    assert_eq!(flows(&cluster, &["--ip", &web_2, "--state", "time-wait", "--limit", "3"]).len(), 3);
    assert_eq!(flows(&cluster, &["--ip", &web_2, "--port", "9999"]).len(), 0);
    let by_service = flows(&cluster, &["--count-by", "service"]);
    let web = by_service.iter().find(|count| count["name"] == "shop/web").expect("the service is counted");
    assert_eq!(web["connections"], REQUESTS);
    let by_pod = flows(&cluster, &["--count-by", "pod", "--service", "shop/web"]);
    let client = by_pod.iter().find(|count| count["name"] == "shop/client").expect("the pod is counted");
    assert_eq!((&client["begun"], &client["served"]), (&REQUESTS.into(), &0.into()));
    let table = run(&cluster, &["flows", "-o", "wide", "--limit", "1"]).expect("a table");
    assert!(table.starts_with("PROTO") && table.contains("SOURCE POD"), "{table}");

    // Deleting needs to be told what, and takes that and no more.
    let unsaid = run(&cluster, &["flows", "delete"]).expect_err("nothing says what");
    assert!(unsaid.contains("--all"), "{unsaid}");
    let nobody = run(&cluster, &["flows", "delete", "--pod", "shop/nobody"]).expect_err("no such pod");
    assert!(nobody.contains("fairway endpoints"), "{nobody}");
    let source = all[0]["source"]["port"].to_string();
    let one =
        run(&cluster, &["flows", "delete", "--pod", "client", "--port", &source]).expect("one is deleted");
    assert_eq!(one.trim(), "1 connections deleted");
    assert_eq!(flows(&cluster, &["--service", "shop/web"]).len(), REQUESTS - 1);
    let rest = run(&cluster, &["flows", "delete", "--service", "shop/web"]).expect("the rest is deleted");
    assert_eq!(rest.trim(), format!("{} connections deleted", REQUESTS - 1));
    assert_eq!(flows(&cluster, &["--service", "shop/web"]).len(), 0);
    assert_eq!(requests(&cluster).failures, 0, "new connections begin as ever");

    // The table can be read without its engine, and only read.
    stop_dataplane(&mut cluster, 0);
    assert_eq!(flows(&cluster, &["--service", "shop/web"]).len(), REQUESTS);
    let dead = run(&cluster, &["flows", "delete", "--all"]).expect_err("nobody deletes");
    assert!(dead.contains("fairway-dataplane is not running"), "{dead}");
    stop_dataplane(&mut cluster, 1);
}
