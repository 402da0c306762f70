//! Certificate authorities of clusters, and the sealing of secrets at rest.
//!
//! Purpose: make the keys that a cluster needs, sign the certificates that its blueprint names, and seal what is stored.
//!
//! Place in the data flow: the coordinator's shell calls this for the core's `Sign` effects and before it stores keys.
//!
//! Deliberately does not know: whether a machine may have a certificate (the core decides that), files, clocks.

mod api;
mod authority;
mod seal;

pub use api::{API_LEAF_LIFE, api_certificate, new_api_authority};
pub use authority::{PkiError, admin_certificate, new_cluster_material, sign_leaf};
pub use seal::{SealError, SealingKey};
