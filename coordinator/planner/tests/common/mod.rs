//! A place, a release and specs that all tests of the planner share.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeMap;

use keelson_model::material::Authority;
use keelson_model::{Blueprint, ClusterMaterial, ClusterSpec, Plan, Progress, Release};
use keelson_planner::{Addresses, Place, PlanError, PlanInput, Planned, Wanted, plan};
use keelson_protocol::config::Issuer;
use keelson_protocol::{Incarnation, SecretBytes};

/// Everything but the spec.
pub(crate) struct World {
    pub(crate) place: Place,
    pub(crate) plans: Vec<Plan>,
    pub(crate) release: Release,
    pub(crate) taken: Addresses,
}

impl World {
    pub(crate) fn new() -> Self {
        let release = serde_json::from_value(serde_json::json!({
            "name": "1.37.2",
            "components": { "kubernetes": "1.37.2" },
            "images": { "pause": "registry.example/pause:1", "coredns": "registry.example/coredns:1" },
            "archives": { "pause": "/opt/pause.tar", "coredns": "/opt/coredns.tar" },
            "upgradeFrom": [],
            "image": "1234",
        }));
        Self {
            place: Place {
                network: "10.210.0.0/16".parse().unwrap(),
                first_address: [10, 210, 1, 0].into(),
                zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
            },
            plans: Plan::built_in(),
            release: release.unwrap(),
            taken: Addresses::new(),
        }
    }

    pub(crate) fn plan(
        &self,
        spec: &ClusterSpec,
        wanted: Wanted,
        parent: Option<&Blueprint>,
    ) -> Result<Blueprint, PlanError> {
        self.plan_step(spec, wanted, parent, &Progress::default()).map(|planned| planned.blueprint)
    }

    /// One step from `parent`, with what was seen of it.
    pub(crate) fn plan_step(
        &self,
        spec: &ClusterSpec,
        wanted: Wanted,
        parent: Option<&Blueprint>,
        progress: &Progress,
    ) -> Result<Planned, PlanError> {
        let highest =
            parent.and_then(|parent| parent.machines.values().map(|m| m.incarnation.0).max()).unwrap_or(0);
        plan(&PlanInput {
            spec,
            wanted,
            plan: self.plans.iter().find(|plan| plan.name == spec.plan).unwrap(),
            release: &self.release,
            parent,
            progress,
            place: &self.place,
            taken: &self.taken,
            next_address: self.place.first_address,
            next_incarnation: Incarnation(highest + 1),
        })
    }
}

/// A spec from JSON fields beside name, plan and release.
pub(crate) fn spec(plan: &str, more: serde_json::Value) -> ClusterSpec {
    let mut spec = serde_json::json!({ "name": "demo", "plan": plan, "release": "1.37.2" });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

/// Keys that are no keys, so that rendered files can be read in a golden file.
#[allow(dead_code, reason = "not every test that shares this module renders configs")]
pub(crate) fn material() -> ClusterMaterial {
    let authority = |name: &str| Authority {
        certificate: format!("({name} certificate)\n"),
        key: SecretBytes::new(format!("({name} key)").into_bytes()),
    };
    let issuers = [Issuer::Kubernetes, Issuer::Etcd, Issuer::FrontProxy];
    ClusterMaterial {
        authorities: BTreeMap::from(issuers.map(|issuer| (issuer, authority(&format!("{issuer:?}"))))),
        signer: authority("signer"),
        service_account_key: SecretBytes::new(b"(service account key)".to_vec()),
        service_account_public_key: "(service account public key)\n".to_owned(),
        encryption_key: SecretBytes::new(b"(encryption key)".to_vec()),
    }
}
