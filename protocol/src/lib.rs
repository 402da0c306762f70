//! What coordinator and agents say to each other.
//!
//! Purpose: ids, generations, time, limits, the versioned messages of the link and the probes between peers, with their
//! encoding.
//!
//! Place in the data flow: both ends of the link, and every crate that names a machine, use these types.
//!
//! Deliberately does not know: QUIC, TLS, sockets, files, clocks, Kubernetes. All functions are pure.

pub mod config;
pub mod errors;
pub mod health;
pub mod ids;
pub mod limits;
pub mod message;
pub mod peer;
pub mod remedy;
pub mod secret;
pub mod time;
pub mod wire;

pub use ids::{BootId, ClusterName, Generation, Incarnation, InstallId, MachineId, NameError, ReleaseName};
pub use secret::SecretBytes;
pub use time::{MonoTime, WallTime};
