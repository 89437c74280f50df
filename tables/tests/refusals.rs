//! What is refused, with an error that says what, where and what to do, and nothing changed.

#[path = "common/model.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod model;

use fairway_tables::*;
use model::Model;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn tiny() -> Capacities {
    Capacities {
        ports: 2,
        endpoints: 2,
        routes: 8,
        next_hops: 4,
        route_groups: 1,
        lpm_nodes: 3,
        neighbours: 2,
        tunnels: 2,
        services: 2,
        backends: 8,
    }
}

fn hop(n: u8) -> NextHop {
    NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, n]), PortId(0))
}

fn route(prefix: &str, n: u8) -> Op {
    Op::SetRoute(prefix.parse().unwrap(), hop(n))
}

fn endpoint(n: u8) -> Op {
    Op::SetEndpoint(Ip::v4([10, 0, 0, n]), Endpoint::new(PortId(0), Mac::ZERO))
}

fn service(n: u8, backends: usize) -> Op {
    let backend = Backend { ip: Ip::v4([10, 0, 0, n]), port: 80, flags: 0 };
    let service = Service { id: n.into(), flags: 0, affinity_timeout_s: 0 };
    Op::SetService(ServiceKey::new(Ip::v4([10, 96, 0, n]), 80, 6), service, vec![backend; backends].into())
}

#[test]
fn a_batch_that_does_not_fit_changes_nothing_and_says_which_table_is_full() {
    let cases: Vec<(&str, Vec<Op>)> = vec![
        ("endpoints", vec![endpoint(8), endpoint(9)]),
        ("services", vec![service(8, 0), service(9, 0)]),
        ("backends", vec![service(8, 7)]),
        ("backends", vec![service(1, 9)]),
        ("next_hops", (2..7).map(|n| route(&format!("10.{n}.0.0/16"), n)).collect()),
        ("lpm_nodes", vec![route("10.9.0.0/32", 1), route("10.9.1.0/25", 1), route("10.9.2.0/25", 1)]),
        ("lpm_nodes", vec![route("fd09::/48", 1)]),
        ("routes", (2..12).map(|n| route(&format!("10.{n}.0.0/16"), 1)).collect()),
    ];
    for (table, mut ops) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), tiny()).unwrap();
        writer.apply(&[endpoint(1), service(1, 2), route("10.1.0.0/30", 1)]).unwrap();
        let (before, usage, generation) =
            (Model::of(writer.view()), writer.usage(), writer.view().generation());
        // Something that would fit comes first and last.
        ops.insert(0, route("172.16.0.0/16", 1));
        ops.push(Op::DelEndpoint(Ip::v4([10, 0, 0, 77])));
        match writer.apply(&ops) {
            Err(ApplyError::Full { table: named, needed, capacity }) => {
                assert_eq!(named, table);
                assert!(needed > capacity, "{table}: {needed} of {capacity}");
            }
            other => panic!("{table}: {other:?}"),
        }
        assert_eq!((Model::of(writer.view()), writer.usage()), (before.clone(), usage));
        assert_eq!(writer.view().generation(), generation);
        before.check(writer.view());
        writer.apply(&[endpoint(2), service(2, 6), route("fd00::/20", 2)]).unwrap();
    }
}

#[test]
fn a_full_table_can_be_rewritten_whole() {
    let (mut writer, factory) = Tables::heap(tiny());
    let mut reader = factory.reader();
    for n in 1..50 {
        let ops = [endpoint(n), endpoint(n + 1), Op::DelEndpoint(Ip::v4([10, 0, 0, n - 1]))];
        writer.apply(&ops).unwrap();
        writer.apply(&[service(1, 4), service(2, 4)]).unwrap();
        writer.apply(&[service(2, 2), service(1, 6)]).unwrap();
        reader.quiescent();
        assert_eq!(reader.view().endpoints().count(), 2);
    }
}

#[test]
fn a_key_that_no_look_up_finds_is_refused() {
    let (mut writer, _) = Tables::heap(tiny());
    let port = Port::new("eth0", PortKind::Uplink, 1500, Mac::ZERO, Mac::ZERO).unwrap();
    let malformed: [Prefix; 2] = [
        bytemuck::cast([0u32, 0, 0xffff_0000, 0, 300]),
        bytemuck::cast([0u32, 0, 0xffff_0000, u32::MAX, 104]),
    ];
    for op in [
        Op::SetPort(PortId::NONE, port),
        Op::SetRoute(malformed[0], hop(1)),
        Op::SetRoute(malformed[1], hop(1)),
    ] {
        let error = writer.apply(&[endpoint(1), op]).unwrap_err();
        assert!(matches!(error, ApplyError::BadKey { .. }), "{error}");
        assert_eq!(writer.view().generation(), 0);
    }
}

#[test]
fn what_changes_nothing_makes_no_generation() {
    let (mut writer, _) = Tables::heap(tiny());
    assert_eq!(writer.apply(&[]), Ok(0));
    assert_eq!(writer.apply(&[Op::DelEndpoint(Ip::UNSPECIFIED)]), Ok(0));
    let ops = [endpoint(1), service(1, 3), route("::/0", 1), route("0.0.0.0/0", 2)];
    assert_eq!(writer.apply(&ops), Ok(1));
    assert_eq!(writer.apply(&ops), Ok(1));
    assert_eq!(writer.apply(&[service(1, 2)]), Ok(2));
}

fn write_word(file: &Path, offset: u64, word: u64) {
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(&word.to_ne_bytes(), offset).unwrap();
}

fn error<T>(result: Result<T, OpenError>) -> OpenError {
    result.err().expect("refused")
}

/// Opens for reading and for writing; both must refuse, for the same reason.
fn refused(dir: &Path) -> OpenError {
    let by_writer = error(Writer::open(dir, tiny()));
    let by_reader = error(Reader::open(dir, "test"));
    assert_eq!(by_writer.to_string(), by_reader.to_string());
    by_reader
}

fn made() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    drop(Writer::open(dir.path(), tiny()).unwrap());
    let tables = dir.path().join("tables");
    (dir, tables)
}

#[test]
fn a_file_of_another_kind_version_or_layout_is_refused() {
    let (dir, tables) = made();
    write_word(&tables, 8, 99);
    assert!(matches!(refused(dir.path()), OpenError::AbiVersion { found: 99, expected: 4, .. }));
    let (dir, tables) = made();
    write_word(&tables, 16, 99);
    assert!(matches!(refused(dir.path()), OpenError::Layout { found: 99, .. }));
    let (dir, tables) = made();
    write_word(&tables, 0, 99);
    assert!(matches!(refused(dir.path()), OpenError::NotOurs { .. }));
    let (dir, tables) = made();
    write_word(&tables, 64, u64::MAX);
    assert!(matches!(refused(dir.path()), OpenError::Corrupt { table: "header", .. }));
    let (dir, _) = made();
    write_word(&dir.path().join("quiescence"), 8, 99);
    assert!(matches!(refused(dir.path()), OpenError::AbiVersion { found: 99, .. }));
}

#[test]
fn a_file_that_was_cut_is_refused() {
    let (dir, tables) = made();
    let file = OpenOptions::new().write(true).open(&tables).unwrap();
    let len = file.metadata().unwrap().len();
    for cut in [len - 4096, len - 1, 100_000, 4096] {
        file.set_len(cut).unwrap();
        assert!(matches!(refused(dir.path()), OpenError::Length { .. }), "{cut}");
    }
    for cut in [4095, 8, 0] {
        file.set_len(cut).unwrap();
        assert!(matches!(refused(dir.path()), OpenError::Length { expected: 69_632, .. }), "{cut}");
    }
}

#[test]
fn missing_tables_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = error(Reader::open(dir.path(), "test"));
    assert!(matches!(&error, OpenError::Missing { path } if path.ends_with("tables")), "{error}");
}

#[test]
fn capacities_that_no_file_can_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let too_many = Capacities { ports: 70_000, ..tiny() };
    assert!(matches!(
        Writer::open(dir.path(), too_many),
        Err(OpenError::CapacityLimit { table: "ports", asked: 70_000, limit: 65_535 })
    ));
}

#[test]
fn a_second_writer_is_refused_and_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let first = Writer::open(dir.path(), tiny()).unwrap();
    let pid = std::process::id();
    let error = error(Writer::open(dir.path(), tiny()));
    assert!(matches!(error, OpenError::WriterRunning { pid: p, .. } if p == pid), "{error}");
    drop(first);
    Writer::open(dir.path(), tiny()).unwrap();
}

#[test]
fn there_are_64_reader_slots_and_they_come_back() {
    let (dir, _) = made();
    let mut readers: Vec<_> = (0..64).map(|i| Reader::open(dir.path(), &format!("r{i}")).unwrap()).collect();
    let error = error(Reader::open(dir.path(), "one more"));
    assert!(matches!(error, OpenError::TooManyReaders { slots: 64, .. }), "{error}");
    readers.pop();
    Reader::open(dir.path(), "one more").unwrap();
}

#[test]
fn tables_from_before_the_boot_are_made_anew_and_readers_can_tell() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), tiny()).unwrap();
    writer.apply(&[endpoint(1)]).unwrap();
    drop(writer);
    let reader = Reader::open(dir.path(), "old").unwrap();
    assert!(!reader.is_superseded());
    write_word(&dir.path().join("tables"), 40, 12345);
    let mut writer = Writer::open(dir.path(), Capacities { tunnels: 9, ..tiny() }).unwrap();
    assert_eq!((writer.view().generation(), writer.view().endpoints().count()), (0, 0));
    assert!(reader.is_superseded());
    assert_eq!(reader.view().endpoints().count(), 1);
    // A reader of the former file holds nothing of the new one back.
    for n in 0..100 {
        writer.apply(&[endpoint(n), Op::DelEndpoint(Ip::v4([10, 0, 0, n.wrapping_sub(1)]))]).unwrap();
    }
}

#[test]
fn a_new_writer_waits_for_readers_of_what_the_former_one_retired() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), tiny()).unwrap();
    let mut reader = Reader::open(dir.path(), "slow").unwrap();
    writer.apply(&[service(1, 4)]).unwrap();
    reader.quiescent();
    let held = reader.view().service(&ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6)).unwrap();
    writer.apply(&[service(1, 3)]).unwrap();
    drop(writer);
    let mut writer = Writer::open(dir.path(), tiny()).unwrap();
    let mut refused = 0;
    for n in 0..50 {
        refused += u32::from(writer.apply(&[service(1, 1 + n % 4)]).is_err());
        assert_eq!((held.service().id, held.cluster().len()), (1, 4));
        assert!(held.backends().all(|b| b == Backend { ip: Ip::v4([10, 0, 0, 1]), port: 80, flags: 0 }));
    }
    assert!(refused > 0);
    reader.quiescent();
    writer.apply(&[service(1, 8)]).unwrap();
}

#[test]
fn every_table_of_a_former_writer_holds_retired_entries_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), tiny()).unwrap();
    let mut reader = Reader::open(dir.path(), "slow").unwrap();
    let fill = |n| [endpoint(1), service(n, 4), route("10.1.0.0/30", n), route("10.2.0.0/16", n)];
    writer.apply(&fill(1)).unwrap();
    reader.quiescent();
    let mac = Mac([2; 6]);
    writer
        .apply(&[
            Op::SetEndpoint(Ip::v4([10, 0, 0, 1]), Endpoint::new(PortId(1), mac)),
            Op::DelService(ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6)),
            Op::DelRoute("10.1.0.0/30".parse().unwrap()),
            route("10.2.0.0/16", 2),
        ])
        .unwrap();
    drop(writer);
    let retired = |writer: &Writer| {
        let usage = writer.usage();
        usage.into_iter().filter(|u| u.retired > 0).map(|u| u.table).collect::<Vec<_>>()
    };
    let mut writer = Writer::open(dir.path(), tiny()).unwrap();
    writer.apply(&[service(2, 0)]).unwrap();
    let tables = ["endpoints", "routes", "next_hops", "lpm_nodes", "services", "backends"];
    assert_eq!(retired(&writer), tables);
    reader.quiescent();
    writer.apply(&[service(2, 1)]).unwrap();
    assert_eq!(retired(&writer), ["services"]);
}
