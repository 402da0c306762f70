//! Peer probes: the key of a cluster's agents.

use keelson_protocol::{ClusterName, SecretBytes};
use ring::hmac;

use crate::state::CoordinatorCore;

impl CoordinatorCore {
    /// Key of a cluster's peer probes. Derived like enrolment tokens, so that it is nowhere stored and the same after a
    /// restart; another cluster's machines cannot make it from theirs.
    pub(crate) fn peer_key(&self, cluster: &ClusterName) -> SecretBytes {
        let text = format!("keelson peers 1|{}|{cluster}", self.settings.install);
        SecretBytes::new(hmac::sign(&self.token_key(), text.as_bytes()).as_ref().to_vec())
    }
}
