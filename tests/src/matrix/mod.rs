//! The path matrix: every way of a packet through the cluster, in every mode of carrying it between nodes. Of each path a
//! conversation is held in either address family, and captures at each stage say which addresses are seen there.
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

use crate::dual_stack::Family;
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
    let outcomes = paths.flat_map(|path| fabric.walk(*path)).collect();
    fabric.stop()?;
    Ok(outcomes)
}

/// A table of ticks: a row for each path, a column for each mode, in it a tick for IPv4 and one for IPv6 (`–`: there is no
/// such path), and what went wrong below.
pub fn table(results: &[(Mode, Vec<Outcome>)]) -> String {
    let (mut text, mut families) = (format!("{:<42}", ""), format!("{:<42}", ""));
    let mut faults = String::new();
    // Writing to a String cannot fail.
    for (mode, outcomes) in results {
        let _ = write!(text, " {:>12}", mode.name());
        let _ = write!(families, " {:>12}", "IPv4  6");
        for outcome in outcomes {
            if let Err(fault) = &outcome.result {
                let (name, family) = (outcome.path.name(), outcome.family);
                let _ = writeln!(faults, "{}, {name}, {family}: {fault}", mode.name());
            }
        }
    }
    text = format!("{text}\n{families}\n");
    for path in Path::ALL {
        let _ = write!(text, "{:<42}", path.name());
        for (_, outcomes) in results {
            let mark = |family: Family| {
                let found = outcomes.iter().find(|o| o.path == path && o.family == family);
                found.map_or("–", |outcome| if outcome.result.is_ok() { "✓" } else { "✗" })
            };
            let _ = write!(text, " {:>9}  {}", mark(Family::V4), mark(Family::V6));
        }
        text.push('\n');
    }
    text + &faults
}
