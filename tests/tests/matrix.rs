//! The path matrix: of every path in every mode, the right addresses are seen at each stage. `fairway-test matrix` prints
//! the same as a table.

use fairway_tests::gate;
use fairway_tests::matrix::{self, Mode};

fn walk(mode: Mode) {
    if !gate::may_run("matrix") {
        return;
    }
    let _alone = gate::alone();
    let outcomes = matrix::walk_mode(mode).unwrap_or_else(|error| panic!("{error}"));
    let right = outcomes.iter().all(|outcome| outcome.result.is_ok());
    let table = matrix::table(&[(mode, outcomes)]);
    println!("{table}");
    assert!(right, "{table}");
}

#[test]
fn every_path_through_vxlan_shows_the_right_addresses() {
    walk(Mode::Vxlan);
}

#[test]
fn every_path_through_ipip_shows_the_right_addresses() {
    walk(Mode::Ipip);
}

#[test]
fn every_path_without_encapsulation_shows_the_right_addresses() {
    walk(Mode::Direct);
}

#[test]
fn every_path_within_the_subnet_of_crosssubnet_shows_the_right_addresses() {
    walk(Mode::CrossSubnet);
}

#[test]
fn every_path_beyond_the_subnet_of_crosssubnet_shows_the_right_addresses() {
    walk(Mode::BeyondSubnet);
}

#[test]
fn every_path_by_shared_enis_shows_the_right_addresses() {
    walk(Mode::SharedEni);
}

#[test]
fn every_path_by_enis_of_pods_own_shows_the_right_addresses() {
    walk(Mode::ExclusiveEni);
}
