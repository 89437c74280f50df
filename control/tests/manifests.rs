//! The manifests folder: what is refused and with which words, what stays in force, how changes on disk arrive.

mod common;

use common::{eventually, node, pod, replace, service, slice};
use fairway_control::index::Event;
use fairway_control::manifests::{Folder, Listing, Look, follow, scan};
use fairway_control::object::Object;
use std::collections::BTreeSet;
use std::path::Path;

fn listing(files: &[(&str, &str)]) -> Listing {
    files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect()
}

/// A folder, and the objects that its events add up to.
#[derive(Default)]
struct Cluster {
    folder: Folder,
    alive: BTreeSet<String>,
}

impl Cluster {
    fn update(&mut self, files: &[(&str, &str)]) -> &mut Cluster {
        self.look(Look::Whole(listing(files)))
    }

    fn look(&mut self, look: Look) -> &mut Cluster {
        for event in self.folder.look(look) {
            match event {
                Event::Upsert(object) => drop(self.alive.insert(object.key().to_string())),
                Event::Delete(key) => assert!(self.alive.remove(&key.to_string()), "{key} deleted twice"),
                Event::Kernel(_) => unreachable!(),
            }
        }
        self
    }

    fn objects(&self) -> Vec<&str> {
        self.alive.iter().map(String::as_str).collect()
    }

    fn errors(&self) -> Vec<String> {
        self.folder.errors().iter().map(ToString::to_string).collect()
    }
}

const EXPORTED: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}], clusterIP: 10.96.0.1}\n";

#[test]
fn every_bad_object_is_refused_with_its_place_field_and_remedy() {
    let service =
        |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n");
    let node = |spec: &str, addresses: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n}}\nspec: {spec}\nstatus: {{addresses: {addresses}}}\n"
        )
    };
    let slice = |body: &str| {
        format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e}}\n{body}\n")
    };
    let ip = "[{type: InternalIP, address: 192.0.2.1}]";
    let cases = [
        ("kind: [unclosed\n".to_owned(), "f.yaml:2: document 1: not valid YAML"),
        ("just text\n".to_owned(), "f.yaml:1: document 1: not a Kubernetes object: kind is missing"),
        ("kind: Pod\n".to_owned(), "not a Kubernetes object: apiVersion is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n".to_owned(), "Pod: metadata.name: is missing"),
        (
            service("{clusterIP: 10.96.0.1}"),
            "Service default/s: spec.ports: a service needs at least one port",
        ),
        (service("{clusterIP: 10.96.0.1, ports: [{port: 0}]}"), "spec.ports[0].port: 0 is not a port number"),
        (
            service("{clusterIP: 10.96.0.1, ports: [{port: 65536}]}"),
            "spec.ports[0].port: 65536 is not a port",
        ),
        (service("{clusterIP: 10.96.0.1, ports: [{port: x}]}"), "spec.ports[0].port: invalid type"),
        (service("{clusterIP: 10.96.0.1, ports: [{port: 1, protocol: ICMP}]}"), "'ICMP' is not a protocol"),
        (
            service("{clusterIP: 10.96.0.1, ports: [{port: 1, name: a}, {port: 1, name: b}]}"),
            "spec.ports[1]: repeats",
        ),
        (service("{clusterIP: 10.96.0.1, ports: [{port: 1}, {port: 2}]}"), "spec.ports[0].name: is missing"),
        (service("{ports: [{port: 80}]}"), "spec.clusterIP: is missing, and there is no API server"),
        (
            service("{clusterIP: 10.96.0.300, ports: [{port: 80}]}"),
            "spec.clusterIP: '10.96.0.300' is not an IP",
        ),
        (
            service("{clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: Cookie}"),
            "spec.sessionAffinity: 'Cookie' is not a session affinity",
        ),
        (node("{}", ip), "Node n: spec.podCIDR: is missing"),
        (node("{podCIDR: 10.244.0.0}", ip), "spec.podCIDR: '10.244.0.0' is not an address range"),
        (node("{podCIDRs: [10.244.0.0/24, 10.244.0.0/33]}", ip), "spec.podCIDRs[1]: '10.244.0.0/33' is not"),
        (node("{podCIDR: 10.244.0.0/31}", ip), "is too small for pods"),
        (node("{podCIDR: 10.244.0.0/24}", "[]"), "status.addresses: has no entry of type InternalIP"),
        (
            node("{podCIDR: 10.244.0.0/24}", "[{type: InternalIP, address: here}]"),
            "status.addresses[0].address: 'here' is not an IP address",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: 10.244.0}\n".to_owned(),
            "Pod default/p: status.podIP: '10.244.0' is not an IP address",
        ),
        (slice("addressType: IPX\nendpoints: []"), "addressType: 'IPX' is not an address type"),
        (
            slice("addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]"),
            "endpoints[0].addresses[0]: fd00::1 is not of addressType IPv4",
        ),
        (
            slice("addressType: IPv4\nendpoints: []\nports: [{port: -1}]"),
            "ports[0].port: -1 is not a port number",
        ),
    ];
    for (text, wanted) in cases {
        let mut cluster = Cluster::default();
        cluster.update(&[("f.yaml", &format!("{text}---\n{EXPORTED}")), ("g.yaml", "")]);
        let errors = cluster.errors();
        assert_eq!(errors.len(), 1, "{text}: {errors:#?}");
        assert!(errors[0].contains(wanted), "wanted '{wanted}' in: {}", errors[0]);
        assert!(errors[0].starts_with("f.yaml:"), "{}", errors[0]);
        assert_eq!(cluster.objects(), Vec::<&str>::new(), "a file is all or nothing");
    }
}

#[test]
fn headless_and_external_services_are_fine_and_produce_nothing() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n---\n\
        apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {type: ExternalName, externalName: x.example}\n";
    let mut folder = Folder::default();
    let events = folder.update(listing(&[("s.yaml", text)]));
    assert_eq!((events.len(), folder.errors()), (2, vec![]));
    for event in events {
        assert!(matches!(event, Event::Upsert(Object::Service(s)) if s.cluster_ips.is_empty()));
    }
}

#[test]
fn what_conflicts_with_another_file_is_refused_and_names_both() {
    let base = node("a", "10.244.1.0/24", "192.0.2.1")
        + &pod("p", "a", "10.244.1.5")
        + &service("s", "10.96.0.1", 80);
    let cases = [
        (
            node("b", "10.244.0.0/16", "192.0.2.2"),
            "Node b: spec.podCIDR: 10.244.0.0/16 overlaps 10.244.1.0/24 of Node a (a.yaml document 1)",
        ),
        (node("b", "10.244.1.128/25", "192.0.2.2"), "10.244.1.128/25 overlaps 10.244.1.0/24 of Node a"),
        (node("b", "10.244.1.0/24", "192.0.2.2"), "10.244.1.0/24 overlaps 10.244.1.0/24 of Node a"),
        (node("b", "10.244.2.0/24", "192.0.2.1"), "192.0.2.1 is also the address of Node a"),
        (pod("p", "a", "10.244.1.6"), "Pod default/p: is already in a.yaml document 2; remove one"),
        (pod("q", "a", "10.244.1.5"), "10.244.1.5 is also the address of Pod default/p (a.yaml document 2)"),
        (pod("q", "a", "10.244.2.5"), "10.244.2.5 is outside the pod range 10.244.1.0/24 of Node a"),
        (pod("q", "a", "10.244.1.1"), "10.244.1.1 is reserved for Node a itself"),
        (service("t", "10.96.0.1", 80), "10.96.0.1 port 80 TCP is also that of Service default/s"),
    ];
    for (text, wanted) in cases {
        let mut cluster = Cluster::default();
        // The later file yields, whether it comes later or at once.
        for files in [vec![("a.yaml", base.as_str())], vec![("a.yaml", &base), ("b.yaml", &text)]] {
            cluster.update(&files);
        }
        let errors = cluster.errors();
        assert!(errors.len() == 1 && errors[0].contains(wanted), "wanted '{wanted}' in {errors:#?}");
        assert!(errors[0].starts_with("b.yaml:1: document 1: "), "{}", errors[0]);
        assert_eq!(cluster.objects(), ["Node a", "Pod default/p", "Service default/s"]);
        let mut at_once = Cluster::default();
        at_once.update(&[("a.yaml", &base), ("b.yaml", &text)]);
        assert_eq!(at_once.errors(), errors);
        // Once the other is gone, nothing speaks against it.
        cluster.update(&[("b.yaml", &text)]);
        assert_eq!(cluster.errors(), Vec::<String>::new());
        assert_eq!(cluster.objects().len(), 1);
    }
}

#[test]
fn a_refused_file_keeps_what_it_said_before_and_recovers_when_mended() {
    let mut cluster = Cluster::default();
    let nodes = node("a", "10.244.1.0/24", "192.0.2.1");
    cluster.update(&[("n.yaml", &nodes), ("p.yaml", &pod("p", "a", "10.244.1.5"))]);
    let two = pod("p", "a", "10.244.1.5") + &pod("q", "a", "10.244.9.9");
    cluster.update(&[("n.yaml", &nodes), ("p.yaml", &two)]);
    assert_eq!(cluster.objects(), ["Node a", "Pod default/p"]);
    assert_eq!(cluster.errors().len(), 1);
    cluster.update(&[("n.yaml", &nodes), ("p.yaml", "kind: [")]);
    assert_eq!(cluster.objects(), ["Node a", "Pod default/p"]);
    // A node that moves away from under its pods is the one to blame.
    let moved = node("a", "10.244.3.0/24", "192.0.2.1");
    cluster.update(&[("n.yaml", &moved), ("p.yaml", "kind: [")]);
    let errors = cluster.errors();
    assert!(
        errors[0].starts_with("n.yaml:1: document 1: Node a: status.podIP: 10.244.1.5 is outside"),
        "{errors:?}"
    );
    let mended = pod("p", "a", "10.244.3.5") + &pod("q", "a", "10.244.3.9");
    cluster.update(&[("n.yaml", &moved), ("p.yaml", &mended)]);
    assert_eq!(cluster.errors(), Vec::<String>::new());
    assert_eq!(cluster.objects(), ["Node a", "Pod default/p", "Pod default/q"]);
    cluster.update(&[("n.yaml", &moved)]);
    assert_eq!(cluster.objects(), ["Node a"]);
}

#[test]
fn objects_may_change_files_in_one_step() {
    let mut cluster = Cluster::default();
    let (x, y) = (service("x", "10.96.0.1", 80), service("y", "10.96.0.2", 80));
    cluster.update(&[("a.yaml", &x), ("b.yaml", &y)]);
    cluster.update(&[("a.yaml", &y), ("b.yaml", &x)]);
    assert_eq!(cluster.errors(), Vec::<String>::new());
    cluster.update(&[("c.yaml", &(x + &y))]);
    assert_eq!(cluster.errors(), Vec::<String>::new());
    assert_eq!(cluster.objects(), ["Service default/x", "Service default/y"]);
}

#[test]
fn changes_on_disk_arrive_however_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(follow(dir.path().to_owned(), sender));
    let mut cluster = Cluster::default();
    let mut expect = |what: &str, wanted: &[&str]| {
        let begin = std::time::Instant::now();
        eventually(what, || {
            while let Ok(scan) = receiver.try_recv() {
                cluster.look(scan.map_err(|e| e.to_string())?);
            }
            if cluster.objects() == wanted { Ok(()) } else { Err(format!("{:?}", cluster.objects())) }
        });
        begin.elapsed()
    };
    expect("empty folder", &[]);
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a.yaml"), service("a", "10.96.0.1", 80)).unwrap();
    let took = expect("a file written", &["Service default/a"]);
    // Far below the slow rescan: it was announced.
    assert!(took < std::time::Duration::from_secs(4), "{took:?}");
    replace(&path("a.yaml"), &service("b", "10.96.0.1", 80));
    expect("a file renamed into place", &["Service default/b"]);
    std::fs::write(path("ignored.txt"), "x").unwrap();
    std::fs::write(path(".hidden.yaml"), "x").unwrap();
    std::fs::create_dir(path("folder.yaml")).unwrap();
    std::fs::write(path("c.json"), r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}}"#)
        .unwrap();
    expect("JSON", &["Namespace c", "Service default/b"]);
    std::fs::remove_file(path("a.yaml")).unwrap();
    expect("a file removed", &["Namespace c"]);
    // As a mounted ConfigMap changes: a link to a link that is renamed over.
    std::fs::create_dir(path("v1")).unwrap();
    std::fs::create_dir(path("v2")).unwrap();
    std::fs::write(path("v1/s.yaml"), service("old", "10.96.0.3", 80)).unwrap();
    std::fs::write(path("v2/s.yaml"), service("new", "10.96.0.3", 80)).unwrap();
    std::os::unix::fs::symlink("v1", path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/s.yaml", path("s.yaml")).unwrap();
    expect("a link", &["Namespace c", "Service default/old"]);
    std::os::unix::fs::symlink("v2", path("..data_tmp")).unwrap();
    std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
    expect("a link renamed over", &["Namespace c", "Service default/new"]);
    runtime.shutdown_background();
}

#[test]
fn check_prints_every_error_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let check = |dir: &Path| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_fairway-control"))
            .arg("--check")
            .arg(dir)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    std::fs::write(dir.path().join("a.yaml"), node("a", "10.244.1.0/24", "192.0.2.1")).unwrap();
    std::fs::write(dir.path().join("e.yaml"), slice("e", "s", &["10.244.1.5"])).unwrap();
    let (success, out, _) = check(dir.path());
    assert!(success && out.contains("2 files, 2 objects, 0 errors"), "{out}");
    std::fs::write(dir.path().join("b.yaml"), node("b", "10.244.0.0/16", "192.0.2.2")).unwrap();
    std::fs::write(dir.path().join("c.yaml"), "a: [").unwrap();
    let (success, out, errors) = check(dir.path());
    assert!(!success && out.contains("4 files, 2 objects, 2 errors"), "{out}");
    assert!(errors.contains("b.yaml:1: document 1: Node b: ") && errors.contains("c.yaml:"), "{errors}");
    let missing = dir.path().join("missing");
    let (success, _, errors) = check(&missing);
    assert!(!success && errors.contains("missing"), "{errors}");
    assert!(scan(&missing).is_err());
}

#[test]
fn many_files_at_once_say_what_each_says_by_itself() {
    let broken = 211;
    let texts: Vec<(String, String)> = (0..500)
        .map(|n| {
            let text = service(&format!("s{n}"), &format!("10.96.{}.{}", n / 200, 1 + n % 200), 80);
            (
                format!("{n:03}.yaml"),
                if n == broken { text.replace("clusterIP", "clusterEyePea") } else { text },
            )
        })
        .collect();
    let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut at_once = Cluster::default();
    at_once.update(&files);
    let mut one_by_one = Cluster::default();
    for (name, text) in &texts {
        one_by_one.look(Look::Changed([(name.clone(), Some(Ok(text.clone())))].into()));
    }
    assert_eq!(at_once.objects(), one_by_one.objects());
    assert_eq!(at_once.objects().len(), texts.len() - 1);
    assert_eq!(at_once.errors(), one_by_one.errors());
    assert!(
        at_once.errors().len() == 1 && at_once.errors()[0].contains("211.yaml"),
        "{:?}",
        at_once.errors()
    );
}
