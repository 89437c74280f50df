//! The folder as a pure state machine: texts go in, index events come out. Each file is all or
//! nothing; one that is refused keeps what it said before in force.
//!
//! The cost of a change follows the change, not the folder, as long as nothing conflicts. Once something does, everything is
//! looked at.

use super::claims::Claims;
use super::conflicts::{Candidate, Conflict, conflicts};
use super::error::{FileProblem, ManifestError};
use super::parse::{Parsed, parse};
use crate::index::Event;
use crate::object::{Object, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The folder's files by name; the text, or why it could not be read.
pub type Listing = BTreeMap<String, Result<String, FileProblem>>;

/// The files that changed since an earlier look, by name; `None` for one that is gone.
pub type Changes = BTreeMap<String, Option<Result<String, FileProblem>>>;

/// What a look at the folder gave.
#[derive(Clone, Debug)]
pub enum Look {
    /// All of it.
    Whole(Listing),
    /// What changed.
    Changed(Changes),
}

impl FromIterator<(String, Result<String, FileProblem>)> for Look {
    /// All of the folder.
    fn from_iter<T: IntoIterator<Item = (String, Result<String, FileProblem>)>>(files: T) -> Look {
        Look::Whole(files.into_iter().collect())
    }
}

#[derive(Debug, Default)]
struct FileState {
    /// What the folder holds now.
    read: Option<Result<String, FileProblem>>,
    /// That, parsed.
    parsed: Option<Arc<Parsed>>,
    parse_errors: Vec<ManifestError>,
    conflict_errors: Vec<ManifestError>,
    in_force: Option<Arc<Parsed>>,
}

impl FileState {
    fn is_wrong(&self) -> bool {
        !self.parse_errors.is_empty() || !self.conflict_errors.is_empty()
    }
}

/// A file's name and text.
type File = (String, Result<String, FileProblem>);

type ParseResult = Result<Parsed, Vec<ManifestError>>;

/// Fewer files than this are not worth a thread.
const FILES_PER_THREAD: usize = 64;

/// Parses files, many of them on all cores: reading YAML is most of what a large folder costs at start.
fn parse_all(files: &[File]) -> Vec<ParseResult> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let stretch = files.len().div_ceil(cores).max(FILES_PER_THREAD);
    let parse = |files: &[File]| files.iter().map(|(name, read)| parse_one(name, read)).collect::<Vec<_>>();
    if files.len() <= stretch {
        return parse(files);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = files.chunks(stretch).map(|files| scope.spawn(move || parse(files))).collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results.flat_map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn parse_one(name: &str, read: &Result<String, FileProblem>) -> ParseResult {
    let text = read.as_ref().map_err(|problem| {
        vec![ManifestError {
            file: name.to_owned(),
            document: 0,
            line: None,
            object: None,
            problem: problem.clone(),
        }]
    })?;
    parse(name, text)
}

/// What files said before a change: their content that was in force.
type Before = BTreeMap<String, Option<Arc<Parsed>>>;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, FileState>,
    /// The names of files with errors.
    wrong: BTreeSet<String>,
    objects: BTreeMap<ObjectKey, Object>,
    claims: Claims,
}

impl Folder {
    /// Takes in what a look gave and returns what changes: deletions first.
    pub fn look(&mut self, look: Look) -> Vec<Event> {
        match look {
            Look::Whole(listing) => self.update(listing),
            Look::Changed(changes) => self.change(changes),
        }
    }

    /// Takes in a listing and returns what changes: deletions first.
    pub fn update(&mut self, listing: Listing) -> Vec<Event> {
        let gone = self.files.keys().filter(|name| !listing.contains_key(*name));
        let mut changes: Changes = gone.map(|name| (name.clone(), None)).collect();
        changes.extend(listing.into_iter().map(|(name, read)| (name, Some(read))));
        self.change(changes)
    }

    /// Takes in some files, others being as before, and returns what changes: deletions first.
    pub fn change(&mut self, changes: Changes) -> Vec<Event> {
        let before = self.read(changes);
        // What waits for others to give way may have its turn although no file changed.
        if before.is_empty() && !self.others_wait(&before) {
            return Vec::new();
        }
        if self.admit_alone(&before) { self.events_of(&before) } else { self.admit_anew() }
    }

    /// Notes what files hold now, and returns what those that changed said before.
    fn read(&mut self, changes: Changes) -> Before {
        let mut before = Before::new();
        let mut changed = Vec::new();
        for (name, read) in changes {
            let known = self.files.get(&name);
            match read {
                None => {
                    if let Some(state) = self.files.remove(&name) {
                        before.insert(name, state.in_force);
                    }
                }
                Some(read) if known.is_some_and(|state| state.read.as_ref() == Some(&read)) => {}
                Some(read) => changed.push((name, read)),
            }
        }
        let results = parse_all(&changed);
        for ((name, read), result) in changed.into_iter().zip(results) {
            let state = self.files.entry(name.clone()).or_default();
            state.read = Some(read);
            (state.parsed, state.parse_errors) = match result {
                Ok(parsed) => (Some(Arc::new(parsed)), Vec::new()),
                Err(errors) => (None, errors),
            };
            before.insert(name, state.in_force.clone());
        }
        before
    }

    /// Whether a file that did not change was refused because of others.
    fn others_wait(&self, before: &Before) -> bool {
        let waits = |name: &String| {
            !before.contains_key(name)
                && self.files.get(name).is_some_and(|state| !state.conflict_errors.is_empty())
        };
        self.wrong.iter().any(waits)
    }

    /// Brings the changed files into force if nothing conflicts, whether with them or among others that wait. Otherwise
    /// the claims are no use any more.
    fn admit_alone(&mut self, before: &Before) -> bool {
        if self.others_wait(before) {
            return false;
        }
        for placed in before.values().flatten().flat_map(|parsed| &parsed.objects) {
            self.claims.remove(&placed.object);
        }
        for name in before.keys() {
            let Some(state) = self.files.get_mut(name) else { continue };
            let content = state.parsed.clone().or_else(|| state.in_force.clone());
            let mut objects = content.iter().flat_map(|parsed| &parsed.objects);
            if !objects.all(|placed| self.claims.insert(&placed.object)) {
                return false;
            }
        }
        if !self.claims.are_settled() {
            return false;
        }
        for name in before.keys() {
            self.wrong.remove(name);
            let Some(state) = self.files.get_mut(name) else { continue };
            state.conflict_errors.clear();
            state.in_force = state.parsed.clone().or_else(|| state.in_force.take());
            if state.is_wrong() {
                self.wrong.insert(name.clone());
            }
        }
        true
    }

    /// What changes where only these files did.
    fn events_of(&mut self, before: &Before) -> Vec<Event> {
        let files = before.keys().filter_map(|name| self.files.get(name)?.in_force.as_ref());
        let new: BTreeMap<ObjectKey, &Object> =
            files.flat_map(|parsed| &parsed.objects).map(|p| (p.object.key(), &p.object)).collect();
        let old = before.values().flatten().flat_map(|parsed| &parsed.objects).map(|p| p.object.key());
        let gone: BTreeSet<ObjectKey> = old.filter(|key| !new.contains_key(key)).collect();
        for key in &gone {
            self.objects.remove(key);
        }
        let mut events: Vec<Event> = gone.into_iter().map(Event::Delete).collect();
        for (key, object) in new {
            if self.objects.get(&key) != Some(object) {
                self.objects.insert(key, object.clone());
                events.push(Event::Upsert(object.clone()));
            }
        }
        events
    }

    /// Looks at everything: decides what comes into force, and returns what changes.
    fn admit_anew(&mut self) -> Vec<Event> {
        self.admit();
        let wrong = self.files.iter().filter(|(_, state)| state.is_wrong());
        self.wrong = wrong.map(|(name, _)| name.clone()).collect();
        let events = self.events();
        self.claims = Claims::of(self.objects.values());
        events
    }

    /// Decides which files' new content comes into force. All are tried at once, so that an object may move
    /// from file to file; then one file after another that is to blame for a conflict goes back to what it said
    /// before, until none is left. What is in force never conflicts with itself, so this ends.
    fn admit(&mut self) {
        let mut candidates: BTreeMap<String, Candidate> = BTreeMap::new();
        for (name, state) in &mut self.files {
            state.conflict_errors.clear();
            let content = state.parsed.clone().or_else(|| state.in_force.clone());
            if let Some(content) = content {
                let is_new = state.in_force.as_ref().is_none_or(|old| *old != content);
                candidates.insert(name.clone(), Candidate { content, is_new });
            }
        }
        loop {
            let found = conflicts(&candidates);
            // The last file to blame yields first: those before it may then be fine.
            let Some(name) = found.iter().map(|c| &c.file).max().cloned() else { break };
            let Some(refused) = candidates.remove(&name) else { break };
            let Some(state) = self.files.get_mut(&name) else { break };
            let mine = found.iter().filter(|c| c.file == name);
            state.conflict_errors = mine.map(|c| located(&name, &refused.content, c)).collect();
            if let Some(old) = state.in_force.clone().filter(|_| refused.is_new) {
                candidates.insert(name, Candidate { content: old, is_new: false });
            }
        }
        for (name, state) in &mut self.files {
            state.in_force = candidates.get(name).map(|c| c.content.clone());
        }
    }

    fn events(&mut self) -> Vec<Event> {
        let new: BTreeMap<ObjectKey, Object> = self
            .files
            .values()
            .filter_map(|state| state.in_force.as_ref())
            .flat_map(|parsed| parsed.objects.iter().map(|p| (p.object.key(), p.object.clone())))
            .collect();
        let old = std::mem::replace(&mut self.objects, new);
        let gone = old.keys().filter(|key| !self.objects.contains_key(key));
        let mut events: Vec<Event> = gone.cloned().map(Event::Delete).collect();
        let changed = self.objects.iter().filter(|(key, object)| old.get(key) != Some(object));
        events.extend(changed.map(|(_, object)| Event::Upsert(object.clone())));
        events
    }

    /// Every error of every file, in order.
    pub fn errors(&self) -> Vec<ManifestError> {
        let of = |state: &FileState| [state.parse_errors.clone(), state.conflict_errors.clone()].concat();
        self.wrong.iter().filter_map(|name| self.files.get(name)).flat_map(of).collect()
    }

    /// Whether any file has an error.
    pub fn has_errors(&self) -> bool {
        !self.wrong.is_empty()
    }

    /// How many files there are.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// How many objects of which other kinds the folder holds, which Fairway does not read.
    pub fn ignored(&self) -> BTreeMap<String, usize> {
        let mut out = BTreeMap::new();
        for (kind, count) in self.files.values().filter_map(|s| s.in_force.as_ref()).flat_map(|p| &p.ignored)
        {
            *out.entry(kind.clone()).or_default() += count;
        }
        out
    }
}

fn located(file: &str, content: &Parsed, conflict: &Conflict) -> ManifestError {
    let placed = &content.objects[conflict.index];
    ManifestError {
        file: file.to_owned(),
        document: placed.document,
        line: Some(placed.line),
        object: Some(placed.object.key().to_string()),
        problem: conflict.problem.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    /// An object out of few names and addresses, so that many conflict; some are wrong by themselves.
    fn object() -> impl Strategy<Value = String> {
        let node = (0..3u8, 0..4u8, 1..4u8, 0..2u8).prop_map(|(name, range, ip, len)| {
            let len = 24 - len;
            format!(
                "kind: Node\nmetadata: {{name: n{name}}}\nspec: {{podCIDR: 10.244.{range}.0/{len}}}\nstatus: {{addresses: \
                 [{{type: InternalIP, address: 192.0.2.{ip}}}]}}\n"
            )
        });
        let pod = (0..4u8, 0..3u8, 0..4u8, 1..3u8, any::<bool>()).prop_map(|(name, node, range, ip, host)| {
            format!(
                "kind: Pod\nmetadata: {{name: p{name}}}\nspec: {{nodeName: n{node}, hostNetwork: {host}, containers: []}}\n\
                 status: {{podIP: 10.244.{range}.{ip}}}\n"
            )
        });
        let service = (0..3u8, 1..3u8, 80..82u16, 0..3u16).prop_map(|(name, ip, port, node_port)| {
            let node_port = if node_port == 0 { String::new() } else { format!(", nodePort: {}", 30_000 + node_port) };
            format!(
                "kind: Service\nmetadata: {{name: s{name}}}\nspec: {{type: NodePort, clusterIP: 10.96.0.{ip}, ports: [{{port: \
                 {port}{node_port}}}]}}\n"
            )
        });
        let pool = (0..2u8, 0..2u8, 0..2u8).prop_map(|(name, range, len)| {
            let len = 17 - len;
            format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: l{name}}}\nspec: {{cidr: 10.{range}.0.0/{len}}}\n"
            )
        });
        let enis = (0..3u8, 0..4u8, 1..3u8, 1..3u8).prop_map(|(name, range, ip, mac)| {
            format!(
                "apiVersion: network.alibabacloud.com/v1beta1\nkind: Node\nmetadata: {{name: n{name}}}\nstatus: \
                 {{networkInterfaces: {{e: {{status: InUse, macAddress: '02:00:00:00:00:0{mac}', ipv4: {{a: {{ip: \
                 10.244.{range}.{ip}}}}}}}}}}}\n"
            )
        });
        let wrong = Just("kind: Pod\nmetadata: {}\n".to_owned());
        prop_oneof![4 => node, 4 => pod, 2 => service, 1 => pool, 2 => enis, 1 => wrong].prop_map(|text| {
            if text.starts_with("apiVersion") { text } else { format!("apiVersion: v1\n{text}") }
        })
    }

    /// Files that change at once: of each what it holds, or that it is gone.
    fn changes() -> impl Strategy<Value = Changes> {
        let text = prop::collection::vec(object(), 0..3).prop_map(|objects| {
            objects.iter().fold(String::new(), |mut text, object| {
                let _ = writeln!(text, "{object}---");
                text
            })
        });
        let file = prop_oneof![4 => text.prop_map(|text| Some(Ok(text))), 1 => Just(None)];
        prop::collection::btree_map((0..5u8).prop_map(|file| format!("f{file}.yaml")), file, 1..3)
    }

    fn told(events: &[Event]) -> String {
        format!("{events:?}")
    }

    proptest! {
        #[test]
        fn changes_add_up_to_what_looking_at_everything_gives(steps in prop::collection::vec(changes(), 1..12)) {
            let (mut quick, mut thorough) = (Folder::default(), Folder::default());
            for changes in steps {
                let events = quick.change(changes.clone());
                thorough.read(changes);
                let expected = thorough.admit_anew();
                prop_assert_eq!(told(&events), told(&expected));
                prop_assert_eq!(&quick.objects, &thorough.objects);
                prop_assert_eq!(quick.errors(), thorough.errors());
                prop_assert_eq!(quick.has_errors(), thorough.has_errors());
            }
        }
    }
}
