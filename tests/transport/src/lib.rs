//! Link tests with real QUIC in paused time.
//!
//! Purpose: run the real [`keelson_transport`] with real quinn and TLS over a network that exists in memory only, so
//! that minutes of loss, partitions, restarts and expiring certificates take milliseconds and never flake.
//!
//! Place in the data flow: the tests in `tests/transport/tests` build a [`World`], put a [`Coordinator`] and some
//! [`Agent`]s into it, and wait for what these see. No test sleeps to let something happen.
//!
//! Deliberately does not know: what coordinator and agents decide. Both are stubs here that answer every question in
//! the friendliest way and write down what came.

pub mod agent;
pub mod coordinator;
pub mod network;
pub mod raw;
pub mod world;

pub use agent::Agent;
pub use coordinator::{Coordinator, Seen};
pub use network::{LinkModel, Network};
pub use world::{World, heartbeat, hello, within};
