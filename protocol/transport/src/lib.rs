//! The mutual-TLS QUIC link between coordinator and agents.
//!
//! Purpose: carry the messages of `keelson-protocol` between one coordinator and many agents: enrolment of machines
//! that have no certificate yet, sessions of machines that have one, heartbeats as datagrams, control messages on one
//! stream, bulk content on streams of its own; certificates of both sides are renewed without a gap.
//!
//! Place in the data flow: the shells of coordinator and agent own a [`LinkServer`] or a [`LinkClient`]; what comes out
//! of them are events for the pure cores, what goes in are the effects of these cores.
//!
//! Deliberately does not know: which machine may do what (the core answers every `Hello` and every enrolment), what a
//! config or a health report means, where keys and certificates are stored. The only crate with quinn and rustls for
//! the link. A machine's identity is taken from its certificate, never from a message.

pub mod backoff;
pub mod bulk;
pub mod ca;
pub mod client;
pub mod clock;
pub mod close;
pub mod error;
mod frame;
pub mod identity;
mod queue;
pub mod server;
pub mod settings;
mod socket;
mod tls;

pub use bulk::{BulkError, BulkReader, BulkStream, BulkWriter};
pub use ca::{CaError, LEAF_LIFE, LinkCa, SERVER_NAME, renew_at, requested_key, requested_key_fingerprint};
pub use client::enrol::{EnrolConfig, EnrolError, Enrolled, enrol};
pub use client::{ClientConfig, ClientEvent, LinkClient, LinkEndpoint};
pub use clock::{WallClock, system_clock};
pub use close::CloseCode;
pub use error::{LinkError, SendError};
pub use identity::{Identity, IdentityError, KeyRequest, PeerIdentity, key_request_of, make_key_request};
pub use keelson_protocol::wire::{NoCommonVersion, negotiate};
pub use server::{
    EnrolReplier, LinkEvent, LinkServer, LinkStats, ServerConfig, ServerError, SessionHandle, SessionId,
};
pub use tls::CaTrust;
