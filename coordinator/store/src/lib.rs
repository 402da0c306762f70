//! What the coordinator keeps on disk: one SQLite file.
//!
//! Purpose: write the core's rows in transactions, read them back at start, and answer queries on events.
//!
//! Place in the data flow: the shell carries out `Effect::Persist` here, and restores the core from [`Store::load`].
//!
//! Deliberately does not know: what rows mean. It plans nothing, and it is the only crate with SQL.

mod error;
mod migrations;
mod store;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use migrations::SCHEMA_VERSION;
pub use store::{EventFilter, EventRange, OfIncident, Store};
