//! What stands behind a service's record: lists of backends, source ranges and Maglev tables, in one version of all.

use fairway_tables::*;
use std::collections::BTreeSet;

fn key() -> ServiceKey {
    ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6)
}

fn backends(count: u8) -> Vec<Backend> {
    (0..count).map(|n| Backend { ip: Ip::v4([10, 0, 0, n]), port: 8080, flags: 0 }).collect()
}

fn maglev(targets: Targets) -> Op {
    Op::SetService(key(), Service { id: 1, flags: Service::MAGLEV, affinity_timeout_s: 0 }, targets)
}

/// The backend that each of many flows gets, by a list's Maglev table.
fn choices(set: BackendSet<'_>) -> Vec<Option<Backend>> {
    let hashes = (0..5000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    hashes.map(|hash| set.maglev(hash).and_then(|number| set.get(number))).collect()
}

#[test]
fn a_maglev_service_chooses_in_each_of_its_lists_and_the_same_in_every_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), Capacities::default()).unwrap();
    let ranges = vec!["192.0.2.0/24".parse().unwrap()];
    let targets = Targets { cluster: backends(9), local: backends(2), source_ranges: ranges, ways: vec![] };
    writer.apply(&[maglev(targets.clone())]).unwrap();
    let service = writer.view().service(&key()).unwrap();
    assert_eq!(service.targets(), targets);
    let (cluster, local) = (choices(service.cluster()), choices(service.local()));
    for (list, chosen) in [(&targets.cluster, &cluster), (&targets.local, &local)] {
        let met: BTreeSet<_> = chosen.iter().copied().collect();
        assert_eq!(met, list.iter().copied().map(Some).collect());
    }
    drop(writer);

    let mut writer = Writer::open(dir.path(), Capacities::default()).unwrap();
    let service = writer.view().service(&key()).unwrap();
    assert_eq!((choices(service.cluster()), choices(service.local())), (cluster, local));
    // Nothing is written where nothing changed, and all of the block comes back when the service goes.
    let generation = writer.view().generation();
    assert_eq!(writer.apply(&[maglev(targets)]).unwrap(), generation);
    writer.apply(&[Op::DelService(key())]).unwrap();
    let usage = writer.usage().into_iter().find(|usage| usage.table == "backends").unwrap();
    assert_eq!(usage.used, 0);
}

#[test]
fn a_backend_that_goes_keeps_nearly_all_other_choices() {
    let (mut writer, _) = Tables::heap(Capacities::default());
    let mut list: Vec<Backend> = (0..1000u16)
        .map(|n| Backend { ip: Ip::v4([10, 1, (n >> 8) as u8, n as u8]), port: 80, flags: 0 })
        .collect();
    writer.apply(&[maglev(list.clone().into())]).unwrap();
    let before = choices(writer.view().service(&key()).unwrap().cluster());
    let gone = Some(list.remove(417));
    writer.apply(&[maglev(list.into())]).unwrap();
    let after = choices(writer.view().service(&key()).unwrap().cluster());
    let moved = before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count();
    assert!(moved * 100 < before.len(), "{moved} of {} clients were moved", before.len());
    assert!(!after.contains(&gone));
}

#[test]
fn tables_that_came_by_changes_and_restarts_are_those_of_a_fresh_file() {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<Backend> =
        (0..250u16).map(|n| Backend { ip: Ip::v4([10, 1, 0, n as u8]), port: 80, flags: 0 }).collect();
    let mut writer = Writer::open(dir.path(), Capacities::default()).unwrap();
    for step in 0..60 {
        if step % 7 == 6 {
            drop(writer);
            writer = Writer::open(dir.path(), Capacities::default()).unwrap();
        }
        let list = |count: usize| all[step..step + count].to_vec();
        let targets = Targets { cluster: list(150), local: list(50), ..Targets::default() };
        writer.apply(&[maglev(targets.clone())]).unwrap();
        let (mut fresh, _) = Tables::heap(Capacities::default());
        fresh.apply(&[maglev(targets)]).unwrap();
        let of = |writer: &Writer| {
            let service = writer.view().service(&key()).unwrap();
            (choices(service.cluster()), choices(service.local()))
        };
        assert!(of(&writer) == of(&fresh), "after {step} changes");
    }
}

#[test]
fn every_backend_is_found_by_its_address_and_port_and_no_other() {
    let (mut writer, _) = Tables::heap(Capacities::default());
    for count in 0..20 {
        let list = backends(count);
        writer.apply(&[maglev(list.clone().into())]).unwrap();
        let set = writer.view().service(&key()).unwrap().cluster();
        let found: Vec<_> = list.iter().map(|b| set.position(b.ip, b.port)).collect();
        assert_eq!(found, (0..usize::from(count)).map(Some).collect::<Vec<_>>());
        let other = Ip::v4([10, 0, 0, count]);
        assert_eq!((set.position(other, 8080), set.position(Ip::v4([10, 0, 0, 0]), 8081)), (None, None));
    }
}

#[test]
fn a_service_without_maglev_or_without_backends_has_no_table() {
    let (mut writer, _) = Tables::heap(Capacities::default());
    writer.apply(&[maglev(Targets::default())]).unwrap();
    assert_eq!(writer.view().service(&key()).unwrap().cluster().maglev(7), None);
    let plain = Service { id: 1, flags: 0, affinity_timeout_s: 0 };
    writer.apply(&[Op::SetService(key(), plain, backends(3).into())]).unwrap();
    assert_eq!(writer.view().service(&key()).unwrap().cluster().maglev(7), None);
}
