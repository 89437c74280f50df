//! Bad input and bad surroundings are refused in words that say what is wrong, where, and what to do, and
//! nothing is left half-applied.

mod common;

use common::Cluster;
use fairway_tests::gate;
use fairway_tests::process::{self, Output};
use fairway_tests::programs;
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// Insists that a program ended with a failure whose message holds all of `words`.
fn assert_refused(output: &Output, words: &[&str]) {
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(!output.status.success(), "`{}` was to be refused: {said}", output.command);
    assert!(
        output.status.code().is_some(),
        "refused, not crashed: {} {said}",
        process::describe(output.status)
    );
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "the refusal does not say '{word}': {said}");
    }
}

/// Runs a program on the first node, to an end that is expected soon, with `prefix` before it.
fn run_on_node(cluster: &Cluster, prefix: &[&str], program: &str, args: &[String]) -> Output {
    let node = &cluster.testbed.nodes()[0];
    let program = node.program(program).expect("program");
    let mut command: Command = match prefix.split_first() {
        None => node.netns().command(program),
        Some((first, rest)) => {
            let mut command = node.netns().command(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(args).env("NO_COLOR", "1");
    process::run(command, DEADLINE).unwrap_or_else(|e| panic!("{e}"))
}

fn dataplane_args(cluster: &Cluster, more: &[&str]) -> Vec<String> {
    let run_dir = cluster.testbed.nodes()[0].run_dir().display().to_string();
    let mut args = vec!["--run-dir".to_owned(), run_dir];
    args.extend(more.iter().map(|a| (*a).to_owned()));
    args
}

#[test]
fn a_core_that_does_not_exist_is_refused() {
    if !gate::may_run("refusals") {
        return;
    }
    let cluster = Cluster::build(1);
    let args = dataplane_args(&cluster, &["--cores", "1023"]);
    assert_refused(&run_on_node(&cluster, &[], "fairway-dataplane", &args), &["--cores", "1023", "cores"]);
    let args = dataplane_args(&cluster, &["--cores", "one"]);
    assert_refused(&run_on_node(&cluster, &[], "fairway-dataplane", &args), &["--cores", "'one'"]);
    let args = dataplane_args(&cluster, &["--workers", "0"]);
    assert_refused(&run_on_node(&cluster, &[], "fairway-dataplane", &args), &["--workers", "0"]);
    let left = std::fs::read_dir(cluster.testbed.nodes()[0].run_dir()).expect("run folder").count();
    assert_eq!(left, 0, "a refused start writes nothing");
}

#[test]
fn a_second_control_and_a_second_engine_are_refused_and_the_first_go_on() {
    if !gate::may_run("refusals") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1", "web-2"]);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    let run_dir = cluster.testbed.nodes()[0].run_dir().display().to_string();

    let args = cluster.testbed.nodes()[0].control_args();
    assert_refused(&run_on_node(&cluster, &[], "fairway-control", &args), &[&run_dir, "stop"]);
    let args = dataplane_args(&cluster, &[]);
    assert_refused(&run_on_node(&cluster, &[], "fairway-dataplane", &args), &[&run_dir, "stop"]);

    let url = cluster.url("/");
    let args = ["get", url.as_str(), "--no-keepalive", "--count", "100"];
    let summary: fairway_tests::pod::client::Summary = cluster.client(&args, Duration::from_secs(60));
    assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()));
    // Control still answers and still applies changes.
    cluster.set_backends(&["web-3"]);
    cluster.wait_for_backends(&["web-3"]);
    cluster.stop_and_check_invariants();
}

#[test]
fn missing_privileges_are_named() {
    if !gate::may_run("refusals") {
        return;
    }
    let mut cluster = Cluster::build(1);
    cluster.testbed.node_mut(0).start_control().expect("control");
    let asked = cluster.testbed.wait("control answers", DEADLINE, |testbed| {
        testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())
    });
    asked.unwrap_or_else(|e| panic!("{e}"));
    for (dropped, named) in [
        ("-net_raw", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-net_admin,-sys_admin", "CAP_NET_ADMIN"),
    ] {
        let setpriv = ["setpriv", "--inh-caps=-all", "--bounding-set", dropped];
        let args = dataplane_args(&cluster, &[]);
        let output = run_on_node(&cluster, &setpriv, "fairway-dataplane", &args);
        assert_refused(&output, &[named, "run as root or grant it"]);
    }
    // No XDP program stays on any device.
    let links = cluster.testbed.nodes()[0].netns().ip(["-d", "link", "show"]).expect("ip link");
    assert!(!links.contains("xdp"), "{links}");
}

#[test]
fn a_control_without_its_folder_of_manifests_is_refused() {
    if !gate::may_run("refusals") {
        return;
    }
    let cluster = Cluster::build(1);
    let mut args = cluster.testbed.nodes()[0].control_args();
    *args.last_mut().expect("the folder comes last") = "/nonexistent/manifests".to_owned();
    let output = run_on_node(&cluster, &[], "fairway-control", &args);
    assert_refused(&output, &["/nonexistent/manifests"]);
}

#[test]
fn fairway_says_where_it_looked_when_nobody_answers() {
    let bin_dir = programs::bin_dir().expect("folder of the programs");
    let mut command = Command::new(programs::program(&bin_dir, "fairway").expect("fairway is built"));
    command.args(["--run-dir", "/nonexistent/run", "status"]);
    let output = process::run(command, DEADLINE).expect("fairway status");
    assert_refused(&output, &["/nonexistent/run"]);
}

#[test]
fn broken_manifests_are_named_and_change_nothing() {
    if !gate::may_run("refusals") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1", "web-2"]);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    let service = "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: shop\n  name: portless\nspec:\n  \
                   clusterIP: 10.96.0.81\n";
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-9\nspec:\n  podCIDR: 10.244.2.128/25\n\
                status:\n  addresses:\n  - type: InternalIP\n    address: 192.168.77.9\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: shop\n  name: unwired\nspec:\n  \
               nodeName: node-1\n  containers:\n  - name: main\n    image: x\nstatus:\n  phase: Running\n  \
               podIP: 10.244.1.99\n";
    let pools = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: lower}\nspec: {cidr: \
                 10.250.0.0/16, ipipMode: Always}\n---\napiVersion: projectcalico.org/v3\nkind: IPPool\n\
                 metadata: {name: upper}\nspec: {cidr: 10.250.0.0/17}\n";
    let flannel = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-flannel-cfg, namespace: kube-flannel}\n\
                   data:\n  net-conf.json: '{\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\", \
                   \"VNI\": 16777216}}'\n";
    for (file, yaml, words) in [
        ("broken", "kind: [Service\n  - {", &["broken.yaml", "YAML"][..]),
        ("portless", service, &["portless", "at least one port"]),
        ("overlap", node, &["10.244.2.128/25", "overlaps", "node-2"]),
        ("pools", pools, &["upper", "10.250.0.0/17 overlaps 10.250.0.0/16", "give each pool"]),
        ("flannel", flannel, &["kube-flannel-cfg", "16777216 is not a VXLAN network identifier"]),
        // A missing interface: the pod's veth is not there.
        ("unwired", pod, &["unwired", "is not there"]),
    ] {
        cluster.testbed.manifests().write(file, yaml).expect("manifest");
        let said = cluster.testbed.wait(&format!("{file} is named"), DEADLINE, |testbed| {
            let status = testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())?.to_string();
            if words.iter().all(|word| status.contains(word)) { Ok(()) } else { Err(status) }
        });
        said.unwrap_or_else(|e| panic!("{e}"));
        // What was right before is still in force.
        cluster.wait_for_backends(&["web-1", "web-2"]);
        cluster.testbed.manifests().remove(file).expect("remove");
        let cleared = cluster.testbed.wait(&format!("{file} is forgotten"), DEADLINE, |testbed| {
            let status = testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())?.to_string();
            if status.contains(words[0]) { Err(status) } else { Ok(()) }
        });
        cleared.unwrap_or_else(|e| panic!("{e}"));
    }
    cluster.stop_and_check_invariants();
}

#[test]
fn tables_of_another_version_are_refused_by_every_program() {
    if !gate::may_run("refusals") {
        return;
    }
    let mut cluster = Cluster::build(1);
    cluster.testbed.node_mut(0).start_control().expect("control");
    let asked = cluster.testbed.wait("control answers", DEADLINE, |testbed| {
        testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())
    });
    asked.unwrap_or_else(|e| panic!("{e}"));
    cluster.testbed.node_mut(0).stop_control().expect("control stops");

    let path = cluster.testbed.nodes()[0].run_dir().join("tables");
    let whole = std::fs::read(&path).expect("tables");
    // The first word is the magic number, the second the ABI version.
    for (at, words) in [(8, &["ABI version", "same version"][..]), (0, &["not a Fairway file"])] {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        std::fs::write(&path, &changed).expect("change the tables");
        let named = path.display().to_string();
        for (program, args) in [
            ("fairway-dataplane", dataplane_args(&cluster, &[])),
            ("fairway-control", cluster.testbed.nodes()[0].control_args()),
        ] {
            let output = run_on_node(&cluster, &[], program, &args);
            assert_refused(&output, words);
            assert_refused(&output, &[&named]);
        }
        assert!(std::fs::read(&path).expect("tables") == changed, "a refused file is left as it was");
    }
}

#[test]
fn an_uplink_that_does_not_exist_is_named() {
    if !gate::may_run("refusals") {
        return;
    }
    let mut cluster = Cluster::build(1);
    // The node's InternalIP is on no device.
    cluster.testbed.nodes()[0].netns().ip(["addr", "flush", "dev", "uplink0"]).expect("flush");
    cluster.testbed.start_nodes(1).expect("start the nodes");
    let named = cluster.testbed.wait("status names the missing uplink", DEADLINE, |testbed| {
        let status = testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())?.to_string();
        let words = ["no device has the node's InternalIP 192.168.77.1", "assign it"];
        if words.iter().all(|word| status.contains(word)) { Ok(()) } else { Err(status) }
    });
    named.unwrap_or_else(|e| panic!("{e}"));
    // It may still come.
    cluster.testbed.nodes()[0].netns().ip(["addr", "add", "192.168.77.1/24", "dev", "uplink0"]).expect("add");
    cluster.wait_for_gateways();
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    cluster.stop_and_check_invariants();
}

/// Waits until the first node's status says all of these words, or none of them.
fn wait_for_words(cluster: &mut Cluster, words: &[&str], are_there: bool) {
    let what = format!("status says {words:?}: {are_there}");
    let waited = cluster.testbed.wait(&what, DEADLINE, |testbed| {
        let status = testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())?.to_string();
        if words.iter().all(|word| status.contains(word) == are_there) { Ok(()) } else { Err(status) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_is_wrong_with_the_network_is_named_and_the_rest_goes_on() {
    if !gate::may_run("refusals") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1", "web-2"]);
    cluster.wait_for_backends(&["web-1", "web-2"]);

    // A pool that does not cover the node's pods.
    let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pods}\nspec: {cidr: 10.244.2.0/24, \
                vxlanMode: Always}\n";
    cluster.testbed.manifests().write("pool", pool).expect("pool");
    let words = ["pod range of Node node-1", "10.244.1.0/24 is not wholly in a pool"];
    wait_for_words(&mut cluster, &words, true);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    cluster.testbed.manifests().remove("pool").expect("remove");
    wait_for_words(&mut cluster, &words, false);

    // A gateway that does not answer.
    let route = ["route", "add", "10.9.0.0/16", "via", "192.168.77.99"];
    cluster.testbed.nodes()[0].netns().ip(route).expect("route");
    let words = ["next hop 192.168.77.99", "does not answer"];
    wait_for_words(&mut cluster, &words, true);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    cluster.testbed.nodes()[0].netns().ip(["route", "del", "10.9.0.0/16"]).expect("route");
    wait_for_words(&mut cluster, &words[..1], false);

    // An uplink that loses its address: pods of the node still reach each other, and all when it is back.
    cluster.testbed.nodes()[0].netns().ip(["addr", "flush", "dev", "uplink0"]).expect("flush");
    let words = ["no device has the node's InternalIP 192.168.77.1"];
    wait_for_words(&mut cluster, &words, true);
    cluster.set_backends(&["web-1"]);
    cluster.wait_for_backends(&["web-1"]);
    cluster.testbed.nodes()[0].netns().ip(["addr", "add", "192.168.77.1/24", "dev", "uplink0"]).expect("add");
    wait_for_words(&mut cluster, &words, false);
    cluster.set_backends(&["web-1", "web-2"]);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    cluster.stop_and_check_invariants();
}
