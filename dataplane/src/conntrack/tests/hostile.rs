//! Files that are no tables, or that someone has changed, header and length too: they are refused with a reason,
//! or taken for what they hold, by the next engine and by those who look only. Nobody reads out of bounds, which
//! would end the test by a signal.

use super::model::{CAPACITY, dirty_file, op};
use super::*;
use crate::conntrack::{ConntrackError, ConntrackReader};
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const HEADER: u64 = 64;
const LEN: u64 = 4096 + CAPACITY as u64 * 128;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_file_is_refused_or_taken_for_what_it_holds(
        ops in prop::collection::vec(op(), 0..100),
        damage in prop::collection::vec((prop_oneof![0..HEADER, 0..LEN], any::<u64>()), 0..20),
        len in prop::option::of(0..2 * LEN),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conntrack");
        dirty_file(&path, &ops, &[]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for (place, word) in &damage {
            file.write_all_at(&word.to_ne_bytes(), *place).unwrap();
        }
        if let Some(len) = len {
            file.set_len(len).unwrap();
        }
        match ConntrackReader::open(&path) {
            Ok(reader) => prop_assert!(reader.iter().count() <= reader.summary().capacity),
            Err(error) => prop_assert!(error.to_string().contains("conntrack")),
        }
        match Conntrack::open(&path, CAPACITY, Timeouts::default()) {
            Ok(table) => check(&table),
            Err(error) => prop_assert!(matches!(error, ConntrackError::Foreign { .. }), "{error}"),
        }
    }
}

#[test]
fn noise_is_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conntrack");
    for text in ["x", "no table, but longer than the first fields of a header are", &"x".repeat(LEN as usize)]
    {
        std::fs::write(&path, text).unwrap();
        let opened = Conntrack::open(&path, CAPACITY, Timeouts::default()).map(drop);
        assert!(matches!(opened, Err(ConntrackError::Foreign { .. })), "{opened:?}");
        assert!(ConntrackReader::open(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "a file that is refused stays as it was");
    }
}
