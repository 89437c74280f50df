//! `fairway demo` as a user runs it: to its end, interrupted, with a part that dies under it, and left
//! running. None of these may leave a namespace, a process or a file behind.

use fairway_tests::{gate, netns, process, programs};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(120);

/// A demo under way. Its output is read line by line.
struct Demo {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    output: String,
}

impl Demo {
    fn start(args: &[&str]) -> Demo {
        let fairway = fairway();
        let mut child = Command::new(&fairway)
            .arg("demo")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e}", fairway.display()));
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Demo { child, lines, output: String::new() }
    }

    /// Reads on until a line holds `text`; panics if the output ends before.
    fn read_until(&mut self, text: &str) {
        loop {
            let start = self.output.len();
            let got = self.lines.read_line(&mut self.output).expect("read the demo's output");
            assert!(got > 0, "the demo ended before it said '{text}':\n{}", self.output);
            if self.output[start..].contains(text) {
                return;
            }
        }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Reads the rest and waits for the end.
    fn finish(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut rest).expect("read the demo's output");
        self.output.push_str(&rest);
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return (status, std::mem::take(&mut self.output));
            }
            assert!(Instant::now() < end, "the demo closed its output and yet does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Name of its testbed.
    fn name(&self) -> String {
        format!("fairway-{}-0", self.child.id())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            netns::sweep();
        }
    }
}

fn fairway() -> PathBuf {
    let dir = programs::bin_dir().expect("folder of the programs");
    programs::program(&dir, "fairway").expect("fairway is built")
}

/// Namespaces, processes and files of a testbed that are still there.
fn leftovers(name: &str) -> Vec<String> {
    let mut left: Vec<String> = netns::existing().into_iter().filter(|n| n.starts_with(name)).collect();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(name) {
            left.push(line);
        }
    }
    for dir in [std::env::temp_dir().join(name), PathBuf::from("/run").join(name)] {
        left.extend(dir.exists().then(|| dir.display().to_string()));
    }
    left
}

#[test]
fn the_demo_succeeds_and_leaves_nothing() {
    if !gate::may_run("demo") {
        return;
    }
    let _alone = gate::alone();
    let demo = Demo::start(&[]);
    let name = demo.name();
    let (status, output) = demo.finish();
    println!("{output}");
    assert!(status.success(), "{}", process::describe(status));
    assert!(!output.contains('✗') && !output.contains('\x1b'), "no failure, and no colours into a pipe");
    for step in [
        "✓ pod → gateway",
        "✓ pod → pod, same node",
        "✓ pod → pod, over VXLAN",
        "✓ TCP over VXLAN",
        "✓ pod → ClusterIP",
        "✓ host → pod",
        "✓ add a backend",
        "✓ remove a backend",
        "✓ orderly shutdown",
    ] {
        assert!(output.contains(step), "{step}");
    }
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    if !gate::may_run("demo") {
        return;
    }
    let _alone = gate::alone();
    // Early, while the first parts come up, and late, while pods are talking.
    for (moment, signal) in [("fed from", "-INT"), ("✓ pod → pod, same node", "-INT"), ("✓ start", "-TERM")]
    {
        let mut demo = Demo::start(&[]);
        let name = demo.name();
        demo.read_until(moment);
        assert!(!leftovers(&name).is_empty());
        demo.signal(signal);
        let (status, output) = demo.finish();
        assert_eq!(status.code(), Some(130), "after '{moment}': {output}");
        assert_eq!(leftovers(&name), Vec::<String>::new(), "after '{moment}'");
    }
}

#[test]
fn a_killed_demo_leaves_no_process_and_the_next_run_sweeps_the_rest() {
    if !gate::may_run("demo") {
        return;
    }
    let _alone = gate::alone();
    let mut demo = Demo::start(&[]);
    let name = demo.name();
    demo.read_until("✓ start");
    let namespaces: Vec<String> = netns::existing().into_iter().filter(|n| n.starts_with(&name)).collect();
    assert!(namespaces.iter().any(|n| !netns::pids(n).is_empty()));
    demo.signal("-KILL");
    demo.finish();
    let end = Instant::now() + Duration::from_secs(10);
    while namespaces.iter().any(|n| !netns::pids(n).is_empty()) {
        assert!(Instant::now() < end, "processes outlive the demo that was killed");
        std::thread::sleep(Duration::from_millis(20));
    }
    netns::sweep();
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn a_step_that_fails_fails_the_demo_and_leaves_nothing() {
    if !gate::may_run("demo") {
        return;
    }
    let _alone = gate::alone();
    let mut demo = Demo::start(&[]);
    let name = demo.name();
    demo.read_until("✓ start");
    // The engine of the second node crashes.
    let node = format!("{name}-node-2");
    let comm = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let engine = netns::pids(&node).into_iter().find(|pid| comm(*pid).starts_with("fairway-datapla"));
    let engine = engine.expect("the second node's engine").to_string();
    assert!(Command::new("kill").args(["-KILL", &engine]).status().expect("kill").success());
    let (status, output) = demo.finish();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains('✗') && output.contains("fairway-dataplane of node-2"), "{output}");
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn a_demo_left_running_lives_on_until_it_is_taken_down() {
    if !gate::may_run("demo") {
        return;
    }
    let _alone = gate::alone();
    let name = "fairway-demo";
    if !leftovers(name).is_empty() {
        // Somebody is looking around in it; it is not this test's to take down.
        eprintln!("skipped: a demo was left running on this machine");
        return;
    }
    let (status, output) = Demo::start(&["--keep"]).finish();
    let down = || Command::new(fairway()).args(["demo", "--down"]).output().expect("demo --down");
    if !status.success() {
        down();
        panic!("{}: {output}", process::describe(status));
    }
    assert!(output.contains("ip netns exec") && output.contains("demo --down"), "{output}");
    // The client pod still reaches the service.
    let dir = programs::bin_dir().expect("folder of the programs");
    let get = Command::new("ip")
        .args(["netns", "exec", "fairway-demo-demo-client"])
        .arg(dir.join("fairway-pod"))
        .args(["get", "http://10.96.0.80/", "--timeout-ms", "5000"])
        .output()
        .expect("fairway-pod");
    let second = Command::new(fairway()).args(["demo", "--keep"]).output().expect("second demo");
    let first_down = down();
    let again = down();
    assert!(String::from_utf8_lossy(&get.stdout).contains("\"failures\":0"), "{get:?}");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("demo --down"), "{second:?}");
    assert!(first_down.status.success(), "{first_down:?}");
    assert_eq!(leftovers(name), Vec::<String>::new());
    assert!(!again.status.success(), "nothing is left to take down");
}
