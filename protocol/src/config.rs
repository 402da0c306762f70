//! The whole desired state of one machine.
//!
//! A `NodeConfig` is complete and immutable: applying it twice changes nothing, a lost or doubled one is harmless, an
//! older one is refused. It speaks of files, certificates, units, routes and probes, never of Kubernetes, so that an
//! agent can run a release that did not exist when the agent was built.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterName, Generation, Incarnation, MachineId, ReleaseName};
use crate::limits;
use crate::peer::{PeerKey, PeerTarget};
use crate::remedy::{self, LeaseSpec, RemedySpec};
use crate::secret::SecretBytes;

/// Everything that a machine shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Generation of the blueprint that this was made from. Older ones are refused.
    pub generation: Generation,
    /// The machine that this is for; any other refuses it.
    pub machine: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The release whose programs its units run.
    pub release: ReleaseName,
    /// Files to write.
    pub files: Vec<FileSpec>,
    /// Certificates to hold and to renew.
    pub certificates: Vec<CertificateSpec>,
    /// Units to run. Their order is given by their needs alone.
    pub units: Vec<UnitSpec>,
    /// Routes to the pod networks of other machines.
    pub routes: Vec<RouteSpec>,
    /// The balancer in front of the API servers, where the machine needs one.
    pub balancer: Option<BalancerSpec>,
    /// How its agent asks its peers whether they live, and answers them.
    pub peers: Option<PeerSpec>,
    /// Repairs that its agent makes by itself, in the order of escalation.
    pub remedies: Vec<RemedySpec>,
    /// When it gives up its work because it is cut off; `None` for a machine that never does.
    pub lease: Option<LeaseSpec>,
}

impl NodeConfig {
    /// Checks counts, sizes and references.
    ///
    /// # Errors
    /// A sentence that names the first rule that is broken.
    pub fn check(&self) -> Result<(), String> {
        at_most("files", self.files.len(), limits::FILES_MAX)?;
        at_most("certificates", self.certificates.len(), limits::CERTIFICATES_MAX)?;
        at_most("units", self.units.len(), limits::UNITS_MAX)?;
        at_most("routes", self.routes.len(), limits::ROUTES_MAX)?;
        for file in &self.files {
            at_most(&file.path, file.content.bytes().len(), limits::FILE_BYTES_MAX)?;
            check_path(&file.path)?;
        }
        for certificate in &self.certificates {
            check_path(&certificate.certificate_path)?;
            check_path(&certificate.key_path)?;
        }
        for unit in &self.units {
            unit.check(self)?;
        }
        remedy::check(self)?;
        self.peers.as_ref().map_or(Ok(()), |peers| peers.check(&self.machine))
    }

    /// The unit of that name.
    #[must_use]
    pub fn unit(&self, name: &str) -> Option<&UnitSpec> {
        self.units.iter().find(|unit| unit.name == name)
    }
}

/// Folders below which a config may write: state and run-time folders of a machine, never its image.
pub const WRITABLE_ROOTS: [&str; 2] = ["/var/lib/", "/run/"];

pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let clean = !path.split('/').any(|part| part == ".." || part == ".") && !path.contains("//");
    if clean && WRITABLE_ROOTS.iter().any(|root| path.starts_with(root)) && !path.ends_with('/') {
        return Ok(());
    }
    Err(format!("path `{path}` is not a plain path below {}", WRITABLE_ROOTS.join(" or ")))
}

pub(crate) fn at_most(what: &str, count: usize, count_max: usize) -> Result<(), String> {
    if count > count_max {
        return Err(format!("{what}: {count}, at most {count_max} are allowed"));
    }
    Ok(())
}

/// A file that the agent owns: written atomically, checked for drift, written again when it differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute path below one of [`WRITABLE_ROOTS`].
    pub path: String,
    /// Permission bits, for example `0o600`. The owner is root.
    pub mode: u32,
    /// The content.
    pub content: FileContent,
}

/// Content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileContent {
    /// Text that anybody may see in a plan or a diff.
    Text(String),
    /// Bytes that must never be shown.
    Secret(SecretBytes),
}

impl FileContent {
    /// The bytes to write.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Secret(secret) => secret.expose_secret(),
        }
    }
}

/// Which authority signs a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Issuer {
    /// The cluster's Kubernetes CA.
    Kubernetes,
    /// The cluster's etcd CA.
    Etcd,
    /// The cluster's front-proxy CA, which the aggregation layer trusts.
    FrontProxy,
}

/// What a certificate may be used for (RFC 5280, section 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Usage {
    /// serverAuth.
    Server,
    /// clientAuth.
    Client,
    /// Both.
    Both,
}

/// A certificate that the machine holds. The key is made on the machine and never leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateSpec {
    /// Name within the config, for requests and messages.
    pub name: String,
    /// Where the chain is written (PEM).
    pub certificate_path: String,
    /// Where the key is written (PEM, PKCS#8, 0600).
    pub key_path: String,
    /// Who signs it.
    pub issuer: Issuer,
    /// Subject common name.
    pub common_name: String,
    /// Subject organizations: Kubernetes groups.
    pub organizations: Vec<String>,
    /// DNS subject alternative names.
    pub dns_names: Vec<String>,
    /// IP subject alternative names.
    pub addresses: Vec<IpAddr>,
    /// What it may be used for.
    pub usage: Usage,
    /// Life in seconds. Renewed in place after two thirds of it.
    pub lifetime_s: u32,
}

/// How systemd knows that a unit has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitKind {
    /// Started when its program was executed.
    Exec,
    /// Started when its program says so (`sd_notify`).
    Notify,
    /// Done when its program has ended with success; it is run again only when its inputs change.
    Oneshot,
    /// Nothing runs: its probe is asked, and nothing is repaired when the answer is bad. Told like a unit, so that a
    /// machine is not called ready as long as something that nobody starts here is not as it should be.
    Check,
}

/// How much of the machine a unit's program may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hardening {
    /// It manages the machine (kubelet, containerd, kube-proxy) and sees all of it.
    Host,
    /// It is a server: no new privileges, a read-only file system but for its own folders, private `/tmp`.
    Server,
}

/// A program that the machine runs as a systemd unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSpec {
    /// systemd unit name, with suffix, for example `kubelet.service`; of a [`UnitKind::Check`] any plain name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// How systemd knows that it has started.
    pub kind: UnitKind,
    /// Program (absolute path) and arguments. Never a shell line. Empty for a [`UnitKind::Check`].
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// What it may touch.
    pub hardening: Hardening,
    /// Folders that it writes; made before it starts. With [`Hardening::Server`] it can write nowhere else.
    pub state_directories: Vec<String>,
    /// Whether it manages control groups below its own.
    pub delegate: bool,
    /// Whether its children live on when it is stopped (containers of containerd).
    pub children_survive: bool,
    /// Open files allowed; `None` leaves the default.
    pub open_files_max: Option<u32>,
    /// How long it may take to stop before it is killed, in seconds.
    pub stop_timeout_s: u32,
    /// How long it may be silent before systemd ends it, in seconds, for a program that tells systemd that it works by
    /// `WATCHDOG=1` (sd_notify(3)); `None` for others.
    pub watchdog_s: Option<u32>,
    /// What must hold before it is started.
    pub needs: Vec<Need>,
    /// How the agent sees that it works. Without one, running is enough.
    pub health: Option<ProbeSpec>,
    /// How the agent sees that it lives, when that is another question: a server that answers here and is not healthy
    /// waits for others, and is not restarted for it. Without one, what is not healthy for long is restarted.
    pub alive: Option<ProbeSpec>,
    /// Paths of files and names of certificates whose *specification* is an input: when one changes, the unit is
    /// restarted. A renewed certificate is no change: programs read those again by themselves.
    pub restart_on: Vec<String>,
}

impl UnitSpec {
    fn check(&self, config: &NodeConfig) -> Result<(), String> {
        if !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b)) {
            return Err(format!("unit name `{}` is not a plain name", self.name));
        }
        match self.kind {
            UnitKind::Check if self.command.is_empty() && self.health.is_some() => {}
            UnitKind::Check => return Err(format!("check {} must have a probe and no program", self.name)),
            UnitKind::Exec | UnitKind::Notify | UnitKind::Oneshot => self.check_program()?,
        }
        for need in &self.needs {
            if let Need::Unit(other) = need
                && config.unit(other).is_none()
            {
                return Err(format!("unit {} needs {other}, which the config does not have", self.name));
            }
        }
        for input in &self.restart_on {
            let known = config.files.iter().any(|file| file.path == *input)
                || config.certificates.iter().any(|certificate| certificate.name == *input);
            if !known {
                return Err(format!(
                    "unit {} restarts on {input}, which the config does not have",
                    self.name
                ));
            }
        }
        for directory in &self.state_directories {
            check_path(directory)?;
        }
        Ok(())
    }

    fn check_program(&self) -> Result<(), String> {
        if !self.name.ends_with(".service") {
            return Err(format!("unit name `{}` does not end with .service", self.name));
        }
        if !self.command.first().is_some_and(|program| program.starts_with('/')) {
            return Err(format!("unit {}: the program must be an absolute path", self.name));
        }
        Ok(())
    }
}

/// What a unit waits for before it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Need {
    /// Another unit of this machine is healthy.
    Unit(String),
    /// Something answers, here or on another machine.
    Probe(ProbeSpec),
    /// At least one of these answers: members of a group of which any will do.
    AnyProbe(Vec<ProbeSpec>),
}

/// A question that is answered by asking, not by believing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// What is asked, in words: `etcd at 10.0.0.2:2379`.
    pub name: String,
    /// Whom to ask.
    pub target: ProbeTarget,
    /// Which answer is good.
    pub expect: Expect,
    /// How long to wait for the answer, in milliseconds.
    pub timeout_ms: u32,
}

/// Whom a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeTarget {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket on which a server of HTTP/2, such as one of gRPC, answers.
    Unix(String),
    /// An HTTP endpoint.
    Http {
        /// Where it listens.
        address: SocketAddr,
        /// Path and query.
        path: String,
    },
    /// An HTTPS endpoint.
    Https {
        /// Where it listens.
        address: SocketAddr,
        /// Path and query.
        path: String,
        /// Name that its certificate must carry.
        server_name: String,
        /// CA bundle that must have signed it (PEM file).
        ca_path: String,
        /// Client certificate and key to show (PEM files).
        client: Option<ClientFiles>,
    },
}

/// Files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClientFiles {
    /// The chain (PEM).
    pub certificate_path: String,
    /// The key (PEM).
    pub key_path: String,
}

/// Which answer of a probe is good.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Expect {
    /// The connection stands, or the status is 2xx.
    Answer,
    /// The body is a Kubernetes `Node` object whose `Ready` condition is `True`.
    NodeReady,
}

/// A route of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteSpec {
    /// Where to.
    pub destination: Ipv4Net,
    /// Through whom.
    pub via: Ipv4Addr,
}

/// A TCP balancer inside the agent, so that kubelet and kube-proxy outlive any one master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerSpec {
    /// Where it listens on this machine (loopback).
    pub listen: SocketAddr,
    /// The API servers.
    pub backends: Vec<SocketAddr>,
    /// How it sees that one works. Without it only a server that takes no connection is passed over.
    pub check: Option<BalancerCheck>,
}

/// The health check of each backend of a balancer: an HTTPS endpoint beside what the backend serves, with the same
/// address. How often it is asked is for the agent to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerCheck {
    /// Path and query; a status of 2xx is good.
    pub path: String,
    /// Name that the backend's certificate must carry.
    pub server_name: String,
    /// CA bundle that must have signed it (PEM file).
    pub ca_path: String,
}

/// How an agent asks its peers whether they live, and answers them ([`crate::peer`]). All machines of a cluster have the
/// same key and the same port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// Where it answers (UDP): an address of the machine, because a pong counts only when it comes from where its ping
    /// went. Peers are asked at the same port.
    pub listen: SocketAddrV4,
    /// The cluster's key, of [`limits::PEER_KEY_BYTES`].
    pub key: SecretBytes,
    /// Whom the agent asks when it has lost the coordinator, to know whether it is cut off; at most
    /// [`limits::NEIGHBOURS_MAX`].
    pub neighbours: Vec<PeerTarget>,
}

impl PeerSpec {
    fn check(&self, me: &MachineId) -> Result<(), String> {
        at_most("neighbours", self.neighbours.len(), limits::NEIGHBOURS_MAX)?;
        PeerKey::new(&self.key).map_err(|error| error.to_string())?;
        if self.listen.port() == 0 {
            return Err("peers cannot ask at port 0".to_owned());
        }
        if self.neighbours.iter().any(|neighbour| neighbour.machine == *me) {
            return Err(format!("{me} is its own neighbour"));
        }
        Ok(())
    }
}
