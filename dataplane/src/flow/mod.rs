//! Tier 1: what is remembered of a flow so that its packets need one look-up.

mod entry;
mod memory;
mod rewrite;
mod table;
mod template;

pub use entry::{Binding, Flow, FlowEntry, FlowKey};
pub use memory::HugeSlice;
pub use rewrite::{Rewrite, apply};
pub use table::{FlowTable, WINDOW};
pub use template::{Template, TemplateId, TemplateKey, Templates};
