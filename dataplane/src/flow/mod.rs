//! Tier 1: what is remembered of a flow so that its packets need one look-up.

mod entry;
mod entry6;
mod memory;
mod rewrite;
mod rewrite6;
mod table;
mod template;

pub use entry::{Binding, Flow, FlowEntry, FlowKey};
pub use entry6::{FlowEntry6, FlowKey6};
pub use memory::HugeSlice;
pub use rewrite::{Rewrite, apply};
pub(crate) use rewrite::{encapsulate, translate};
pub use rewrite6::apply6;
pub use table::{FlowTable, WINDOW};
pub use template::{Family, Template, TemplateId, TemplateKey, Templates};
