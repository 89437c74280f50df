//! The protocol under the model checker: every order in which a reader and the writer may run, and every
//! value that the memory model lets a load return. Run by
//! `RUSTFLAGS="--cfg loom" cargo test -p fairway-tables --lib --release`.

use crate::keyed::{Keyed, KeyedWriter};
use crate::layout::header;
use crate::lpm::{Entry, Nodes, Trie};
use crate::lpm_nodes::{NodeWriter, Target};
use crate::quiescence::{Identity, Quiescence};
use crate::region::{Region, WriteRegion};
use crate::sync::{Arc, Ordering};

/// A value whose two words must agree.
type Value = [u64; 2];

struct World {
    region: WriteRegion,
    quiescence: Quiescence,
    writer: KeyedWriter<u64, Value>,
}

/// A table with one entry, under generation 1.
fn world() -> World {
    let mut end = 256;
    let table = Keyed::lay_out(&mut end, 1, 248);
    let region = WriteRegion::new(Region::heap(end));
    let quiescence = Quiescence::new(WriteRegion::new(Region::heap(Quiescence::len(1))), 1, 7);
    let mut world = World { region, quiescence, writer: KeyedWriter::new(table) };
    world.apply(1);
    world
}

impl World {
    /// Replaces the entry, reusing memory as soon as the readers allow it.
    fn apply(&mut self, generation: u64) {
        self.writer.pool.reclaim(self.quiescence.progress().seen_by_all);
        self.writer.set(&self.region, 0, &5, &[generation; 2], generation);
        self.region.store64(header::GENERATION, generation, Ordering::Release);
    }

    /// What a reader has.
    fn shared(&self) -> (Arc<Region>, Quiescence, Keyed<u64, Value>) {
        (self.region.shared().clone(), self.quiescence.clone(), self.writer.table)
    }
}

fn check(region: &Region, table: &Keyed<u64, Value>) -> u64 {
    let generation = region.load64(header::GENERATION, Ordering::Acquire);
    let [a, b] = table.get(region, 0, &5).expect("the entry is always there");
    assert_eq!(a, b, "a value from two rounds");
    assert!(a >= generation, "older than what was published before");
    a
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // `make model` sets LOOM_MAX_PREEMPTIONS higher.
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

#[test]
fn a_reader_that_registers_at_any_moment_sees_whole_values() {
    model(|| {
        let mut world = world();
        let (region, quiescence, table) = world.shared();
        let reader = loom::thread::spawn(move || {
            quiescence.register(0, &region, &Identity::new(1, 1, ""));
            check(&region, &table);
            quiescence.leave(0);
        });
        world.apply(2);
        world.apply(3);
        reader.join().unwrap();
    });
}

#[test]
fn a_registered_reader_sees_whole_values_across_quiescent_states() {
    model(|| {
        let mut world = world();
        let (region, quiescence, table) = world.shared();
        quiescence.register(0, &region, &Identity::new(1, 1, ""));
        let reader = loom::thread::spawn(move || {
            let first = check(&region, &table);
            quiescence.quiescent(0, &region);
            assert!(check(&region, &table) >= first);
        });
        world.apply(2);
        world.apply(3);
        reader.join().unwrap();
    });
}

#[test]
fn memory_is_reused_once_the_reader_left() {
    let reused = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = reused.clone();
    model(move || {
        let mut world = world();
        let (region, quiescence, table) = world.shared();
        quiescence.register(0, &region, &Identity::new(1, 1, ""));
        let reader = loom::thread::spawn(move || {
            check(&region, &table);
            quiescence.leave(0);
        });
        world.apply(2);
        world.writer.pool.reclaim(world.quiescence.progress().seen_by_all);
        if world.writer.pool.retired() == 0 {
            seen.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        world.apply(3);
        reader.join().unwrap();
    });
    assert!(reused.load(std::sync::atomic::Ordering::Relaxed), "no order in which the slot came free");
}

#[test]
fn a_look_up_finds_the_old_or_the_new_route_while_ways_to_prefixes_are_split_and_joined() {
    model(|| {
        let mut end = 256;
        let trie = Trie::<4, 128>::lay_out(&mut end, 240);
        let nodes = Nodes::new(end.next_multiple_of(64), 6, 248);
        let region = WriteRegion::new(Region::heap(end.next_multiple_of(64) + 6 * Nodes::STRIDE));
        let mut writer = NodeWriter::new(nodes);
        let (first, second) = (0x1234 << 112, 0x1264 << 112);
        let (one, other) = (Entry::leaf(16, 1), Entry::leaf(16, 2));
        trie.set(&region, &mut writer, Target { key: first, len: 16 }, one, 1);
        let shared = region.shared().clone();
        let reader = loom::thread::spawn(move || {
            let found = trie.lookup(&shared, &nodes, first);
            assert!(found == one || found == Entry::NONE);
            let found = trie.lookup(&shared, &nodes, second);
            assert!(found == other || found == Entry::NONE);
        });
        trie.set(&region, &mut writer, Target { key: second, len: 16 }, other, 2);
        trie.clear(&region, &mut writer, Target { key: first, len: 16 }, Entry::NONE, 3);
        reader.join().unwrap();
        assert_eq!(trie.lookup(&region, &nodes, first), Entry::NONE);
        assert_eq!(trie.lookup(&region, &nodes, second), other);
    });
}
