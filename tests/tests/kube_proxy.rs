//! The real kube-proxy as oracle: random states of a cluster go to it and to Fairway, the same packets are sent to
//! both, and who may answer, refusal, silence, and what becomes of the source agree.
//!
//! FAIRWAY_ORACLE_SEED and FAIRWAY_ORACLE_STATES choose other states, and more of them; FAIRWAY_ORACLE_FIRST begins at
//! a later one. A disagreement is printed with its state.

#[allow(dead_code, reason = "the walk through every type of Service uses more of it")]
#[path = "kube_proxy/ground.rs"]
mod ground;
#[path = "kube_proxy/state.rs"]
mod state;
#[path = "kube_proxy/verdict.rs"]
mod verdict;
#[path = "kube_proxy/world.rs"]
mod world;

use fairway_tests::gate;
use fairway_tests::kube::Programs;
use ground::Asker;
use state::State;
use verdict::Differences;
use world::World;

/// States of one run, unless FAIRWAY_ORACLE_STATES says otherwise.
const STATES: u32 = 25;

fn number(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[test]
fn fairway_and_kube_proxy_agree_on_random_clusters() {
    if !gate::may_run("kube_proxy") {
        return;
    }
    let Some(programs) = Programs::find("kube_proxy").unwrap_or_else(|error| panic!("{error}")) else {
        return;
    };
    let _alone = gate::alone();
    if let Err(error) = compare(&programs) {
        panic!("{error}");
    }
}

fn compare(programs: &Programs) -> fairway_tests::Result<()> {
    let seed = number("FAIRWAY_ORACLE_SEED", 1);
    let first = number("FAIRWAY_ORACLE_FIRST", 0) as u32;
    let states = number("FAIRWAY_ORACLE_STATES", STATES.into()) as u32;
    let mut kernel = World::kernel(programs)?;
    let mut fairway = World::fairway()?;
    let mut differences = Differences::default();
    for number in first..first + states {
        let state = State::random(seed, number);
        let held = kernel.hold(&state, &[])?;
        fairway.hold(&state, &held)?;
        let questions = state.questions();
        let (expected, answers) = std::thread::scope(|scope| {
            let expected = scope.spawn(|| kernel.ask_all(&questions));
            let answers = fairway.ask_all(&questions);
            (expected.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), answers)
        });
        let (expected, answers) = (expected?, answers?);
        for asker in Asker::ALL {
            let both = [&expected[&asker][..], &answers[&asker]];
            differences.judge(&state, asker, &questions, both, &fairway.ground.ips_of(asker));
        }
    }
    kernel.stop()?;
    fairway.stop()?;
    println!("{states} states of seed {seed}: {}", differences.summary());
    assert!(differences.is_empty(), "seed {seed}:\n{differences}");
    Ok(())
}
