//! Where Fairway's programs are, and which cores they get.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The folder of Fairway's programs: FAIRWAY_BIN_DIR, or the folder of this program, or for a test the
/// release folder beside its own.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("FAIRWAY_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().map_err(Error::io("find this program's own path"))?;
    let dir = exe.parent().unwrap_or(Path::new("."));
    Ok(match (dir.file_name(), dir.ancestors().nth(2)) {
        (Some(name), Some(target)) if name == "deps" => target.join("release"),
        _ => dir.to_owned(),
    })
}

/// Path of one of Fairway's programs in `bin_dir`.
pub fn program(bin_dir: &Path, name: &str) -> Result<PathBuf> {
    let path = bin_dir.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Error::MissingBinary { name: name.to_owned(), dir: bin_dir.to_owned() })
    }
}

/// The cores of one node's workers, as `--cores` takes them: from the highest down, each node beginning
/// where the one before it ended.
pub fn share_of_cores(cores: &[usize], node: usize, workers: usize) -> String {
    let pick = |k: usize| cores[cores.len() - 1 - (node * workers + k) % cores.len()].to_string();
    (0..workers).map(pick).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_share_the_cores_from_the_highest_down() {
        assert_eq!(share_of_cores(&[0, 1], 0, 1), "1");
        assert_eq!(share_of_cores(&[0, 1], 1, 1), "0");
        assert_eq!(share_of_cores(&[0, 1], 0, 2), "1,0");
        assert_eq!(share_of_cores(&[0, 1], 1, 2), "1,0");
        assert_eq!(share_of_cores(&[2, 4, 6, 8], 1, 2), "4,2");
        assert_eq!(share_of_cores(&[5], 1, 1), "5");
    }
}
