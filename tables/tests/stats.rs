//! The counters file: what is written is read, by another process too, and outlives its writer.

use fairway_tables::stats::*;
use fairway_tables::*;
use std::os::unix::fs::FileExt;

fn fill(stats: &StatsWriter) {
    for w in 0..stats.workers() {
        let worker = stats.worker(w);
        for (n, counter) in (1u64..).zip(Counter::ALL) {
            worker.set_counter(*counter, n * 1000 + u64::from(w));
        }
        for (n, reason) in (1u64..).zip(DropReason::ALL) {
            worker.set_drop(*reason, n * 10 + u64::from(w));
        }
        for (n, stage) in (1u64..).zip(Stage::ALL) {
            let max_ns = 100 * n + u64::from(w);
            worker.set_stage(
                *stage,
                StageSummary { count: n, sum_ns: 50 * n, p50_ns: n, p99_ns: 2 * n, max_ns },
            );
        }
        for p in 0..3 {
            worker.set_port(PortId(p), port(p));
        }
        worker.set_port(PortId(77), port(77));
    }
    stats.set_conntrack(5, 50);
    stats.set_state(ProcessState::Running);
}

fn port(p: u16) -> PortCounters {
    let n = u64::from(p) + 1;
    PortCounters {
        rx_packets: n,
        rx_bytes: 64 * n,
        tx_packets: 2 * n,
        tx_bytes: 128 * n,
        drops: 3 * n,
        kernel_rx_dropped: 5 * n,
        kernel_fill_empty: 7 * n,
    }
}

fn check(snapshot: &StatsSnapshot) {
    assert_eq!(snapshot.workers.len(), 2);
    for (n, counter) in (1u64..).zip(Counter::ALL) {
        assert_eq!(snapshot.workers[1].counter(*counter), n * 1000 + 1, "{counter}");
        assert_eq!(snapshot.counter(*counter), 2 * n * 1000 + 1, "{counter}");
    }
    for (n, reason) in (1u64..).zip(DropReason::ALL) {
        assert_eq!(snapshot.drops(*reason), 2 * n * 10 + 1, "{reason}");
    }
    let all: u64 = DropReason::ALL.iter().map(|r| snapshot.drops(*r)).sum();
    assert_eq!(snapshot.all_drops(), all);
    let merged = StageSummary { count: 8, sum_ns: 400, p50_ns: 4, p99_ns: 8, max_ns: 401 };
    assert_eq!(snapshot.stage(Stage::SlowPath), merged);
    assert_eq!(snapshot.port(PortId(2)).tx_bytes, 2 * 128 * 3);
    assert_eq!(snapshot.port(PortId(77)), PortCounters::default());
    assert_eq!((snapshot.conntrack_used, snapshot.conntrack_capacity), (5, 50));
    assert_eq!(snapshot.pid, std::process::id());
    assert!(snapshot.start_time_ticks > 0);
}

#[test]
fn what_is_counted_is_read() {
    let stats = StatsWriter::heap(2, 3);
    fill(&stats);
    let snapshot = stats.reader().snapshot();
    check(&snapshot);
    assert!(snapshot.alive);
    assert_eq!(snapshot.state, ProcessState::Running);
}

#[test]
fn counters_survive_a_restart_and_readers_know_who_lives() {
    let dir = tempfile::tempdir().unwrap();
    let stats = StatsWriter::create(dir.path(), 2, 3).unwrap();
    fill(&stats);
    let reader = StatsReader::open(dir.path()).unwrap();
    check(&reader.snapshot());
    assert!(reader.snapshot().alive);
    let second = StatsWriter::create(dir.path(), 2, 3).err().expect("refused");
    assert!(matches!(second, OpenError::WriterRunning { pid, .. } if pid == std::process::id()));
    drop(stats);
    let snapshot = reader.snapshot();
    assert!(!snapshot.alive);
    assert_eq!(snapshot.state, ProcessState::Stopped);

    let stats = StatsWriter::create(dir.path(), 2, 3).unwrap();
    assert_eq!(reader.snapshot().state, ProcessState::Starting);
    assert!(reader.snapshot().alive);
    check(&reader.snapshot());
    let worker = stats.worker(1);
    assert_eq!(worker.counter(Counter::RxBytes), 2001);
    assert_eq!(worker.drops(DropReason::EtherType), 21);
    assert_eq!(worker.stage(Stage::Parse).max_ns, 101);
    assert_eq!(worker.port(PortId(1)), port(1));
}

#[test]
fn sums_stay_with_other_workers_and_ports_and_end_with_other_counters() {
    let dir = tempfile::tempdir().unwrap();
    fill(&StatsWriter::create(dir.path(), 2, 3).unwrap());
    let old = StatsReader::open(dir.path()).unwrap();
    let before = old.snapshot();
    let same = |after: &StatsSnapshot| {
        Counter::ALL.iter().all(|counter| after.counter(*counter) == before.counter(*counter))
            && DropReason::ALL.iter().all(|reason| after.drops(*reason) == before.drops(*reason))
            && (0..3).all(|port| after.port(PortId(port)) == before.port(PortId(port)))
            && after.starts == before.starts
    };
    for (workers, ports) in [(3, 3), (1, 8), (2, 3)] {
        let stats = StatsWriter::create(dir.path(), workers, ports).unwrap();
        assert!(!old.snapshot().alive);
        let new = StatsReader::open(dir.path()).unwrap();
        assert_eq!(new.snapshot().workers.len(), workers as usize);
        assert!(new.snapshot().alive && same(&new.snapshot()), "{workers} workers: {:?}", new.snapshot());
        drop(stats);
    }
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("stats")).unwrap();
    file.write_all_at(&99u64.to_ne_bytes(), 16).unwrap();
    assert!(matches!(StatsReader::open(dir.path()), Err(OpenError::Layout { found: 99, .. })));
    let stats = StatsWriter::create(dir.path(), 2, 3).unwrap();
    assert_eq!(stats.reader().snapshot().counter(Counter::RxPackets), 0);
}

#[test]
fn counters_left_open_go_on_without_their_writer_ever_being_gone() {
    let dir = tempfile::tempdir().unwrap();
    let stats = StatsWriter::create(dir.path(), 2, 3).unwrap();
    fill(&stats);
    let left = || stats.file().unwrap().try_clone().unwrap();
    let reader = StatsReader::open(dir.path()).unwrap();
    let next = StatsWriter::adopt(dir.path(), left(), 2, 3).unwrap();
    check(&reader.snapshot());
    assert_eq!((reader.snapshot().state, reader.snapshot().starts), (ProcessState::Running, 1));
    next.set_state(ProcessState::Running);
    assert_eq!(reader.snapshot().starts, 2);
    assert!(StatsWriter::adopt(dir.path(), left(), 3, 3).is_none(), "other workers");
    let foreign = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(StatsWriter::adopt(dir.path(), foreign, 2, 3).is_none(), "another file");
    std::fs::rename(dir.path().join("stats"), dir.path().join("moved")).unwrap();
    assert!(StatsWriter::adopt(dir.path(), left(), 2, 3).is_none(), "not under its name any more");
    std::mem::forget(next);
}

#[test]
fn damaged_or_missing_counters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(StatsReader::open(dir.path()), Err(OpenError::Missing { .. })));
    drop(StatsWriter::create(dir.path(), 2, 3).unwrap());
    let path = dir.path().join("stats");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&u64::MAX.to_ne_bytes(), 32).unwrap();
    assert!(matches!(StatsReader::open(dir.path()), Err(OpenError::Corrupt { .. })));
    file.set_len(5000).unwrap();
    assert!(StatsReader::open(dir.path()).is_err());
    file.set_len(10).unwrap();
    assert!(matches!(StatsReader::open(dir.path()), Err(OpenError::Length { found: 10, .. })));
    file.set_len(0).unwrap();
    assert!(matches!(StatsReader::open(dir.path()), Err(OpenError::Length { found: 0, .. })));
    drop(StatsWriter::create(dir.path(), 2, 3).unwrap());
    StatsReader::open(dir.path()).unwrap();
    assert!(matches!(
        StatsWriter::create(dir.path(), 2000, 3),
        Err(OpenError::CapacityLimit { table: "workers", .. })
    ));
}
