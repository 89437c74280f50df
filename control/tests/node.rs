//! The real binary in a network namespace of its own: host veth, kernel routes, next hops, pods that come and go,
//! restarts that change nothing.

mod common;

use common::control::Control;
use common::{Netns, eventually, node, pod, replace, run, service, slice};
use fairway_control::api::types::{Endpoint, Port, Service, Status, Tunnel};
use fairway_control::names::{GATEWAY_MAC, host_veth, pod_mac, vtep_mac};
use fairway_tables::{Capacities, Ip, Writer};
use std::path::Path;

fn tables_bytes(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("run/tables")).unwrap()
}

/// All that the tables hold.
fn answers(control: &Control) -> Vec<serde_json::Value> {
    let pages = ["/routes", "/services", "/endpoints", "/neighbours", "/tunnels", "/ports"];
    pages.iter().map(|page| control.get(page).unwrap()).collect()
}

fn expect<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
}

/// A node with an uplink to a neighbour that answers ARP, and manifests of two nodes.
fn testbed() -> (Netns, Netns, tempfile::TempDir) {
    let (netns, wire) = (Netns::new("fwca"), Netns::new("fwcb"));
    run(&format!("ip -n {} link add eth0 type veth peer name eth0 netns {}", netns.0, wire.0));
    for (ns, ip) in [(&netns, "192.0.2.1/24"), (&wire, "192.0.2.2/24")] {
        ns.run(&format!("ip addr add {ip} dev eth0"));
        ns.run("ip link set eth0 up");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("manifests")).unwrap();
    let text = node("node-a", "10.244.1.0/24", "192.0.2.1") + &node("node-b", "10.244.2.0/24", "192.0.2.2");
    std::fs::write(dir.path().join("manifests/nodes.yaml"), text).unwrap();
    let text = pod("web", "node-a", "10.244.1.5")
        + &service("web", "10.96.0.10", 80)
        + &slice("web-1", "web", &["10.244.1.5", "10.244.2.5"]);
    std::fs::write(dir.path().join("manifests/web.yaml"), text).unwrap();
    (netns, wire, dir)
}

fn add_pod_veth(netns: &Netns, name: &str) -> String {
    let veth = host_veth("default", name);
    netns.run(&format!("ip link add {veth} type veth peer name p{}", &veth[2..]));
    netns.run(&format!("ip link set {veth} up"));
    veth
}

#[test]
fn a_node_gets_its_host_veth_routes_neighbours_and_pods_and_a_restart_changes_nothing() {
    if !common::privileged() {
        return;
    }
    let (netns, wire, dir) = testbed();
    let mut control = Control::start(&netns, dir.path());

    // The node's own side: address, routes with their source, reverse path filter off.
    eventually("host network", || {
        let routes = netns.text("ip route show dev fwhost0");
        for line in ["10.244.1.0/24", "10.244.2.0/24", "10.96.0.10"] {
            let found =
                routes.lines().find(|l| l.starts_with(line)).ok_or(format!("no {line} in:\n{routes}"))?;
            expect(found.contains("src 10.244.1.1") && found.contains("proto 70"), true)?;
        }
        expect(netns.text("ip -o addr show dev fwhost0").contains("inet 10.244.1.1/32"), true)?;
        expect(netns.text("ip -d link show fwhost0").contains("mtu 1450"), true)
    });
    let offloads = netns.text("ip -d link show fwhost0");
    assert!(offloads.contains("numtxqueues 1") && offloads.contains("numrxqueues 1"), "{offloads}");
    assert_eq!(netns.text("cat /proc/sys/net/ipv4/conf/fwhost0/rp_filter").trim(), "0");

    // The tunnel's next hop is resolved although nothing sends to it.
    let mac = wire.text("cat /sys/class/net/eth0/address").trim().to_owned();
    eventually("neighbour", || {
        let tunnels: Vec<Tunnel> = control.get("/tunnels")?;
        let tunnel = tunnels.first().ok_or("no tunnel")?;
        expect((tunnel.node.as_str(), tunnel.next_hop.as_str()), ("node-b", "192.0.2.2"))?;
        expect(
            (&tunnel.remote_mac, &tunnel.local_mac),
            (&vtep_mac("node-b").to_string(), &vtep_mac("node-a").to_string()),
        )?;
        expect(tunnel.next_hop_mac.as_deref(), Some(mac.as_str()))
    });

    // A pod waits for its veth, and has its port as soon as that is there.
    let status: Status = control.get("/status").unwrap();
    assert!(status.pending.iter().any(|p| p.what == "Pod default/web"), "{:?}", status.pending);
    assert_eq!(status.errors, Vec::<String>::new(), "an offload that stays on would be among them");
    let veth = add_pod_veth(&netns, "web");
    eventually("endpoint", || {
        let endpoints: Vec<Endpoint> = control.get("/endpoints")?;
        let endpoint = endpoints.first().ok_or("no endpoint")?;
        expect(
            (endpoint.ip.as_str(), endpoint.ifname.as_str(), endpoint.port),
            ("10.244.1.5", veth.as_str(), 2),
        )?;
        expect(&endpoint.mac, &pod_mac(Ip::v4([10, 244, 1, 5])).to_string())
    });
    eventually("the gateway's address on the veth", || {
        let ports: Vec<Port> = control.get("/ports")?;
        expect(ports.last().map(|port| port.mac.clone()), Some(GATEWAY_MAC.to_string()))
    });
    let status: Status = control.get("/status").unwrap();
    assert_eq!(status.pending, []);
    assert_eq!(status.uplink.as_ref().map(|u| u.ifname.as_str()), Some("eth0"));
    let services: Vec<Service> = control.get("/services").unwrap();
    assert_eq!(services[0].backends.len(), 2);

    // Killed at any moment and started again, it writes nothing. (Opening the tables may itself begin a generation,
    // to reuse what the former writer left behind.)
    let (before, generation) = (answers(&control), status.generation);
    control.signal(9);
    let bytes = tables_bytes(dir.path());
    let mut control = Control::start(&netns, dir.path());
    eventually("resync", || expect(control.get::<Status>("/status")?.pending, vec![]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(answers(&control), before);
    let again = control.get::<Status>("/status").unwrap().generation;
    assert!(again <= generation + 1, "{generation} became {again}");
    if again == generation {
        assert!(tables_bytes(dir.path()) == bytes, "a byte of the tables changed");
    }

    // A second instance is refused and harms nothing.
    let second = Control::command(&netns, dir.path(), &[]).output().unwrap();
    assert!(!second.status.success());
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("already has a writer"), "{error}");
    assert!(control.get::<Status>("/status").is_ok());

    // A pod added and a veth removed while it runs.
    let text = std::fs::read_to_string(dir.path().join("manifests/web.yaml")).unwrap();
    let two = text + &pod("db", "node-a", "10.244.1.6");
    replace(&dir.path().join("manifests/web.yaml"), &two);
    add_pod_veth(&netns, "db");
    eventually("second pod", || expect(control.get::<Vec<Endpoint>>("/endpoints")?.len(), 2));
    netns.run(&format!("ip link del {veth}"));
    eventually("first pod gone", || {
        let ports: Vec<Port> = control.get("/ports")?;
        expect(ports.iter().map(|p| p.id).collect::<Vec<_>>(), vec![0, 1, 3])
    });

    // A node that leaves takes its routes, tunnel and neighbour along, in the kernel too.
    replace(&dir.path().join("manifests/nodes.yaml"), &node("node-a", "10.244.1.0/24", "192.0.2.1"));
    eventually("node gone", || {
        expect(control.get::<Vec<Tunnel>>("/tunnels")?.len(), 0)?;
        expect(control.get::<Vec<serde_json::Value>>("/neighbours")?.len(), 0)?;
        expect(netns.text("ip route show dev fwhost0").contains("10.244.2.0/24"), false)
    });

    // In good order: the socket goes, tables and host veth stay; --cleanup removes the veth.
    assert!(control.signal(15).success());
    assert!(!dir.path().join("run/control.sock").exists());
    assert!(dir.path().join("run/tables").exists());
    netns.run("ip link show fwhost0");
    netns.run(&format!("{} --cleanup", env!("CARGO_BIN_EXE_fairway-control")));
    assert!(!netns.text("ip link show").contains("fwhost"));
    let writer = Writer::open(&dir.path().join("run"), Capacities::default()).unwrap();
    assert!(writer.view().generation() > generation);
}

#[test]
fn a_remote_node_behind_a_gateway_is_reached_through_it_and_follows_the_kernels_routes() {
    if !common::privileged() {
        return;
    }
    let (netns, wire, dir) = testbed();
    let text =
        node("node-a", "10.244.1.0/24", "192.0.2.1") + &node("node-b", "10.244.2.0/24", "198.51.100.7");
    replace(&dir.path().join("manifests/nodes.yaml"), &text);
    let control = Control::start(&netns, dir.path());
    let status: Status = control.get("/status").unwrap();
    let waits = status.pending.iter().find(|p| p.what == "tunnel to Node node-b").expect("the tunnel waits");
    assert!(waits.reason.contains("no route to 198.51.100.7"), "{}", waits.reason);

    let next_hop = |wanted: &str| {
        eventually(wanted, || {
            let tunnels: Vec<Tunnel> = control.get("/tunnels")?;
            let tunnel = tunnels.first().ok_or("no tunnel")?;
            expect((tunnel.next_hop.as_str(), tunnel.next_hop_mac.is_some()), (wanted, true))
        });
    };
    wire.run("ip addr add 192.0.2.3/24 dev eth0");
    netns.run("ip route add 198.51.100.0/24 via 192.0.2.2");
    next_hop("192.0.2.2");
    netns.run("ip route replace 198.51.100.0/24 via 192.0.2.3");
    next_hop("192.0.2.3");

    // The uplink loses its routes without a word when it goes down; they come back with it.
    netns.run("ip link set eth0 down");
    eventually("tunnel gone", || expect(control.get::<Vec<Tunnel>>("/tunnels")?.len(), 0));
    netns.run("ip link set eth0 up");
    netns.run("ip route add 198.51.100.0/24 via 192.0.2.2");
    next_hop("192.0.2.2");
}

#[test]
fn anothers_vxlan_device_is_named_and_left_alone_and_ours_is_made_once_it_is_gone() {
    if !common::privileged() {
        return;
    }
    let (netns, _wire, dir) = testbed();
    netns.run("ip link add flannel.1 address 02:00:00:00:00:77 type vxlan id 4096 dstport 4789 nolearning");
    netns.run("ip link set flannel.1 up");
    let control = Control::start(&netns, dir.path());
    eventually("the device in the way is named", || {
        let errors = control.get::<Status>("/status")?.errors;
        let said =
            errors.iter().any(|e| e.contains("device flannel.1 has VXLAN network 4096 on UDP port 4789"));
        expect(said, true).map_err(|_| format!("{errors:?}"))
    });
    // All that can do without it is made.
    eventually("the rule", || expect(netns.text("ip rule show").contains("iif fwhost1 lookup 7070"), true));
    let foreign = netns.text("ip -d link show flannel.1");
    assert!(foreign.contains("02:00:00:00:00:77") && foreign.contains("id 4096"), "{foreign}");

    netns.run("ip link del flannel.1");
    eventually("our device", || {
        let link = netns.text("ip -d link show");
        expect(link.contains("fairway.vxlan") && link.contains(&vtep_mac("node-a").to_string()), true)
    });
    eventually("no error", || expect(control.get::<Status>("/status")?.errors, vec![]));
    let fdb = netns.text("bridge fdb show dev fairway.vxlan");
    assert!(fdb.contains(&vtep_mac("node-b").to_string()) && fdb.contains("dst 192.0.2.2"), "{fdb}");
    let filter = netns.text("tc filter show dev fwhost1 ingress");
    assert!(filter.contains("pref 70 bpf") && filter.contains("direct-action"), "{filter}");
    // Its entries are no facts about the uplink's neighbours.
    assert_eq!(control.get::<Vec<Tunnel>>("/tunnels").unwrap()[0].next_hop, "192.0.2.2");
}

#[test]
fn an_uplink_that_does_not_exist_and_a_missing_folder_are_refused_with_what_to_do() {
    if !common::privileged() {
        return;
    }
    let (netns, _wire, dir) = testbed();
    let output = Control::command(&netns, dir.path(), &["--uplink", "eth7"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("no device eth7") && error.contains("eth0"),
        "{error}"
    );
    assert!(!netns.text("ip link show").contains("fwhost"), "nothing may be half done");

    std::fs::remove_dir_all(dir.path().join("manifests")).unwrap();
    let output = Control::command(&netns, dir.path(), &[]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("set --manifests"), "{error}");
}
