//! Keeps the fallback from ending connections through services. Their replies come from the backend's own address, and only
//! the engine knows which service that was: a client that gets them as they are answers with a reset, and the
//! backend gives up. Such a reset, of a connection that the sender does not know, has no ACK (RFC 9293 section 3.10.7.1),
//! while those of aborted and refused connections have one. It is dropped where the fallback begins: no packet comes
//! there while the engine runs.

use super::FallbackError;
use crate::names::HOST_ENGINE_IF;
use std::io::Write;
use std::process::{Command, Stdio};

const TABLE: &str = "table netdev fairway";

/// Makes the filter, unless it is there. The number of the device tells whether it is that of an earlier one.
pub(super) fn ensure(ifindex: u32) -> Result<(), FallbackError> {
    let mark = format!("link {ifindex}");
    if nft(&format!("list {TABLE}")).is_ok_and(|text| text.contains(&mark) && text.contains(" drop ")) {
        return Ok(());
    }
    nft(&format!(
        "add {TABLE}\ndelete {TABLE}\n{TABLE} {{ chain fallback {{\n\
         type filter hook ingress device \"{HOST_ENGINE_IF}\" priority 0; policy accept;\n\
         ip protocol tcp tcp flags & (rst | ack) == rst drop comment \"{mark}\"\n}}\n}}\n"
    ))
    .map(drop)
}

/// Removes it, if there is one.
pub(super) fn remove() -> Result<(), FallbackError> {
    match nft(&format!("list {TABLE}")) {
        Ok(_) => nft(&format!("delete {TABLE}")).map(drop),
        // Not there; and without nft, nothing was made.
        Err(_) => Ok(()),
    }
}

/// Runs nft on these lines; what it printed.
fn nft(lines: &str) -> Result<String, FallbackError> {
    let run = || {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| FallbackError::Guard { reason: error.to_string() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(FallbackError::Guard { reason: said.lines().next().unwrap_or_default().to_owned() })
}
