//! What an end-to-end test asks before it starts: whether it may run here, and whether it runs alone.

use crate::report::lock_file;
use crate::sys;
use std::fs::File;
use std::time::Duration;

const LOCK_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Whether an end-to-end test can run here. Without root it prints why not and returns false; under
/// `CI=true` that is a failure, so that a test that never runs does not look like one that passes.
pub fn may_run(test: &str) -> bool {
    let uid = sys::effective_uid();
    if uid == 0 {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs root, and under CI=true it must run");
    eprintln!("skipped: {test} needs root to make network namespaces; this is uid {uid}");
    false
}

/// Says that a test cannot run here for want of something; under `CI=true`, where everything is to be had, that is a
/// failure.
pub fn skip(test: &str, missing: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} must run under CI=true: {missing}");
    eprintln!("skipped: {test}: {missing}");
}

/// Waits until no other end-to-end test runs on this machine, so that what one measures is not what
/// another one loads. Released when the value is dropped.
pub fn alone() -> File {
    let path = std::env::temp_dir().join("fairway-tests.lock");
    match lock_file(&path, LOCK_DEADLINE) {
        Ok(file) => file,
        Err(error) => panic!("{error}"),
    }
}
