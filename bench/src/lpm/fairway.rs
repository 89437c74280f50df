//! Fairway's own tables, through the interfaces that control and the workers use.

use super::Table;
use super::routes::{Family, Route};
use fairway_tables::{Capacities, Ip, NextHop, NextHopKind, Op, PortId, Reader, Tables, Writer};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Routes per batch.
const BATCH: usize = 1000;

/// What the tables lie in.
pub enum Backing<'a> {
    /// Heap memory.
    Heap,
    /// A file in this folder, mapped, as in production.
    File(&'a Path),
}

/// See the module.
pub struct Fairway {
    family: Family,
    writer: Writer,
    reader: Reader,
    file: Option<PathBuf>,
}

fn hop(value: u32) -> NextHop {
    NextHop::new(NextHopKind::Gateway, Ip::v4(value.to_be_bytes()), PortId(0))
}

impl Fairway {
    /// Empty tables with room for `routes` routes.
    ///
    /// # Panics
    /// If the file can't be made.
    pub fn new(family: Family, routes: usize, backing: &Backing<'_>) -> Fairway {
        let capacities = Capacities {
            routes: routes.max(1000) as u32,
            lpm_nodes: (4 * routes as u32).clamp(10_000, 4_000_000),
            ..Capacities::default()
        };
        let (writer, reader, file) = match backing {
            Backing::Heap => {
                let (writer, factory) = Tables::heap(capacities);
                (writer, factory.reader(), None)
            }
            Backing::File(dir) => {
                let writer = Writer::open(dir, capacities).expect("tables made");
                let reader = Reader::open(dir, "bench-lpm").expect("tables opened");
                (writer, reader, Some(dir.join("tables")))
            }
        };
        Fairway { family, writer, reader, file }
    }

    /// Bytes of the file that take memory; the whole of the tables, not only what look-ups use.
    ///
    /// # Panics
    /// If the tables lie in no file, or it is gone.
    pub fn file_bytes(&self) -> u64 {
        let file = self.file.as_ref().expect("tables in a file");
        512 * std::fs::metadata(file).expect("the tables file").blocks()
    }

    /// Look-up nodes in use.
    pub fn nodes(&self) -> u64 {
        self.writer.usage().iter().find(|usage| usage.table == "lpm_nodes").map_or(0, |usage| usage.used)
    }

    fn apply(&mut self, routes: &[Route], op: impl Fn(&Route) -> Op) {
        for part in routes.chunks(BATCH) {
            let ops: Vec<Op> = part.iter().map(&op).collect();
            self.writer.apply(&ops).expect("room for all routes");
            self.reader.quiescent();
        }
    }
}

impl Table for Fairway {
    fn insert(&mut self, routes: &[Route]) {
        self.apply(routes, |route| Op::SetRoute(route.prefix(), hop(route.value)));
    }

    fn remove(&mut self, routes: &[Route]) -> bool {
        self.apply(routes, |route| Op::DelRoute(route.prefix()));
        true
    }

    #[inline(always)]
    fn announce(&self, key: u128) {
        self.reader.view().prefetch_route(self.family.ip(key));
    }

    #[inline]
    fn look_up(&self, key: u128) -> Option<u32> {
        // All are IPv4 addresses made of the value.
        let [.., a, b, c, d] = self.reader.view().route(self.family.ip(key))?.addr.0;
        Some(u32::from_be_bytes([a, b, c, d]))
    }
}
