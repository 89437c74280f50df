//! The steps that edit the manifests folder while requests are under way. Each edit must take effect within
//! a second, and no request may fail meanwhile.

use super::scenario::{Scenario, no_failure};
use fairway_tests::pod::client::{Summary, now_us};
use fairway_tests::{Error, Result};
use std::time::Duration;

/// An edit must take effect in this time.
const EFFECT_MS: f64 = 1000.0;
/// How long the requests go on.
const CLIENT_MS: &str = "2500";
/// How long before the edit they begin.
const LEAD: Duration = Duration::from_millis(400);
const CLIENT_DEADLINE: Duration = Duration::from_secs(30);

/// Makes requests all the while, edits in the middle, and returns the requests' summary with the moment of
/// the edit in microseconds since 1970.
fn while_requesting(
    scenario: &mut Scenario,
    edit: impl FnOnce(&Scenario) -> Result<()>,
) -> Result<(Summary, u64)> {
    let url = scenario.service_url();
    let args = ["get", url.as_str(), "--no-keepalive", "--duration-ms", CLIENT_MS];
    let client = scenario.testbed.start_client(scenario.client, &args)?;
    std::thread::sleep(LEAD);
    let edited_us = now_us();
    edit(scenario)?;
    let summary = scenario.testbed.finish_client(client, CLIENT_DEADLINE)?;
    Ok((no_failure(&url, summary)?, edited_us))
}

fn in_time(what: &str, after_ms: f64) -> Result<()> {
    if after_ms < EFFECT_MS {
        return Ok(());
    }
    Err(Error::Answer {
        what: what.to_owned(),
        reason: format!("took effect after {after_ms:.0} ms, not within a second"),
    })
}

/// Adds the third pod to the service's EndpointSlice.
pub(super) fn add_backend(scenario: &mut Scenario) -> Result<String> {
    let (summary, edited_us) = while_requesting(scenario, |s| s.set_backends(&s.web))?;
    let Some(added) = summary.backends.get("web-3") else {
        let reason = format!("web-3 answered none of {} requests", summary.requests);
        return Err(Error::Answer { what: "adding web-3".to_owned(), reason });
    };
    let after_ms = (added.first_us as f64 - edited_us as f64) / 1000.0;
    in_time("adding web-3", after_ms)?;
    scenario.note("add_backend", "effect", after_ms, "ms");
    Ok(format!(
        "web-3 answers {after_ms:.0} ms after the edit; {} requests meanwhile, none failed",
        summary.requests
    ))
}

/// Takes the first pod out of the service's EndpointSlice.
pub(super) fn remove_backend(scenario: &mut Scenario) -> Result<String> {
    let (summary, edited_us) = while_requesting(scenario, |s| s.set_backends(&s.web[1..]))?;
    let after_ms = match summary.backends.get("web-1") {
        Some(removed) => ((removed.last_us as f64 - edited_us as f64) / 1000.0).max(0.0),
        None => {
            let reason = format!("web-1 answered none of {} requests, even before", summary.requests);
            return Err(Error::Answer { what: "removing web-1".to_owned(), reason });
        }
    };
    in_time("removing web-1", after_ms)?;
    scenario.note("remove_backend", "effect", after_ms, "ms");
    Ok(format!(
        "web-1 gets its last new connection {after_ms:.0} ms after the edit; {} requests meanwhile, none failed",
        summary.requests
    ))
}
