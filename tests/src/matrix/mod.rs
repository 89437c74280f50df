//! The path matrix: every way of a packet through the cluster, in every mode of carrying it between nodes. Of each path a
//! conversation is held, and captures at each stage say which addresses are seen there.
//!
//! | stage | where |
//! |---|---|
//! | client | the client's own device: a pod's `eth0`, or the node's `fwhost0` |
//! | wires | the other ends of all uplinks of the client's node |
//! | server | the `eth0` of the pod that answers |

mod fabric;
mod mode;
mod paths;
mod seen;

pub use fabric::Fabric;
pub use mode::Mode;
pub use paths::{Outcome, Path};

use crate::error::Result;
use std::fmt::Write as _;

/// Walks every path of some modes; for each mode its paths with what came of them.
pub fn walk(modes: &[Mode]) -> Result<Vec<(Mode, Vec<Outcome>)>> {
    modes.iter().map(|mode| Ok((*mode, walk_mode(*mode)?))).collect()
}

/// Walks every path of one mode.
pub fn walk_mode(mode: Mode) -> Result<Vec<Outcome>> {
    let mut fabric = Fabric::start(mode)?;
    let paths = Path::ALL.iter().filter(|path| path.exists_in(mode));
    let outcomes = paths.map(|path| fabric.walk(*path)).collect();
    fabric.stop()?;
    Ok(outcomes)
}

/// A table of ticks: a row for each path, a column for each mode (`–`: there is no such path), and what went wrong below.
pub fn table(results: &[(Mode, Vec<Outcome>)]) -> String {
    let mut text = format!("{:<42}", "");
    let mut faults = String::new();
    // Writing to a String cannot fail.
    for (mode, outcomes) in results {
        let _ = write!(text, " {:>12}", mode.name());
        for outcome in outcomes {
            if let Err(fault) = &outcome.result {
                let _ = writeln!(faults, "{}, {}: {fault}", mode.name(), outcome.path.name());
            }
        }
    }
    text.push('\n');
    for path in Path::ALL {
        let _ = write!(text, "{:<42}", path.name());
        for (_, outcomes) in results {
            let outcome = outcomes.iter().find(|outcome| outcome.path == path);
            let mark = outcome.map_or("–", |outcome| if outcome.result.is_ok() { "✓" } else { "✗" });
            let _ = write!(text, " {mark:>12}");
        }
        text.push('\n');
    }
    text + &faults
}
