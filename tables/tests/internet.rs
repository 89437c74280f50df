//! A real Internet routing table: every look-up must find the longest match that another program found.
//! Needs the vectors folder (FAIRWAY_VECTORS); without it the test says so and is skipped, except in CI.

use fairway_tables::*;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

#[path = "../../tests/src/vectors.rs"]
mod vectors;

fn lines(path: PathBuf) -> impl Iterator<Item = Vec<String>> {
    let text = BufReader::new(flate2::read::MultiGzDecoder::new(File::open(path).unwrap()));
    text.lines().map(|line| line.unwrap().split('\t').map(str::to_owned).collect())
}

/// The origin's AS number, in the shape of a next hop.
fn next_hop(origin: &str) -> NextHop {
    let number: u32 = origin.parse().unwrap();
    NextHop::new(NextHopKind::Gateway, Ip::v4(number.to_be_bytes()), PortId(0))
}

#[test]
fn look_ups_in_a_real_internet_table_find_the_longest_match() {
    let Some(table) = vectors::find("v4_20080501.routes.tsv.gz") else { return };
    let answers = vectors::find("v4_20080501.lookups.tsv.gz").expect("the routing table has answers");
    let routes: Vec<(Prefix, NextHop)> =
        lines(table).map(|line| (line[0].parse().unwrap(), next_hop(&line[1]))).collect();
    assert!(routes.len() > 200_000);
    let (mut writer, factory) =
        Tables::heap(Capacities { routes: 300_000, next_hops: 40_000, ..Capacities::default() });
    let sets: Vec<Op> = routes.iter().map(|(prefix, hop)| Op::SetRoute(*prefix, *hop)).collect();
    // In parts, so that nodes made by one batch are found by the next.
    for part in sets.chunks(50_000) {
        writer.apply(part).unwrap();
    }
    let reader = factory.reader();
    let check = |gone: &dyn Fn(&Prefix) -> bool| {
        let (mut found, mut none) = (0, 0);
        for line in lines(answers.clone()) {
            let ip: std::net::IpAddr = line[0].parse().unwrap();
            let longest = line[1].parse::<Prefix>().ok();
            if longest.is_some_and(|prefix| gone(&prefix)) {
                continue;
            }
            let expected = longest.map(|_| next_hop(&line[2]));
            assert_eq!(reader.view().route(ip.into()), expected, "{ip}");
            found += u32::from(expected.is_some());
            none += u32::from(expected.is_none());
        }
        (found, none)
    };
    let (found, none) = check(&|_| false);
    println!("{} routes: {found} addresses with a match, {none} without", routes.len());
    assert!(found > 50_000 && none > 1000);

    // Without every second route the others still answer for their own addresses.
    let deleted: std::collections::HashSet<Prefix> = routes.iter().step_by(2).map(|r| r.0).collect();
    writer.apply(&deleted.iter().map(|p| Op::DelRoute(*p)).collect::<Vec<_>>()).unwrap();
    let (found, _) = check(&|prefix| deleted.contains(prefix));
    assert!(found > 20_000);
    writer.apply(&routes.iter().map(|r| Op::DelRoute(r.0)).collect::<Vec<_>>()).unwrap();
    let used = |table| writer.usage().iter().find(|u| u.table == table).unwrap().used;
    assert_eq!((used("routes"), used("next_hops"), used("lpm_nodes")), (0, 0, 0));
}
