//! Damaged files: whatever the bytes, readers and the next writer neither panic, hang nor read out of
//! bounds. (Out of bounds would end the test by a signal.)

#[path = "common/model.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod model;

use fairway_tables::stats::*;
use fairway_tables::*;
use model::{Model, any_op, capacities, deletes_of, probes};
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Uses everything that a reader can do, and drains every iterator.
fn look_at_everything(view: View<'_>, model: &Model) {
    let mut seen = view.ports().count() + view.endpoints().count() + view.routes().count();
    seen += view.neighbours().count() + view.tunnels().count();
    seen += view.services().map(|(_, s)| s.backends().count()).sum::<usize>();
    for ip in probes(model.routes.keys()) {
        seen += usize::from(view.route(ip).is_some() || view.route_for(ip, 7).is_some());
        seen += view.paths(ip).map_or(0, |paths| paths.paths().len());
    }
    for key in model.services.keys() {
        seen += view.service(key).map_or(0, |s| s.backends().count());
    }
    for key in model.endpoints.keys() {
        seen += usize::from(view.endpoint(*key).is_some() || view.tunnel(*key).is_some());
        let number = view
            .tunnel_number(*key)
            .unwrap_or(u32::from_ne_bytes([key.0[0], key.0[5], key.0[14], key.0[15]]));
        seen += usize::from(view.numbered_tunnel(number).is_some());
    }
    std::hint::black_box(seen);
}

/// Works out every sum that is shown.
fn look_at_counters(snapshot: &StatsSnapshot) {
    let sums = Counter::ALL.iter().map(|counter| snapshot.counter(*counter));
    let drops = DropReason::ALL.iter().map(|reason| snapshot.drops(*reason)).chain([snapshot.all_drops()]);
    let ports = (0..12).map(|port| snapshot.port(PortId(port)).tx_bytes);
    let stages = Stage::ALL.iter().map(|stage| snapshot.stage(*stage).sum_ns);
    std::hint::black_box(sums.chain(drops).chain(ports).chain(stages).fold(0, u64::wrapping_add));
}

/// Where a change hits: the start of the file, where header and hash tables lie, or anywhere.
fn any_damage() -> impl Strategy<Value = (u64, u64)> {
    let place =
        prop_oneof![2 => 0u64..600, 1 => 4096u64..69_632, 6 => 69_632u64..470_000, 1 => 470_000u64..u64::MAX];
    let word = prop_oneof![any::<u64>(), 0u64..200, (0u64..200).prop_map(|n| n << 32), Just(u64::MAX)];
    (place, word)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tables_never_panic_hang_or_read_out_of_bounds(
        ops in prop::collection::vec(any_op(), 150),
        more in prop::collection::vec(any_op(), 40),
        grown in prop::sample::subsequence(vec!["services", "backends", "endpoints", "neighbours"], 0..3),
        damage in prop::collection::vec(any_damage(), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), capacities()).unwrap();
        let mut model = Model::default();
        model.apply(&ops);
        writer.apply(&ops).unwrap();
        for table in grown {
            writer.grow(table, 1, u64::MAX).unwrap();
        }
        drop(writer);
        let early = Reader::open(dir.path(), "early").unwrap();
        let path = dir.path().join("tables");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        for (place, word) in damage {
            let at = (place % (len - 8)) & !3;
            file.write_all_at(&word.to_ne_bytes(), at).unwrap();
        }
        look_at_everything(early.view(), &model);
        if let Ok(late) = Reader::open(dir.path(), "late") {
            look_at_everything(late.view(), &model);
        }
        drop(early);
        if let Ok(mut writer) = Writer::open(dir.path(), capacities()) {
            look_at_everything(writer.view(), &model);
            let _ = writer.apply(&more);
            let _ = writer.apply(&deletes_of(&model, 1));
            look_at_everything(writer.view(), &model);
        }
    }

    #[test]
    fn damaged_reader_slots_never_panic_or_hang(damage in prop::collection::vec((0u64..8184, any::<u64>()), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), capacities()).unwrap();
        let mut reader = Reader::open(dir.path(), "test").unwrap();
        let file = OpenOptions::new().write(true).open(dir.path().join("quiescence")).unwrap();
        for (place, word) in damage {
            file.write_all_at(&word.to_ne_bytes(), place).unwrap();
        }
        for n in 0..200 {
            let _ = writer.apply(&[Op::SetEndpoint(Ip::v4([10, 0, 0, n]), Endpoint::new(PortId(0), Mac::ZERO))]);
            reader.quiescent();
        }
        drop((writer, reader));
        let _ = Writer::open(dir.path(), capacities());
        let _ = Reader::open(dir.path(), "next");
    }
    #[test]
    fn tables_of_another_length_are_refused_or_read_within_it(
        ops in prop::collection::vec(any_op(), 60),
        len in prop_oneof![0u64..8192, 0u64..2_000_000],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), capacities()).unwrap();
        let mut model = Model::default();
        model.apply(&ops);
        writer.apply(&ops).unwrap();
        drop(writer);
        let file = OpenOptions::new().write(true).open(dir.path().join("tables")).unwrap();
        let whole = file.metadata().unwrap().len();
        file.set_len(len).unwrap();
        match Reader::open(dir.path(), "test") {
            Ok(reader) => {
                prop_assert!(len >= whole, "{len} bytes of {whole} are taken for whole tables");
                look_at_everything(reader.view(), &model);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        // The next writer makes of it what it can.
        if let Ok(writer) = Writer::open(dir.path(), capacities()) {
            look_at_everything(writer.view(), &model);
        }
    }

    #[test]
    fn damaged_counters_never_panic_or_read_out_of_bounds(
        damage in prop::collection::vec((prop_oneof![0u64..128, any::<u64>()], any::<u64>()), 1..60),
        len in prop::option::of(0u64..20_000),
    ) {
        let dir = tempfile::tempdir().unwrap();
        drop(StatsWriter::create(dir.path(), 2, 8).unwrap());
        let early = StatsReader::open(dir.path()).unwrap();
        let file = OpenOptions::new().write(true).open(dir.path().join("stats")).unwrap();
        let whole = file.metadata().unwrap().len();
        for (place, word) in damage {
            file.write_all_at(&word.to_ne_bytes(), (place % (whole - 8)) & !7).unwrap();
        }
        look_at_counters(&early.snapshot());
        drop(early);
        // A file that is cut while it is mapped is another matter: see docs/tables.md.
        file.set_len(len.unwrap_or(whole)).unwrap();
        if let Ok(late) = StatsReader::open(dir.path()) {
            look_at_counters(&late.snapshot());
        }
        if let Ok(next) = StatsWriter::create(dir.path(), 3, 4) {
            look_at_counters(&next.reader().snapshot());
        }
    }
}
