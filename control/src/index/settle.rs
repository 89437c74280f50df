//! From touched sources to changes of the model: contributions are compiled anew, of several claims on an entry the
//! first source's wins, and what depends on the outcome (waiting pods, the kernel's routes inside a range, neighbours)
//! is looked at again.

use super::compile::Contribution;
use super::kernel_routes::{is_exclusive, neighbours};
use super::{Index, Source};
use crate::model::{Change, Key, Value};
use fairway_tables::{Ip, Prefix};
use std::collections::BTreeSet;

impl Index {
    /// Recompiles the touched sources, then those that waited for what they freed, and at last the neighbours that all
    /// these lead to.
    pub(super) fn settle(&mut self, mut dirty: BTreeSet<Source>) -> Vec<Change> {
        self.node_ports_touched(&mut dirty);
        let mut changes = Vec::new();
        let mut neighbours = BTreeSet::new();
        while !dirty.is_empty() {
            dirty.retain(|source| {
                let is_neighbour = matches!(source, Source::NextHop(..));
                is_neighbour.then(|| neighbours.insert(source.clone()));
                !is_neighbour
            });
            changes.extend(self.recompile(dirty));
            let freed = std::mem::take(&mut self.freed_port);
            let waiting = if freed { std::mem::take(&mut self.waiting_for_port) } else { BTreeSet::new() };
            dirty = waiting.into_iter().map(|(namespace, name)| Source::Pod(namespace, name)).collect();
            if freed {
                self.find_enis(&mut dirty);
            }
        }
        let touched = std::mem::take(&mut self.neighbours_touched);
        neighbours.extend(touched.into_iter().map(|(ifindex, ip)| Source::NextHop(ifindex, ip)));
        changes.extend(self.recompile(neighbours));
        changes
    }

    fn recompile(&mut self, dirty: BTreeSet<Source>) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        for source in dirty {
            match &source {
                Source::Node(name) => self.track_next_hop(name),
                Source::Kernel(prefix) => {
                    touched.insert(Key::Route(*prefix));
                    continue;
                }
                _ => {}
            }
            let new = self.compile(&source);
            self.replace_contribution(&source, new, &mut touched);
        }
        self.touch_kernel_routes(&mut touched);
        let mut changes = Vec::new();
        for key in touched {
            let winner = self.winner(&key);
            if winner.is_none() {
                self.release_number(&key);
            }
            if self.model.get(&key) != winner.as_ref() {
                self.count_neighbours(&key, winner.as_ref());
                changes.push((key, winner));
            }
        }
        crate::model::apply(&mut self.model, &changes);
        changes
    }

    /// Where a range begins or ceases to be one of which Fairway alone decides, the kernel's routes inside it are looked
    /// at again.
    fn touch_kernel_routes(&self, touched: &mut BTreeSet<Key>) {
        let turns = |key: &Key| match key {
            Key::Route(prefix) => {
                let claim = self.claims.get(key).and_then(|claims| claims.values().next());
                let turns = is_exclusive(claim) != is_exclusive(self.model.get(key));
                turns.then_some(*prefix)
            }
            _ => None,
        };
        let turned: Vec<Prefix> = touched.iter().filter_map(turns).collect();
        touched
            .extend(turned.into_iter().flat_map(|prefix| self.facts.routes.inside(prefix)).map(Key::Route));
    }

    /// Keeps count of the neighbours that entries lead to, before the model takes over a key's new value.
    fn count_neighbours(&mut self, key: &Key, new: Option<&Value>) {
        let (old, new) = (neighbours(key, self.model.get(key)), neighbours(key, new));
        for (port, ip) in old.difference(&new) {
            let count = self.needed_neighbours.entry((*port, *ip)).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.needed_neighbours.remove(&(*port, *ip));
            }
        }
        for (port, ip) in new.difference(&old) {
            *self.needed_neighbours.entry((*port, *ip)).or_default() += 1;
        }
        for (port, ip) in old.symmetric_difference(&new) {
            self.neighbours_touched.extend(self.uplink_ifindex(*port).map(|ifindex| (ifindex, *ip)));
        }
    }

    fn track_next_hop(&mut self, name: &str) {
        let paths = self.paths_to(name).into_iter();
        let new: BTreeSet<Ip> = paths.filter_map(|(_, _, next_hop)| next_hop).collect();
        let old = self.next_hop_of.remove(name).unwrap_or_default();
        let touched = old.symmetric_difference(&new).copied().zip(self.uplink.into_iter().cycle());
        self.neighbours_touched.extend(touched.map(|(ip, uplink)| (uplink, ip)));
        for gone in old.difference(&new) {
            if let Some(users) = self.next_hop_users.get_mut(gone) {
                users.remove(name);
                if users.is_empty() {
                    self.next_hop_users.remove(gone);
                }
            }
        }
        for added in new.difference(&old) {
            self.next_hop_users.entry(*added).or_default().insert(name.to_owned());
        }
        if !new.is_empty() {
            self.next_hop_of.insert(name.to_owned(), new);
        }
    }

    fn replace_contribution(&mut self, source: &Source, new: Contribution, touched: &mut BTreeSet<Key>) {
        let old = self.contributions.remove(source).unwrap_or_default();
        for key in old.keys().filter(|key| !new.contains_key(key)) {
            if let Some(claims) = self.claims.get_mut(key) {
                claims.remove(source);
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
            touched.insert(*key);
        }
        for (key, value) in new.iter().filter(|(key, value)| old.get(key) != Some(value)) {
            self.claims.entry(*key).or_default().insert(source.clone(), value.clone());
            touched.insert(*key);
        }
        if !new.is_empty() {
            self.contributions.insert(source.clone(), new);
        }
    }

    /// A number is free again once nothing in the tables carries it. Runs before the model forgets the entry.
    fn release_number(&mut self, key: &Key) {
        match (key, self.model.get(key)) {
            (Key::Port(_), Some(Value::Port(port))) => {
                self.port_ids.release(&port.ifname().to_owned());
                self.freed_port = true;
            }
            (Key::Service(key), _) => self.service_ids.release(key),
            _ => {}
        }
    }
}
