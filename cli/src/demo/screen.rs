//! What the demo shows on the terminal: one line per step, colours only where there is a terminal.

use fairway_tests::node::UPLINK;
use fairway_tests::{Error, Result, Testbed};
use std::io::{IsTerminal, Write};
use std::time::Instant;

const TITLE_COLUMNS: usize = 24;

/// The terminal, or whatever the output goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    /// Looks at where the output goes.
    pub(super) fn new() -> Screen {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Screen { colours }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub(super) fn heading(&self, text: &str) {
        self.line(&format!("\n{}", self.paint("1", text)));
    }

    /// A plain line. Goes out at once, so that a pipe sees every step as it ends.
    pub(super) fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // Nobody listens any more: the demo goes on to its orderly end all the same.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Runs a step and shows how it went: what was checked, or what failed.
    pub(super) fn step<E>(&self, title: &str, work: impl FnOnce() -> Result<String, E>) -> Result<(), E>
    where
        E: std::error::Error + 'static,
    {
        if self.colours {
            print!("  … {title}\r");
            let _ = std::io::stdout().flush();
        }
        let outcome = work();
        let clear = if self.colours { "\x1b[K" } else { "" };
        let title = format!("{title:TITLE_COLUMNS$}");
        match &outcome {
            Ok(detail) => self.line(&format!("{clear}  {} {title} {detail}", self.paint("32", "✓"))),
            Err(error) if is_interruption(error) => self.line(&format!("{clear}  - {title} interrupted")),
            Err(error) => self.line(&format!("{clear}  {} {title} {error}", self.paint("31", "✗"))),
        }
        outcome.map(drop)
    }

    /// Stops both nodes and deletes everything; the engines check their invariants as they end.
    pub(super) fn take_down(&self, mut testbed: Testbed) -> Result<()> {
        self.heading("Taking down");
        let start = Instant::now();
        let stopped = self.step("orderly shutdown", || {
            for node in 0..testbed.nodes().len() {
                if testbed.node_mut(node).stop_dataplane()?.is_empty() {
                    return Err(Error::Answer {
                        what: format!("the dataplane's log on {}", testbed.nodes()[node].name()),
                        reason: "its last lines do not speak of invariants I1 and I2".to_owned(),
                    });
                }
                testbed.node_mut(node).stop_control()?;
            }
            Ok("both engines: every frame home (I1), every packet accounted for (I2)".to_owned())
        });
        if stopped.is_err() {
            eprintln!("\nthe end of the logs:\n{}", testbed.log_tails());
        }
        drop(testbed);
        stopped?;
        self.step("nothing left behind", || {
            let took = start.elapsed().as_secs_f64();
            Ok(format!("namespaces, processes and files are gone ({took:.1} s)"))
        })
    }

    /// How to look at a testbed that stays.
    pub(super) fn how_to_look_around(&self, testbed: &Testbed) {
        self.heading("Left running. To look around:");
        let fairway = std::env::current_exe().map_or("fairway".to_owned(), |p| p.display().to_string());
        for node in testbed.nodes() {
            let run_dir = node.run_dir().display();
            self.line(&format!("  {fairway} --run-dir {run_dir} status    # {}", node.name()));
        }
        self.line("  … the same with routes, services, endpoints, counters");
        for node in testbed.nodes() {
            self.line(&format!("  ip netns exec {} ip -d addr    # {}", node.netns().name(), node.name()));
        }
        for pod in testbed.pods() {
            let (namespace, name) = (pod.namespace(), pod.name());
            self.line(&format!(
                "  ip netns exec {} bash    # pod {namespace}/{name}, {}",
                pod.netns().name(),
                pod.ip()
            ));
        }
        if let Some(node) = testbed.nodes().first() {
            let switch_side = node.netns().name();
            self.line(&format!(
                "  ip netns exec {switch_side} ethtool -S {UPLINK}    # XDP counters of the uplink"
            ));
        }
        self.line(&format!(
            "  $EDITOR {}/*.yaml    # takes effect at once",
            testbed.manifests().folder().display()
        ));
        self.line(&format!("  tail -f {}/node-*/*.log", testbed.dir().display()));
        self.line(&format!("\nTo take it down: {fairway} demo --down"));
    }
}

fn is_interruption(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(Error::Interrupted))
}
