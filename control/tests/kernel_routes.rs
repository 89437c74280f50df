//! Routes of the kernel's main table in the engine's: what daemons and administrators put there, told by a real kernel
//! in a namespace of its own.

mod common;

use common::{Netns, control::Control, eventually, node, privileged, run};
use fairway_control::api::types::{Route, Status};

/// A node with two links, `eth0` its uplink, and a neighbour on each.
fn testbed() -> (Netns, Netns, tempfile::TempDir) {
    let (netns, wire) = (Netns::new("fwra"), Netns::new("fwrb"));
    for (number, subnet) in [(0, "192.0.2"), (1, "198.51.100")] {
        let link = format!("eth{number}");
        run(&format!("ip -n {} link add {link} type veth peer name {link} netns {}", netns.0, wire.0));
        for (ns, host) in [(&netns, 1), (&wire, 2)] {
            ns.run(&format!("ip addr add {subnet}.{host}/24 dev {link}"));
            ns.run(&format!("ip addr add fd00:{number}::{host}/64 dev {link} nodad"));
            ns.run(&format!("ip link set {link} up"));
        }
    }
    wire.run("ip addr add 192.0.2.3/24 dev eth0");
    wire.run("ip addr add fd00:0::3/64 dev eth0 nodad");
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("manifests")).unwrap();
    let text = node("node-a", "10.244.1.0/24", "192.0.2.1") + &node("node-b", "10.244.2.0/24", "192.0.2.2");
    std::fs::write(dir.path().join("manifests/nodes.yaml"), text).unwrap();
    (netns, wire, dir)
}

/// The routes of a prefix, as `kind next-hop weight`.
fn ways(control: &Control, prefix: &str) -> Result<Vec<String>, String> {
    let routes: Vec<Route> = control.get("/routes")?;
    let text = |route: &Route| {
        let (hop, weight) = (route.next_hop.clone().unwrap_or_default(), route.weight);
        format!("{} {hop} {}", route.kind, weight.map(|n| n.to_string()).unwrap_or_default())
            .trim()
            .to_owned()
    };
    Ok(routes.iter().filter(|route| route.prefix == prefix).map(text).collect())
}

/// Waits until a prefix has exactly these ways.
fn expect(control: &Control, prefix: &str, wanted: &[&str]) {
    eventually(&format!("{prefix} by {wanted:?}"), || {
        let found = ways(control, prefix)?;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn routes_of_every_kind_come_into_the_engines_table_and_go() {
    if !privileged() {
        return;
    }
    let (netns, _wire, dir) = testbed();
    netns.run("ip route add 10.9.0.0/24 via 192.0.2.2 proto bird");
    let control = Control::start(&netns, dir.path());
    // There before control was.
    expect(&control, "10.9.0.0/24", &["gateway 192.0.2.2"]);
    netns.run("ip route del 10.9.0.0/24");
    expect(&control, "10.9.0.0/24", &[]);

    let (v4, v6) = ("10.9.1.0/24", "fd00:9::/64");
    netns.run(&format!("ip route add {v4} via 192.0.2.2 proto zebra"));
    expect(&control, v4, &["gateway 192.0.2.2"]);
    netns.run(&format!(
        "ip route replace {v4} proto zebra nexthop via 192.0.2.2 weight 2 nexthop via 192.0.2.3 nexthop via 198.51.100.2"
    ));
    // What leads out of another device than an uplink is the kernel's to send.
    expect(&control, v4, &["host  1", "gateway 192.0.2.2 2", "gateway 192.0.2.3 1"]);
    netns.run(&format!("ip route add {v4} via 192.0.2.9 metric 50"));
    netns.run("ip link set eth1 down");
    expect(&control, v4, &["gateway 192.0.2.2 2", "gateway 192.0.2.3 1"]);
    netns.run("ip link set eth1 up");
    netns.run(&format!("ip route del {v4} proto zebra"));
    expect(&control, v4, &["gateway 192.0.2.9"]);
    netns.run(&format!("ip route del {v4}"));
    expect(&control, v4, &[]);

    netns.run(&format!("ip -6 route add {v6} via fd00:0::2 proto bird"));
    expect(&control, v6, &["gateway fd00::2"]);
    netns.run(&format!("ip -6 route append {v6} via fd00:0::3 proto bird"));
    expect(&control, v6, &["gateway fd00::2 1", "gateway fd00::3 1"]);
    netns.run(&format!("ip -6 route del {v6} via fd00:0::2"));
    expect(&control, v6, &["gateway fd00::3"]);
    netns.run(&format!("ip -6 route del {v6}"));
    expect(&control, v6, &[]);

    netns.run("ip route add blackhole 10.9.2.0/24");
    netns.run("ip route add unreachable 10.9.3.0/24");
    netns.run("ip route add 10.9.4.7/32 dev eth0");
    netns.run("ip route add 10.9.5.0/24 dev eth0");
    netns.run("ip route add 10.9.6.0/24 via 203.0.113.7 dev eth0 onlink");
    netns.run("ip nexthop add id 7 via 192.0.2.3 dev eth0");
    netns.run("ip route add 10.9.7.0/24 nhid 7");
    expect(&control, "10.9.2.0/24", &["blackhole"]);
    expect(&control, "10.9.3.0/24", &["unreachable"]);
    expect(&control, "10.9.4.7/32", &["gateway"]);
    expect(&control, "10.9.5.0/24", &["host"]);
    expect(&control, "10.9.6.0/24", &["gateway 203.0.113.7"]);
    expect(&control, "10.9.7.0/24", &["gateway 192.0.2.3"]);
    expect(&control, "192.0.2.0/24", &["host"]);
    // Routes go with their next hop object, which the kernel does not say of each.
    netns.run("ip nexthop del id 7");
    expect(&control, "10.9.7.0/24", &[]);

    // Neighbours that answer are resolved though the node sends them nothing; one that does not is named.
    netns.run("ip route add 10.9.8.0/24 via 192.0.2.3");
    eventually("neighbours", || {
        let neighbours: Vec<serde_json::Value> = control.get("/neighbours")?;
        let found = neighbours.iter().any(|neighbour| neighbour["ip"] == "192.0.2.3");
        if found { Ok(()) } else { Err(format!("{neighbours:?}")) }
    });
    let status: Status = control.get("/status").unwrap();
    let silent = status.pending.iter().find(|p| p.what == "next hop 203.0.113.7").expect("it is named");
    assert!(silent.reason.contains("does not answer"), "{}", silent.reason);
}

#[test]
fn what_is_fairways_own_or_leads_back_or_lies_among_its_pods_is_left_out() {
    if !privileged() {
        return;
    }
    let (netns, _wire, dir) = testbed();
    let control = Control::start(&netns, dir.path());
    eventually("host routes", || {
        let routes = netns.text("ip route show proto 70");
        if routes.contains("10.244.2.0/24") { Ok(()) } else { Err(routes) }
    });
    netns.run("ip route add 10.9.0.0/24 dev fwhost0");
    netns.run("ip route add default via 192.0.2.2");
    netns.run("ip route add 10.9.1.0/24 via 192.0.2.2 table 100");
    // What announces a node's range must not swallow its pods, nor be a way around a tunnel.
    netns.run("ip route add blackhole 10.244.1.0/26 proto bird");
    netns.run("ip route add 10.244.2.64/26 via 192.0.2.3 proto bird");
    netns.run("ip route add blackhole 10.244.3.0/24 proto bird");
    // The last comes in, and so did all before it.
    expect(&control, "10.244.3.0/24", &["blackhole"]);
    for (prefix, wanted) in [
        ("10.9.0.0/24", &[][..]),
        ("10.9.1.0/24", &[]),
        ("0.0.0.0/0", &["gateway 192.0.2.2"]),
        ("10.244.1.0/24", &["local"]),
        ("10.244.1.0/26", &[]),
        ("10.244.2.0/24", &["tunnel 192.0.2.2"]),
        ("10.244.2.64/26", &[]),
    ] {
        assert_eq!(ways(&control, prefix).unwrap(), wanted, "{prefix}");
    }
    // Without encapsulation the kernel's route is the better one, the Node object's the next best.
    let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pods}\nspec: {cidr: 10.244.0.0/16}\n";
    std::fs::write(dir.path().join("manifests/pool.yaml"), pool).unwrap();
    expect(&control, "10.244.2.0/24", &["gateway 192.0.2.2"]);
    expect(&control, "10.244.2.64/26", &["gateway 192.0.2.3"]);
    expect(&control, "10.244.0.0/16", &["unreachable"]);
    // Of the default route masquerading decides, for which this pool does not ask.
    expect(&control, "0.0.0.0/0", &["host"]);
    // With BIRD's metric, beside Fairway's own route into the host veth.
    netns.run("ip route add 10.244.2.0/24 via 192.0.2.3 proto bird metric 32");
    expect(&control, "10.244.2.0/24", &["gateway 192.0.2.3"]);
    netns.run("ip route del 10.244.2.0/24 proto bird");
    expect(&control, "10.244.2.0/24", &["gateway 192.0.2.2"]);
}
