//! Machine-readable figures: `target/reports/<make target>.json`, a list of
//! `{"case", "params", "metric", "value", "unit"}`, so that runs can be compared with each other.

use crate::error::{Error, Result};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOCK_DEADLINE: Duration = Duration::from_secs(30);

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured, such as `service_vxlan`.
    pub case: String,
    /// Under which parameters; an object.
    pub params: serde_json::Value,
    /// Which property, such as `ns_per_packet`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Unit of the value, such as `ns`; `1` for a plain count.
    pub unit: String,
}

impl Figure {
    /// A figure. `params` is an object, such as `serde_json::json!({"flows": 10_000})`.
    pub fn new(case: &str, params: serde_json::Value, metric: &str, value: f64, unit: &str) -> Figure {
        Figure { case: case.to_owned(), params, metric: metric.to_owned(), value, unit: unit.to_owned() }
    }

    fn same_place(&self, other: &Figure) -> bool {
        self.case == other.case && self.params == other.params && self.metric == other.metric
    }
}

/// The file that collects the figures of one make target. Any number of processes may add to it.
#[derive(Debug, Clone)]
pub struct Report {
    path: PathBuf,
}

impl Report {
    /// The report of a make target, in the folder FAIRWAY_REPORT_DIR, or else in the workspace's
    /// `target/reports`.
    pub fn of_target(make_target: &str) -> Report {
        let dir = match std::env::var_os("FAIRWAY_REPORT_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => workspace_dir().join("target/reports"),
        };
        Report::at(dir.join(format!("{make_target}.json")))
    }

    /// A report in a given file.
    pub fn at(path: PathBuf) -> Report {
        Report { path }
    }

    /// Where the figures go.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds figures. A figure of the same case, parameters and metric takes the place of the earlier one.
    pub fn add(&self, figures: &[Figure]) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(Error::io(format!("make the folder {}", dir.display())))?;
        let _lock = self.lock()?;
        let mut all = self.read()?;
        for figure in figures {
            match all.iter_mut().find(|old| old.same_place(figure)) {
                Some(old) => *old = figure.clone(),
                None => all.push(figure.clone()),
            }
        }
        let what = format!("write {}", self.path.display());
        let mut text = String::from("[\n");
        for (i, figure) in all.iter().enumerate() {
            let line = serde_json::to_string(figure)
                .map_err(|e| Error::Answer { what: what.clone(), reason: e.to_string() })?;
            text.push_str(if i == 0 { "  " } else { ",\n  " });
            text.push_str(&line);
        }
        text.push_str("\n]\n");
        let fresh = self.path.with_extension("json.new");
        std::fs::write(&fresh, text).map_err(Error::io(what.clone()))?;
        std::fs::rename(&fresh, &self.path).map_err(Error::io(what))
    }

    /// All figures collected so far.
    pub fn read(&self) -> Result<Vec<Figure>> {
        let what = format!("read {}", self.path.display());
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::Answer { what, reason: format!("{e}; delete the file") }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::io(what)(e)),
        }
    }

    fn lock(&self) -> Result<File> {
        let path = self.path.with_extension("lock");
        lock_file(&path, LOCK_DEADLINE)
    }
}

/// Takes the lock of a file, which is made if missing; the lock is held until the file is closed.
pub(crate) fn lock_file(path: &Path, deadline: Duration) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(Error::io(format!("open the lock {}", path.display())))?;
    let start = Instant::now();
    loop {
        if sys::try_lock(&file).map_err(Error::io(format!("lock {}", path.display())))? {
            return Ok(file);
        }
        if sys::interrupted() {
            return Err(Error::Interrupted);
        }
        if start.elapsed() > deadline {
            return Err(Error::Timeout {
                what: format!("the lock {} is free", path.display()),
                waited_ms: deadline.as_millis() as u64,
                last: "another process holds it".to_owned(),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The workspace this program was built from, or the current folder if that is gone.
fn workspace_dir() -> PathBuf {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if built_from.is_dir() { built_from } else { PathBuf::from(".") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_repeated_figure_replaces_the_earlier_and_others_stay() {
        let dir = tempfile::tempdir().expect("tempdir");
        let report = Report::at(dir.path().join("sub/test.json"));
        report.add(&[Figure::new("a", json!({"flows": 1}), "ns", 5.0, "ns")]).expect("add");
        report.add(&[Figure::new("a", json!({"flows": 2}), "ns", 6.0, "ns")]).expect("add");
        report.add(&[Figure::new("a", json!({"flows": 1}), "ns", 7.0, "ns")]).expect("add");
        let values: Vec<f64> = report.read().expect("read").iter().map(|f| f.value).collect();
        assert_eq!(values, [7.0, 6.0]);
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let report = Report::at(dir.path().join("test.json"));
        std::thread::scope(|scope| {
            for n in 0..8 {
                let report = &report;
                let figure = Figure::new("a", json!({"n": n}), "count", 1.0, "1");
                scope.spawn(move || report.add(&[figure]).expect("add"));
            }
        });
        assert_eq!(report.read().expect("read").len(), 8);
    }

    #[test]
    fn a_damaged_report_is_refused_with_its_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("test.json");
        std::fs::write(&path, "[{").expect("write");
        let error = Report::at(path).add(&[]).expect_err("damaged").to_string();
        assert!(error.contains("test.json") && error.contains("delete"), "{error}");
    }
}
