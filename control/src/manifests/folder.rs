//! The folder as a pure state machine: a listing of texts goes in, index events come out. Each file is all or
//! nothing; one that is refused keeps what it said before in force.

use super::conflicts::{Candidate, Conflict, conflicts};
use super::error::{FileProblem, ManifestError};
use super::parse::{Parsed, parse};
use crate::index::Event;
use crate::object::{Object, ObjectKey};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The folder's files by name; the text, or why it could not be read.
pub type Listing = BTreeMap<String, Result<String, FileProblem>>;

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

/// See the module's head.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, FileState>,
    objects: BTreeMap<ObjectKey, Object>,
    has_errors: bool,
}

impl Folder {
    /// Takes in a listing and returns what changes: deletions first.
    pub fn update(&mut self, listing: Listing) -> Vec<Event> {
        self.files.retain(|name, _| listing.contains_key(name));
        for (name, read) in listing {
            let state = self.files.entry(name.clone()).or_default();
            if state.read.as_ref() == Some(&read) {
                continue;
            }
            let result = match &read {
                Ok(text) => parse(&name, text),
                Err(problem) => Err(vec![ManifestError {
                    file: name.clone(),
                    document: 0,
                    line: None,
                    object: None,
                    problem: problem.clone(),
                }]),
            };
            state.read = Some(read);
            (state.parsed, state.parse_errors) = match result {
                Ok(parsed) => (Some(Arc::new(parsed)), Vec::new()),
                Err(errors) => (None, errors),
            };
        }
        self.admit();
        let is_wrong =
            |state: &FileState| !state.parse_errors.is_empty() || !state.conflict_errors.is_empty();
        self.has_errors = self.files.values().any(is_wrong);
        self.events()
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
        self.files.values().flat_map(of).collect()
    }

    /// Whether any file has an error.
    pub fn has_errors(&self) -> bool {
        self.has_errors
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
