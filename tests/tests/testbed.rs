//! The testbed itself, without Fairway: the wire carries, nothing but the engine forwards, and nothing
//! is left behind when a run ends or panics. tests/demo.rs has the harder endings.

use fairway_tests::pod::client::Summary;
use fairway_tests::{Options, Testbed, conntrack, gate, netns, ping};
use std::net::Ipv4Addr;
use std::time::Duration;

fn ours(prefix: &str) -> Vec<String> {
    netns::existing().into_iter().filter(|n| n.starts_with(prefix)).collect()
}

/// Processes whose command line mentions `text`.
fn processes_with(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " ")).filter(|l| l.contains(text)).collect()
}

#[test]
fn the_wire_carries_and_no_kernel_forwards_for_the_pods() {
    if !gate::may_run("testbed") {
        return;
    }
    let mut testbed = Testbed::new(Options::default()).expect("testbed");
    let web = testbed.add_pod(0, "default", "web", Ipv4Addr::new(10, 244, 1, 10)).expect("pod");
    let other = testbed.add_pod(0, "default", "other", Ipv4Addr::new(10, 244, 1, 11)).expect("pod");
    testbed.start_server(web).expect("server");
    let (name, dir) = (testbed.name().to_owned(), testbed.dir().to_owned());

    let wire = ping::ping(testbed.nodes()[0].netns(), testbed.nodes()[1].ip(), 3, 1500).expect("ping");
    assert!(wire.complete(), "{}", wire.output);
    // A pod reaches itself, and without the engine nobody else.
    let deadline = Duration::from_secs(20);
    let url = "http://10.244.1.10:8080/";
    let own: Summary =
        testbed.client(testbed.pod(web).netns(), &["get", url], deadline).expect("client in its own pod");
    assert_eq!(own.backends["web"].requests, 1, "{:?}", own.errors);
    let args = ["get", url, "--timeout-ms", "300"];
    let blocked: Summary = testbed.client(testbed.pod(other).netns(), &args, deadline).expect("client");
    assert_eq!((blocked.requests, blocked.failures), (1, 1));

    assert_eq!(ours(&name).len(), 5, "switch, two nodes, two pods");
    drop(testbed);
    assert_eq!(ours(&name), Vec::<String>::new());
    assert!(!dir.exists());
    assert_eq!(processes_with(&name), Vec::<String>::new());
}

#[test]
fn a_namespaces_kernel_forgets_its_connections_and_no_others() {
    if !gate::may_run("testbed") {
        return;
    }
    let testbed = Testbed::new(Options::default()).expect("testbed");
    let nodes = [testbed.nodes()[0].netns(), testbed.nodes()[1].netns()];
    for node in nodes {
        // Connections are tracked where a rule asks for their state.
        let rules = "add table ip t; add chain ip t c { type filter hook input priority 0; }; add rule ip t c ct state \
                     new accept";
        node.run("nft", &[rules], Duration::from_secs(20)).and_then(|output| output.success()).expect("nft");
    }
    let wire = ping::ping(nodes[0], testbed.nodes()[1].ip(), 3, 1500).expect("ping");
    assert!(wire.complete(), "{}", wire.output);
    let counts = || nodes.map(|node| conntrack::count(node).expect("count"));
    let before = counts();
    assert!(before[0] > 0 && before[1] > 0, "{before:?}");
    conntrack::flush(nodes[0]).expect("flush");
    assert_eq!(counts(), [0, before[1]]);
}

#[test]
fn a_panic_leaves_nothing_behind() {
    if !gate::may_run("testbed") {
        return;
    }
    let name = std::sync::Mutex::new(String::new());
    let outcome = std::panic::catch_unwind(|| {
        let mut testbed = Testbed::new(Options::default()).expect("testbed");
        let web = testbed.add_pod(0, "default", "web", Ipv4Addr::new(10, 244, 1, 10)).expect("pod");
        testbed.start_server(web).expect("server");
        *name.lock().expect("name") = testbed.name().to_owned();
        panic!("on purpose");
    });
    assert!(outcome.is_err());
    let name = name.into_inner().expect("name");
    assert!(!name.is_empty());
    assert_eq!(ours(&name), Vec::<String>::new());
    assert_eq!(processes_with(&name), Vec::<String>::new());
}
