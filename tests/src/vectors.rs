//! The folder of test vectors beside the project (FAIRWAY_VECTORS says otherwise). Tests of other crates take this file in
//! by its path.

use std::path::PathBuf;

/// Where a file of it is. Without it the test says so and is skipped; in CI it fails.
#[allow(unreachable_pub, reason = "tests that take the file in have no use for the word")]
pub fn find(file: &str) -> Option<PathBuf> {
    // Every crate's folder lies in the project's root.
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors"));
    let dir = std::env::var_os("FAIRWAY_VECTORS").map_or_else(default, PathBuf::from);
    let path = dir.join(file);
    if path.exists() {
        return Some(path);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is missing", path.display());
    println!("skipped: {} is missing; set FAIRWAY_VECTORS", path.display());
    None
}
