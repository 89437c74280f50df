//! Every table against a plain model: random batches, re-opened in between, longest prefix match
//! against a linear scan.

#[path = "common/model.rs"]
mod model;

use fairway_tables::*;
use model::{Model, any_op, capacities, deletes_of, used};
use proptest::prelude::*;

/// A step of a test: a batch, and whether to re-open the writer after it.
fn any_steps() -> impl Strategy<Value = Vec<(Vec<Op>, bool)>> {
    prop::collection::vec((prop::collection::vec(any_op(), 0..60), prop::bool::weighted(0.3)), 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn tables_equal_a_plain_model_also_after_reopening(steps in any_steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), capacities()).unwrap();
        let mut reader = Reader::open(dir.path(), "model").unwrap();
        let mut model = Model::default();
        for (i, (ops, reopen)) in steps.iter().enumerate() {
            for batch in [ops.clone(), deletes_of(&model, 2 + i % 3)] {
                let before = writer.view().generation();
                let old = model.clone();
                model.apply(&batch);
                let after = writer.apply(&batch).unwrap();
                prop_assert_eq!(after, before + u64::from(old != model));
                prop_assert_eq!(reader.view().generation(), after);
                model.check(writer.view());
                model.check(reader.view());
                reader.quiescent();
            }
            if *reopen {
                let books = used(&writer);
                drop(writer);
                model.check(reader.view());
                writer = Writer::open(dir.path(), capacities()).unwrap();
                prop_assert_eq!(used(&writer), books);
                model.check(writer.view());
                reader.quiescent();
            }
        }
        let rest = deletes_of(&model, 1);
        model.apply(&rest);
        writer.apply(&rest).unwrap();
        model.check(reader.view());
        let books = used(&writer);
        for table in ["routes", "next_hops", "route_groups", "lpm_nodes", "services", "backends", "endpoints"] {
            prop_assert_eq!(books[table], 0, "{} leaks", table);
        }
    }

    #[test]
    fn heap_tables_equal_a_plain_model(steps in any_steps()) {
        let (mut writer, factory) = Tables::heap(capacities());
        let mut reader = factory.reader();
        let mut model = Model::default();
        for (ops, _) in &steps {
            model.apply(ops);
            writer.apply(ops).unwrap();
            model.check(reader.view());
            reader.quiescent();
        }
    }
}
