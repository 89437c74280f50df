//! Taking over the tables of a writer that is gone, maybe killed between two stores.
//!
//! What is reachable is good, since it was complete before it was published. What is not reachable is
//! garbage, which some reader may still be reading: it is retired under the next generation. Only the
//! expansion of a prefix takes many publishing stores; the journal names it, and it is done again.

use crate::Prefix;
use crate::blocks::{Block, Blocks};
use crate::error::OpenError;
use crate::keyed::BrokenChain;
use crate::layout::{RouteValue, header};
use crate::lpm_nodes::BrokenTrie;
use crate::region::WriteRegion;
use crate::sync::Ordering;
use crate::view::Shared;
use crate::writer::State;
use std::path::Path;

/// The tables contradict themselves, which no kill of a writer explains.
pub(crate) struct Damage {
    table: &'static str,
    what: &'static str,
}

impl Damage {
    pub(crate) fn in_file(self, path: &Path) -> OpenError {
        OpenError::Corrupt { path: path.to_owned(), table: self.table, what: self.what }
    }
}

fn chain(table: &'static str) -> impl FnOnce(BrokenChain) -> Damage {
    move |BrokenChain| Damage { table, what: "a broken chain" }
}

impl State {
    /// Rebuilds the books from what is reachable. Returns whether a new generation is needed: because
    /// something was finished that the former writer began, or because memory waits for readers.
    pub(crate) fn recover(
        &mut self,
        tables: &Shared,
        region: &WriteRegion,
        generation: u64,
    ) -> Result<bool, Damage> {
        self.settings.recover(region, generation).map_err(chain("settings"))?;
        self.masquerade.recover(region, generation).map_err(chain("masquerade"))?;
        self.ports.recover(region, generation).map_err(chain("ports"))?;
        self.endpoints.recover(region, generation).map_err(chain("endpoints"))?;
        self.routes.recover(region, generation).map_err(chain("routes"))?;
        self.neighbours.recover(region, generation).map_err(chain("neighbours"))?;
        self.tunnels.recover(region, generation).map_err(chain("tunnels"))?;
        self.services.recover(region, generation).map_err(chain("services"))?;
        self.recover_backends(tables, region, generation)?;
        let redone = self.recover_routes(tables, region, generation)?;
        let waiting = self.settings.pool.retired()
            + self.masquerade.pool.retired()
            + self.ports.pool.retired()
            + self.endpoints.pool.retired()
            + self.routes.pool.retired()
            + self.neighbours.pool.retired()
            + self.tunnels.pool.retired()
            + self.services.pool.retired()
            + self.blocks.retired()
            + self.lpm.nodes.pool.retired()
            + self.lpm.next_hops.pool.retired()
            + self.lpm.groups.pool.retired();
        Ok(redone || waiting > 0)
    }

    fn recover_backends(
        &mut self,
        tables: &Shared,
        region: &WriteRegion,
        generation: u64,
    ) -> Result<(), Damage> {
        let arena = tables.layout.backends;
        let damage = || Damage { table: "services", what: "overlapping or impossible blocks of backends" };
        let mut used = Vec::new();
        for (_, value) in tables.view().service_values() {
            if !arena.holds(value.first, value.slots()) {
                return Err(damage());
            }
            self.backends += u64::from(value.slots());
            used.extend(Block::of(value.first, value.slots()));
        }
        let reached = used.iter().map(Block::end).max().unwrap_or(0);
        let mark = region.load64(arena.high_water_offset, Ordering::Acquire).max(reached);
        self.blocks = Blocks::recover(arena.order, used, mark, generation).ok_or_else(damage)?;
        Ok(())
    }

    fn recover_routes(
        &mut self,
        tables: &Shared,
        region: &WriteRegion,
        generation: u64,
    ) -> Result<bool, Damage> {
        let damage = |BrokenTrie(what)| Damage { table: "routes", what };
        let journal = match region.load64(header::JOURNAL, Ordering::Acquire) {
            0 => None,
            _ => Some(region.read::<Prefix>(header::JOURNAL_PREFIX)),
        };
        if journal.is_some_and(|prefix| Prefix::new(prefix.addr(), prefix.len()) != Some(prefix)) {
            return Err(Damage { table: "header", what: "a malformed prefix in the journal" });
        }
        let routes: Vec<(Prefix, RouteValue)> = tables.view().route_values().collect();
        self.lpm.recover(region, routes.iter(), journal, generation).map_err(damage)?;
        let Some(prefix) = journal else { return Ok(false) };
        let get = |prefix: &Prefix| tables.view().route_value(prefix);
        match get(&prefix) {
            Some(value)
                if self.lpm.missing_nodes(region, std::iter::once(&prefix))
                    > self.lpm.nodes.pool.available() =>
            {
                // The nodes that the former writer had taken can't be told from those that readers may
                // still read. Only a new prefix needs nodes, and its batch was never acknowledged: undo it.
                self.routes.delete(region, tables.seed, &prefix, generation);
                self.lpm.delete(region, &prefix, false, generation, get);
                self.lpm.release(value.id);
                self.lpm.retire_unreferenced(region, generation);
            }
            Some(value) => self.lpm.set(region, &prefix, value.id, false, generation),
            None => self.lpm.delete(region, &prefix, false, generation, get),
        }
        region.store64(header::JOURNAL, 0, Ordering::Release);
        Ok(true)
    }
}
