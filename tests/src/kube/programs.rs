//! The programs of Kubernetes, which `scripts/kube-programs` builds once and keeps outside the repository.

use crate::error::Result;
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kube-programs");
/// Longest time for the build, on two cores that others use too.
const BUILD_DEADLINE: Duration = Duration::from_secs(45 * 60);
/// Exit codes of the script with `--cached`.
const NOT_BUILT: i32 = 3;
const NO_GO: i32 = 4;

/// A folder with etcd, kube-apiserver, kube-proxy and hold.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// Finds them, or builds them under `CI=true`. Where they have not been built, or Go is missing, it prints so and
    /// returns `None`; under `CI=true` that is an error.
    pub fn find(test: &str) -> Result<Option<Programs>> {
        let must_run = std::env::var("CI").as_deref() == Ok("true");
        let mut command = Command::new(SCRIPT);
        if !must_run {
            command.arg("--cached");
        }
        let output = process::run(command, BUILD_DEADLINE)?;
        if !must_run && matches!(output.status.code(), Some(NOT_BUILT | NO_GO)) {
            eprintln!("skipped: {test}: {}", output.stderr.trim());
            return Ok(None);
        }
        Ok(Some(Programs(PathBuf::from(output.success()?.trim()))))
    }

    /// Path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }
}
