//! A whole fleet in one process, in virtual time: the production planner, coordinator core and agent cores, with fakes for
//! everything around them.
//!
//! Purpose: to find what no example test finds. Each seed draws a fleet, what its users ask for and what goes wrong;
//! checkers look at every event, and when nothing goes wrong any more, everything must become as it shall be.
//!
//! Place in the data flow: it stands where the shells of coordinator and agent stand, calls the same cores with the same
//! contract, and carries out their effects and actions on fakes. Nothing in production uses it.
//!
//! Deliberately does not know: real clocks, threads, sockets, disks. The same seed is the same run, event by event.
//!
//! docs/simulation.md says what is simulated and what is not.

mod case;
mod check;
mod clock;
mod coordinator;
mod disruption;
mod draw;
mod etcd;
mod faults;
mod host;
mod hunt;
mod infrastructure;
mod kube;
mod link;
mod machine;
mod network;
mod power;
mod programs;
mod queue;
mod restraint;
mod rng;
mod run;
mod script;
mod store;
mod trace;
mod users;
mod world;

pub use case::{Case, Fault, FaultKind, Side, Target, Timed, Way, Weather, Wish};
pub use check::{Checker, Violation};
pub use draw::{Fleet, draw};
pub use hunt::{Hunt, HuntReport, hunt, hunt_first, minimise};
pub use run::{Outcome, run, run_aloud, seed_in_play};
pub use script::{ScriptError, play};
pub use trace::{Decision, Trace};
pub use world::World;
