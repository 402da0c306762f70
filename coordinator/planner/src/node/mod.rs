//! What one machine is told: its files, certificates, units and routes, rendered from the blueprint.
//!
//! Typed values become documents through serde (JSON, which every reader of YAML here accepts, and TOML); nothing is
//! pasted together from text. Flags follow the reference pages of the Kubernetes and etcd programs.

mod addons;
mod etcd;
mod etcdctl;
mod kube;
mod master;
mod paths;
mod peers;
mod remedies;
mod worker;

use keelson_model::{Blueprint, BlueprintMachine, ClusterMaterial, Release, Role};
use keelson_protocol::config::{
    BalancerSpec, CertificateSpec, FileContent, FileSpec, Issuer, NodeConfig, RouteSpec, UnitSpec, Usage,
};
use keelson_protocol::health::{CgroupVersion, Facts};
use keelson_protocol::{MachineId, SecretBytes};

pub use addons::ADMIN_GROUP;
pub use etcd::{member_name, member_url};
pub use etcdctl::{etcd_answer, etcd_commands};
pub use kube::admin_kubeconfig;
pub use paths::{API_PORT, API_READY_PATH, PEER_PORT};
pub use peers::{nearest, peer_target};

/// Life of a certificate inside a cluster, in seconds: 30 days, renewed after 20, so that a machine may be away from
/// its coordinator for ten days before anything expires.
pub const CLUSTER_LEAF_LIFE_S: u32 = 30 * 24 * 3600;

/// What a machine's kernel allows and shows, from its facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTraits {
    /// Control groups.
    pub cgroup: CgroupVersion,
    /// Whether processes there may lower their OOM score.
    pub may_raise_limits: bool,
    /// CPUs that programs there see; of a machine that is a container these are the host's.
    pub cpus: u32,
    /// Memory that they see, in bytes.
    pub memory_bytes: u64,
}

impl From<&Facts> for HostTraits {
    fn from(facts: &Facts) -> Self {
        Self {
            cgroup: facts.cgroup,
            may_raise_limits: facts.may_raise_limits,
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
        }
    }
}

/// Everything that a machine's config is rendered from.
#[derive(Debug, Clone, Copy)]
pub struct NodeInput<'a> {
    /// The cluster's blueprint.
    pub blueprint: &'a Blueprint,
    /// The release that it names.
    pub release: &'a Release,
    /// The cluster's keys.
    pub material: &'a ClusterMaterial,
    /// Key of the cluster's peer probes.
    pub peer_key: &'a SecretBytes,
    /// What the machine's kernel allows and shows.
    pub traits: HostTraits,
}

/// The whole config of machine `id`; `None` when the blueprint does not name it.
#[must_use]
pub fn node_config(input: &NodeInput, id: &MachineId) -> Option<NodeConfig> {
    let blueprint = input.blueprint;
    let machine = blueprint.machines.get(id)?;
    let mut config = NodeConfig {
        generation: blueprint.generation,
        machine: id.clone(),
        incarnation: machine.incarnation,
        cluster: blueprint.cluster.clone(),
        release: blueprint.release.clone(),
        files: Vec::new(),
        certificates: Vec::new(),
        units: Vec::new(),
        routes: Vec::new(),
        balancer: None,
        peers: Some(peers::spec(input, machine)),
        remedies: Vec::new(),
        lease: None,
    };
    let mut node = Node { input, machine, config: &mut config };
    node.authorities();
    if machine.roles.contains(&Role::Etcd) {
        etcd::add(&mut node);
    }
    if machine.roles.contains(&Role::Master) {
        master::add(&mut node);
        addons::add(&mut node);
    }
    if machine.pods.is_some() {
        node.balancer();
        node.routes();
        worker::add(&mut node);
    }
    // Last, because they name units.
    remedies::add(&mut node);
    Some(config)
}

/// The config under construction and what it is made from.
struct Node<'a> {
    input: &'a NodeInput<'a>,
    machine: &'a BlueprintMachine,
    config: &'a mut NodeConfig,
}

impl Node<'_> {
    fn program(&self, name: &str) -> String {
        format!("{}/bin/{name}", paths::release(&self.input.blueprint.release))
    }

    fn text_file(&mut self, path: impl Into<String>, content: impl Into<String>) {
        let content = FileContent::Text(content.into());
        self.config.files.push(FileSpec { path: path.into(), mode: 0o644, content });
    }

    fn json_file(&mut self, path: impl Into<String>, document: &serde_json::Value) {
        let text = serde_json::to_string_pretty(document).expect("a JSON value always serializes");
        self.text_file(path, text + "\n");
    }

    fn secret_file(&mut self, path: impl Into<String>, content: SecretBytes) {
        let content = FileContent::Secret(content);
        self.config.files.push(FileSpec { path: path.into(), mode: 0o600, content });
    }

    fn unit(&mut self, unit: UnitSpec) {
        self.config.units.push(unit);
    }

    /// A certificate of this machine, named like its file.
    fn certificate(&mut self, name: &str, issuer: Issuer, usage: Usage, subject: Subject) {
        self.config.certificates.push(CertificateSpec {
            name: name.to_owned(),
            certificate_path: paths::certificate(name),
            key_path: paths::key(name),
            issuer,
            common_name: subject.common_name,
            organizations: subject.organizations,
            dns_names: subject.dns_names,
            addresses: subject.addresses,
            usage,
            lifetime_s: CLUSTER_LEAF_LIFE_S,
        });
    }

    /// Certificates of the authorities that this machine has to trust.
    fn authorities(&mut self) {
        let material = self.input.material;
        let certificate = |issuer: Issuer| {
            material
                .authorities
                .get(&issuer)
                .map(|authority| authority.certificate.clone())
                .unwrap_or_default()
        };
        let roles = &self.machine.roles;
        if roles.contains(&Role::Etcd) || roles.contains(&Role::Master) {
            self.text_file(paths::ETCD_CA, certificate(Issuer::Etcd));
        }
        if self.machine.pods.is_some() {
            self.text_file(paths::KUBERNETES_CA, certificate(Issuer::Kubernetes));
            let clients = format!("{}{}", certificate(Issuer::Kubernetes), material.signer.certificate);
            self.text_file(paths::CLIENT_CA, clients);
        }
        if roles.contains(&Role::Master) {
            self.text_file(paths::FRONT_PROXY_CA, certificate(Issuer::FrontProxy));
        }
    }

    fn balancer(&mut self) {
        // Those that leave serve until they are gone: the ones that stay may be few, new, or broken.
        let masters = self.input.blueprint.with_role(Role::Master);
        let backends = masters.map(|master| (master.address, API_PORT).into()).collect();
        let check = Some(kube::api_check());
        self.config.balancer = Some(BalancerSpec { listen: paths::BALANCER, backends, check });
    }

    fn routes(&mut self) {
        let others = self.input.blueprint.machines.values().filter(|other| other.id != self.machine.id);
        self.config.routes = others
            .filter_map(|other| Some(RouteSpec { destination: other.pods?, via: other.address }))
            .collect();
    }
}

/// Whom a certificate names.
#[derive(Debug, Default)]
struct Subject {
    common_name: String,
    organizations: Vec<String>,
    dns_names: Vec<String>,
    addresses: Vec<std::net::IpAddr>,
}

impl Subject {
    fn named(common_name: impl Into<String>) -> Self {
        Self { common_name: common_name.into(), ..Self::default() }
    }

    fn group(mut self, organization: &str) -> Self {
        self.organizations.push(organization.to_owned());
        self
    }

    fn dns(mut self, names: &[&str]) -> Self {
        self.dns_names.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    fn address(mut self, address: std::net::Ipv4Addr) -> Self {
        self.addresses.push(address.into());
        self
    }
}
