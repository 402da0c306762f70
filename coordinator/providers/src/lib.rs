//! The infrastructures that machines run on.
//!
//! Purpose: one [`Provider`] trait, and one folder for each infrastructure behind it.
//!
//! Place in the data flow: the coordinator's shell performs the core's `Provider(call)` effects here and feeds the
//! answers back as inputs.
//!
//! Deliberately does not know: blueprints, clusters' specs, Kubernetes. A provider sees machines, disks, addresses and
//! forwards, each with a key that says who it belongs to, and nothing of what they are for.

pub mod call;
pub mod fake;
pub mod local;

pub use call::{
    Answer, Call, Capabilities, ExposeRequest, Exposed, Fenced, HealthCheck, ImageLayers, ImageResolver,
    MachineRequest, MachineState, MachineView, Metadata, ObjectKey, PowerOff, ProviderError, Remedy,
    SecretText,
};

use std::future::Future;
use std::net::UdpSocket;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future, so that the coordinator can hold providers of different kinds in one table.
pub type ProviderFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// One infrastructure. All calls are idempotent by [`ObjectKey`]: a create that finds its own object returns it.
pub trait Provider: Send + Sync {
    /// What this infrastructure can do. Planners read this and never a provider's name.
    fn capabilities(&self) -> Capabilities;

    /// Carries out one call, within `deadline`.
    ///
    /// # Errors
    /// A typed [`ProviderError`]; `Unknown` means that the call may or may not have taken effect, and that only a
    /// list by key settles it.
    fn perform<'a>(&'a self, call: &'a Call, deadline: Duration) -> ProviderFuture<'a, Answer>;

    /// Binds the UDP socket on which agents of this infrastructure can reach the coordinator.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] when the port is taken.
    fn bind_link(&self, port: u16) -> Result<UdpSocket, ProviderError>;
}
