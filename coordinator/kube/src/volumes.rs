//! Volumes that are attached to a node.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use keelson_model::kubernetes::KubeFailure;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};

use crate::{failure, list};

/// The attachments of a node, by name, without those for pods that stay on it. An attachment that is there counts,
/// whatever its status says: it may just be under way.
pub(crate) async fn attachments(
    client: &Client,
    node: &str,
    stay: &[Pod],
) -> Result<Vec<String>, KubeFailure> {
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    // Attachments cannot be selected by node.
    let all = list::all(&api, ListParams::default()).await?;
    let mut mine: Vec<VolumeAttachment> = all.into_iter().filter(|one| one.spec.node_name == node).collect();
    if mine.is_empty() {
        return Ok(Vec::new());
    }
    let kept = kept(client, stay).await?;
    mine.retain(|one| {
        one.spec.source.persistent_volume_name.as_ref().is_none_or(|name| !kept.contains(name))
    });
    Ok(mine.into_iter().filter_map(|one| one.metadata.name).collect())
}

/// Removes an attachment. That it is not there is success.
pub(crate) async fn detach(client: &Client, name: &str) -> Result<(), KubeFailure> {
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(failure::of(&error)),
    }
}

/// Names of the volumes that pods use.
async fn kept(client: &Client, pods: &[Pod]) -> Result<BTreeSet<String>, KubeFailure> {
    let mut volumes = BTreeSet::new();
    for (namespace, claim) in pods.iter().flat_map(claims) {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let claim = api.get_opt(&claim).await.map_err(|error| failure::of(&error))?;
        volumes.extend(claim.and_then(|claim| claim.spec?.volume_name));
    }
    Ok(volumes)
}

/// Namespace and name of each claim of a pod. The claim of an ephemeral volume is named after pod and volume
/// (Kubernetes documentation, "Ephemeral Volumes").
fn claims(pod: &Pod) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let claims = volumes.iter().filter_map(|volume| match &volume.persistent_volume_claim {
        Some(claim) => Some(claim.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)),
    });
    claims.map(|claim| (namespace.clone(), claim)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_found_by_name() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": "log-x" },
            "spec": { "containers": [], "volumes": [
                { "name": "a", "persistentVolumeClaim": { "claimName": "disk" } },
                { "name": "b", "ephemeral": {} },
                { "name": "c", "emptyDir": {} },
            ]},
        }))
        .unwrap();
        let claim = |name: &str| ("shop".to_owned(), name.to_owned());
        assert_eq!(claims(&pod), [claim("disk"), claim("log-x-b")]);
    }
}
