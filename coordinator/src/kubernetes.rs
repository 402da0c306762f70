//! Connections to clusters' API servers, one for each cluster that was asked something.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_kube::{Access, KubeClient};
use keelson_model::ClusterMaterial;
use keelson_model::kubernetes::{KubeAnswer, KubeCall, KubeFailure};
use keelson_pki::admin_certificate;
use keelson_planner::node::ADMIN_GROUP;
use keelson_protocol::config::Issuer;
use keelson_protocol::errors::chain;
use keelson_protocol::{ClusterName, WallTime};

/// The coordinator's name in the audit logs of clusters.
const USER: &str = "keelson:coordinator";
/// Life of its certificates; a connection is made anew after half of it.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long a call may take: a drain asks once for each of up to 110 pods.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// The same for a look at the nodes: it is asked as evidence, and an answer that comes late is none.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// The same for giving up the pods of a machine, which is not switched on before the call has ended.
const EVACUATE_DEADLINE: Duration = keelson_coordinator_core::EVACUATE_MAX;

/// All connections.
#[derive(Default)]
pub(crate) struct KubeClients {
    clients: BTreeMap<ClusterName, Connection>,
}

struct Connection {
    endpoint: String,
    /// Who vouches for the API server, in PEM: another cluster of the same name may be at the same endpoint.
    authority: String,
    /// When its certificate was made, and when another one is due.
    issued: WallTime,
    renew: WallTime,
    client: KubeClient,
}

impl KubeClients {
    /// The connection to a cluster, made anew when its endpoint has moved, when it is another cluster, or when its certificate
    /// grows old.
    ///
    /// # Errors
    /// [`KubeFailure::Unreachable`] when none can be made.
    pub(crate) fn get(
        &mut self,
        name: &ClusterName,
        endpoint: &str,
        material: &ClusterMaterial,
        now: WallTime,
    ) -> Result<KubeClient, KubeFailure> {
        let authority = material.authorities.get(&Issuer::Kubernetes).map(|ca| ca.certificate.clone());
        let authority = authority.unwrap_or_default();
        let fits = |known: &&Connection| {
            // By a clock that was set back, the certificate would not be valid yet for a while.
            let fresh = known.issued <= now && now < known.renew;
            known.endpoint == endpoint && known.authority == authority && fresh
        };
        if let Some(known) = self.clients.get(name).filter(fits) {
            return Ok(known.client.clone());
        }
        let unreachable = |error: &dyn std::error::Error| KubeFailure::Unreachable { why: chain(error) };
        let (certificate, key) = admin_certificate(material, USER, ADMIN_GROUP, now, CERTIFICATE_LIFE)
            .map_err(|error| unreachable(&error))?;
        let access = Access { endpoint: endpoint.to_owned(), authority: authority.clone(), certificate, key };
        let client = KubeClient::new(&access).map_err(|error| unreachable(&error))?;
        let renew = now.plus(CERTIFICATE_LIFE / 2);
        let connection = Connection {
            endpoint: endpoint.to_owned(),
            authority,
            issued: now,
            renew,
            client: client.clone(),
        };
        self.clients.insert(name.clone(), connection);
        Ok(client)
    }

    /// Forgets the connections to clusters that are gone.
    pub(crate) fn retain(&mut self, exists: impl Fn(&ClusterName) -> bool) {
        self.clients.retain(|name, _| exists(name));
    }
}

/// Carries out a call.
pub(crate) async fn perform(client: &KubeClient, call: &KubeCall) -> Result<KubeAnswer, KubeFailure> {
    let deadline = match call {
        KubeCall::Nodes => LOOK_DEADLINE,
        KubeCall::Evacuate { .. } => EVACUATE_DEADLINE,
        KubeCall::SetNode { .. } | KubeCall::Drain { .. } | KubeCall::DeleteNode { .. } => CALL_DEADLINE,
    };
    client.perform(call, deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_cluster_of_the_same_name_at_the_same_address_has_a_connection_of_its_own() {
        let (name, now) = ("demo".parse().unwrap(), WallTime(1_700_000_000_000));
        let material = || keelson_pki::new_cluster_material(&name, now).unwrap();
        let (first, second) = (material(), material());
        let mut clients = KubeClients::default();
        let mut connect = |material: &ClusterMaterial, now: WallTime| {
            clients.get(&name, "https://127.0.0.1:16443", material, now).unwrap();
            let known = &clients.clients[&name];
            (known.authority.clone(), known.renew)
        };
        let of_first = connect(&first, now);
        assert_eq!(connect(&first, now.plus(Duration::from_secs(60))), of_first, "it is kept");
        let of_second = connect(&second, now);
        assert_eq!(of_second.0, second.authorities[&Issuer::Kubernetes].certificate);
        assert_ne!(of_second.0, of_first.0);
        assert!(
            connect(&second, now.plus(CERTIFICATE_LIFE)).1 > of_second.1,
            "one that grows old is made anew"
        );
        let earlier = WallTime(now.0 - 3_600_000);
        assert!(connect(&second, earlier).1 < of_second.1, "and one that is not valid yet");
    }
}
