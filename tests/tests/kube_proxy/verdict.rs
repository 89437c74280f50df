//! What became of a connection, and whether Fairway's verdict is kube-proxy's.

use crate::ground::Asker;
use crate::state::State;
use fairway_tests::pod::witness::{Answer, Question};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What becomes of a packet's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// It is the client's.
    Kept,
    /// It is another: the node's.
    Translated,
}

/// What becomes of connections to one address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// They are forwarded to one of these backends, each of which sees such sources.
    Forwarded(BTreeMap<SocketAddr, BTreeSet<Source>>),
    /// They are refused.
    Refused,
    /// They are dropped.
    Dropped,
    /// Not always the same, or neither of these.
    Mixed(Answer),
}

impl Verdict {
    fn of(answer: &Answer, client: &[IpAddr]) -> Verdict {
        let Answer { attempts, backends, refused, silent, errors, .. } = answer;
        let source = |ip: &IpAddr| if client.contains(ip) { Source::Kept } else { Source::Translated };
        match (*refused, *silent) {
            (0, 0) if !backends.is_empty() && errors.is_empty() => {
                let seen = |(at, sources): (&SocketAddr, &BTreeSet<IpAddr>)| {
                    (*at, sources.iter().map(source).collect())
                };
                Verdict::Forwarded(backends.iter().map(seen).collect())
            }
            (refused, 0) if refused == *attempts => Verdict::Refused,
            (0, silent) if silent == *attempts => Verdict::Dropped,
            _ => Verdict::Mixed(answer.clone()),
        }
    }

    /// Whether this is right for a Service with session affinity, of which `kept` came where it is kube-proxy's
    /// turn, and that without affinity would have the verdict `free`: one client, one backend.
    fn keeps_to_one_of(&self, kept: &Verdict, free: &Verdict) -> bool {
        match (self, kept, free) {
            (Verdict::Forwarded(ours), Verdict::Forwarded(theirs), Verdict::Forwarded(all)) => {
                ours.len() == 1
                    && theirs.len() == 1
                    && ours.iter().all(|(at, sources)| all.get(at) == Some(sources))
            }
            _ => self == kept,
        }
    }
}

/// All disagreements of a run.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    asked: usize,
    /// How often kube-proxy gave which verdict.
    seen: BTreeMap<(Asker, &'static str), usize>,
    told: Vec<String>,
}

impl Differences {
    /// Compares the answers of one state: kube-proxy's and Fairway's to the same questions of one client.
    pub(crate) fn judge(
        &mut self,
        state: &State,
        asker: Asker,
        questions: &[Question],
        [kernel, fairway]: [&[Answer]; 2],
        client: &[IpAddr],
    ) {
        let verdicts = |answers: &[Answer]| -> BTreeMap<Question, Verdict> {
            let verdicts = answers.iter().map(|answer| Verdict::of(answer, client));
            questions.iter().copied().zip(verdicts).collect()
        };
        let (theirs, ours) = (verdicts(kernel), verdicts(fairway));
        let mut told = Vec::new();
        for (question, their) in &theirs {
            let our = &ours[question];
            let agrees = match state.twin(question).and_then(|twin| theirs.get(&twin)) {
                Some(free) => our.keeps_to_one_of(their, free),
                None => our == their,
            };
            *self.seen.entry((asker, their.name())).or_default() += 1;
            if !agrees || matches!(their, Verdict::Mixed(_)) {
                told.push(format!(
                    "{question:?} from {asker:?}\n  kube-proxy: {their:?}\n  Fairway:    {our:?}"
                ));
            }
        }
        self.asked += questions.len();
        if !told.is_empty() {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": state.objects});
            let yaml = serde_norway::to_string(&list).unwrap_or_else(|error| error.to_string());
            self.told.push(format!("state {}:\n{}\n{yaml}", state.number, told.join("\n")));
        }
    }

    /// Whether there was none.
    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// What was asked, in words.
    pub(crate) fn summary(&self) -> String {
        format!("{} questions, of which kube-proxy {:?}", self.asked, self.seen)
    }
}

impl Verdict {
    fn name(&self) -> &'static str {
        match self {
            Verdict::Forwarded(_) => "forwarded",
            Verdict::Refused => "refused",
            Verdict::Dropped => "dropped",
            Verdict::Mixed(_) => "did this and that with",
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told.join("\n"))
    }
}
