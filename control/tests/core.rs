//! The core with heap tables: from manifests and kernel facts to table entries and API answers, without privileges.

mod common;

use common::{files, kernel, node, options, pod, service, slice};
use fairway_control::api::client::{ClientError, SOCKET, get};
use fairway_control::api::{ApiSocket, types};
use fairway_control::core::{Core, SharedCore};
use fairway_control::names::{GATEWAY_MAC, HOST_ENGINE_IF, pod_mac, vtep_mac};
use fairway_tables::{
    Backend, Capacities, Ip, Mac, NextHop, NextHopKind, PortId, PortKind, ServiceKey, Tables, Writer,
};
use std::path::Path;

fn cluster() -> Vec<(&'static str, String)> {
    let nodes = node("a", "10.244.1.0/24", "192.0.2.1") + &node("b", "10.244.2.0/24", "192.0.2.2");
    let unready = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-2\n  \
        labels: {kubernetes.io/service-name: web}\naddressType: IPv4\nports: [{name: http, port: 9090}]\n\
        endpoints:\n- {addresses: [10.244.2.9], conditions: {ready: false}}\n- {addresses: [10.244.1.5], \
        conditions: {ready: true}}\n";
    vec![
        ("nodes.yaml", nodes),
        ("pods.yaml", pod("p", "a", "10.244.1.5") + &pod("far", "b", "10.244.2.5")),
        (
            "web.yaml",
            service("web", "10.96.0.1", 80)
                + &slice("web-1", "web", &["10.244.2.5", "10.244.1.5", "10.244.2.5"])
                + unready,
        ),
        ("empty.yaml", service("empty", "10.96.0.2", 80)),
    ]
}

#[test]
fn a_small_cluster_becomes_the_tables_that_it_should() {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core = Core::new(options(Path::new("/nowhere")), writer);
    core.take(files(&cluster()), vec![]);
    assert_eq!(core.publisher().view().generation(), 0, "nothing is written before every source was read");
    core.take(vec![], kernel(&["p"]));

    let view = core.publisher().view();
    let settings = view.settings();
    assert_eq!((settings.node_ip, settings.vni, settings.pod_mtu), (Ip::v4([192, 0, 2, 1]), 4096, 1450));
    assert_eq!((settings.uplink, settings.host, settings.vxlan_port), (PortId(0), PortId(1), 4789));
    assert_eq!((settings.gateway_mac, settings.vtep_mac), (GATEWAY_MAC, vtep_mac("a")));

    let kinds: Vec<_> = (0..3).map(|i| view.port(PortId(i)).unwrap().kind().unwrap()).collect();
    assert_eq!(kinds, [PortKind::Uplink, PortKind::Host, PortKind::Pod]);
    let host = view.port(PortId(1)).unwrap();
    assert_eq!(
        (host.ifname(), host.mac, host.peer_mac),
        (HOST_ENGINE_IF, Mac([2, 0, 0, 0, 0, 4]), Mac([2, 0, 0, 0, 0, 3]))
    );
    let endpoint = view.endpoint(Ip::v4([10, 244, 1, 5])).unwrap();
    assert_eq!((endpoint.port, endpoint.mac), (PortId(2), pod_mac(Ip::v4([10, 244, 1, 5]))));
    assert_eq!(view.endpoints().count(), 1, "pods of other nodes are no endpoints here");

    let hop = |kind, addr| Some(NextHop::new(kind, addr, PortId::NONE));
    let route = |ip| view.route(Ip::v4(ip));
    assert_eq!(route([10, 244, 1, 77]), hop(NextHopKind::Local, Ip::UNSPECIFIED));
    assert_eq!(route([10, 244, 1, 1]), hop(NextHopKind::Host, Ip::UNSPECIFIED));
    assert_eq!(route([192, 0, 2, 1]), hop(NextHopKind::Host, Ip::UNSPECIFIED));
    assert_eq!(route([203, 0, 113, 1]), hop(NextHopKind::Host, Ip::UNSPECIFIED));
    assert_eq!(route([10, 244, 2, 5]), hop(NextHopKind::Tunnel, Ip::v4([192, 0, 2, 2])));
    let tunnel = view.tunnel(Ip::v4([192, 0, 2, 2])).unwrap();
    assert_eq!(
        (tunnel.local, tunnel.next_hop, tunnel.port),
        (Ip::v4([192, 0, 2, 1]), Ip::v4([192, 0, 2, 2]), PortId(0))
    );
    assert_eq!(view.neighbour(tunnel.next_hop, PortId(0)).map(|n| n.mac), Some(Mac([2; 6])));

    let web = view.service(&ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6)).unwrap();
    let backend = |ip, port| Backend { ip: Ip::v4(ip), port, flags: 0 };
    let wanted =
        [backend([10, 244, 1, 5], 8080), backend([10, 244, 1, 5], 9090), backend([10, 244, 2, 5], 8080)];
    assert_eq!(web.backends().collect::<Vec<_>>(), wanted);
    let empty = view.service(&ServiceKey::new(Ip::v4([10, 96, 0, 2]), 80, 6)).unwrap();
    assert!(empty.cluster().is_empty(), "a service without endpoints is known and rejects");

    let (plan, _) = core.host_plan().unwrap();
    assert_eq!(plan.addresses, [Ip::v4([10, 244, 1, 1])].into());
    let routes: Vec<String> = plan.routes.keys().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.96.0.1/32", "10.96.0.2/32", "10.244.1.0/24", "10.244.2.0/24", "169.254.1.1/32"]);
    assert_eq!(plan.mtu, 1450);
    assert_eq!(core.status().pending, []);
}

#[test]
fn a_service_keeps_its_number_when_its_endpoints_change_and_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Writer::open(dir.path(), Capacities::default()).unwrap();
    let mut core = Core::new(options(dir.path()), open());
    core.take(files(&cluster()), kernel(&["p"]));
    let id = |core: &Core| core.services().iter().map(|s| (s.name.clone(), s.id)).collect::<Vec<_>>();
    let before = id(&core);
    let mut changed = cluster();
    changed[2].1 = service("web", "10.96.0.1", 80) + &slice("web-1", "web", &["10.244.2.5"]);
    changed.push(("0-first.yaml", service("aaa", "10.96.0.9", 80)));
    core.take(files(&changed), vec![]);
    assert!(before.iter().all(|pair| id(&core).contains(pair)));
    let before = id(&core);
    drop(core);
    let mut core = Core::new(options(dir.path()), open());
    // Opening the tables may itself begin a generation, to reuse what the former writer left behind.
    let generation = core.status().generation;
    core.take(files(&changed), kernel(&["p"]));
    assert_eq!((id(&core), core.status().generation), (before, generation));
}

#[test]
fn a_restart_with_a_broken_file_keeps_what_that_file_once_gave() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Writer::open(dir.path(), Capacities::default()).unwrap();
    let mut core = Core::new(options(dir.path()), open());
    core.take(files(&cluster()), kernel(&["p"]));
    let services = core.services().len();
    drop(core);

    let mut broken = cluster();
    broken[2].1 = "kind: [".to_owned();
    let mut core = Core::new(options(dir.path()), open());
    let generation = core.status().generation;
    core.take(files(&broken), kernel(&["p"]));
    assert_eq!((core.status().generation, core.services().len()), (generation, services));
    assert_eq!(core.status().manifests.errors.len(), 1);
    broken.remove(2);
    core.take(files(&broken), vec![]);
    assert_eq!(core.services().len(), services - 1, "mended without the service: now it goes");
}

#[test]
fn full_tables_leave_out_what_does_not_fit_say_so_and_harm_nothing_else() {
    // Two services, each with one port and a record for all others.
    let (writer, _) = Tables::heap(Capacities { services: 4, ..Capacities::default() });
    let mut core = Core::new(options(Path::new("/nowhere")), writer);
    let mut many = cluster();
    many.push((
        "more.yaml",
        (1..6).map(|i| service(&format!("s{i}"), &format!("10.96.1.{i}"), 80)).collect(),
    ));
    core.take(files(&many), kernel(&["p"]));
    assert_eq!((core.services().len(), core.endpoints().len(), core.tunnels().len()), (2, 1, 1));
    let errors = core.status().errors;
    assert!(errors.iter().any(|e| e.contains("table services is full")), "{errors:?}");
    many.pop();
    core.take(files(&many), vec![]);
    assert_eq!((core.services().len(), core.status().errors), (2, vec![]));
}

#[test]
fn the_api_answers_over_its_socket_and_says_when_nobody_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let none = get::<types::Status>(dir.path(), "/status").await.unwrap_err();
        assert!(matches!(none, ClientError::NotRunning { .. }), "{none}");
        assert!(none.to_string().contains("fairway-control is not running here"), "{none}");

        let (writer, _) = Tables::heap(Capacities::default());
        let mut core = Core::new(options(dir.path()), writer);
        core.take(files(&cluster()), kernel(&[]));
        let socket = ApiSocket::bind(&dir.path().join(SOCKET)).unwrap();
        let server = tokio::spawn(socket.serve(SharedCore::new(core)));

        let status: types::Status = get(dir.path(), "/status").await.unwrap();
        assert_eq!((status.node.as_str(), status.objects["nodes"]), ("a", 2));
        assert_eq!(status.pending[0].what, "Pod default/p");
        assert!(status.pending[0].reason.contains("fw"), "{:?}", status.pending);
        assert!(!status.dataplane.alive && status.dataplane.error.is_some());
        let routes: Vec<types::Route> = get(dir.path(), "/routes").await.unwrap();
        let tunnel = routes.iter().find(|r| r.kind == "tunnel").unwrap();
        assert_eq!((tunnel.prefix.as_str(), tunnel.node.as_deref()), ("10.244.2.0/24", Some("b")));
        let services: Vec<types::Service> = get(dir.path(), "/services").await.unwrap();
        assert_eq!((services[0].name.as_str(), services[0].backends.len()), ("web", 3));
        let neighbours: Vec<types::Neighbour> = get(dir.path(), "/neighbours").await.unwrap();
        assert_eq!(neighbours[0].nodes, ["b"]);
        let tunnels: Vec<types::Tunnel> = get(dir.path(), "/tunnels").await.unwrap();
        assert_eq!(tunnels[0].next_hop_mac.as_deref(), Some("02:02:02:02:02:02"));
        let ports: Vec<types::Port> = get(dir.path(), "/ports").await.unwrap();
        assert_eq!(ports.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["uplink", "host"]);
        let counters: types::Counters = get(dir.path(), "/counters").await.unwrap();
        assert!(counters.dataplane.error.is_some(), "there is no dataplane");
        let missing = get::<types::Status>(dir.path(), "/nothing").await.unwrap_err();
        assert!(matches!(missing, ClientError::Status { status: 404, .. }), "{missing}");

        server.abort();
        let _ = server.await;
        assert!(!dir.path().join(SOCKET).exists(), "the socket goes with the server");
    });
}

#[test]
fn what_only_the_engine_knows_is_kept_from_the_nodes_own_stack() {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core = Core::new(options(Path::new("/nowhere")), writer);
    core.take(files(&cluster()), vec![]);
    core.take(vec![], kernel(&["p"]));
    let guarded = core.fallback_plan().expect("a plan").guarded;
    assert_eq!(guarded.links.into_iter().collect::<Vec<_>>(), [2], "the uplink");
    assert_eq!(guarded.addresses.into_iter().collect::<Vec<_>>(), [Ip::v4([192, 0, 2, 1])]);
    assert_eq!(guarded.ports, [61000..=65535]);

    let before = core.fallback_epoch();
    let mut changed = cluster();
    changed[2].1 = changed[2].1.replace("spec:\n  clusterIP", "spec:\n  type: NodePort\n  clusterIP");
    changed[2].1 = changed[2].1.replace("port: 80,", "port: 80, nodePort: 30080,");
    core.take(files(&changed), vec![]);
    assert_eq!(core.fallback_plan().expect("a plan").guarded.ports, [61000..=65535, 30080..=30080]);
    let now = core.fallback_epoch();
    assert!(now > before, "the kernel is told of a node port at once");
    changed.push(("slice.yaml", slice("web-3", "web", &["10.244.2.5"])));
    core.take(files(&changed), vec![]);
    assert_eq!(core.fallback_epoch(), now, "and of endpoints not at all");
}
