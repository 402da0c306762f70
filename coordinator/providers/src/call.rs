//! The calls that a provider carries out, their answers and their errors: plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use keelson_protocol::{ClusterName, Incarnation, InstallId, MachineId, SecretBytes};
use serde::{Deserialize, Serialize};

/// Who an object at the infrastructure belongs to. Written as name and tags of the object before anything else
/// happens, so that an object without an owner can always be recognised and swept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The Keelson installation.
    pub install: InstallId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The machine, also the object's name.
    pub machine: MachineId,
    /// Which machine of that name.
    pub incarnation: Incarnation,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} incarnation {}", self.cluster, self.machine, self.incarnation)
    }
}

/// What a new machine is told through the infrastructure's metadata channel, as one JSON document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The machine's id.
    pub machine: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// Where the coordinator's link listens, in order of preference.
    pub coordinators: Vec<SocketAddr>,
    /// SHA-256 of the link CA certificate (DER), in lower-case hex: the agent trusts no other coordinator.
    pub ca_fingerprint: String,
    /// The single-use enrolment token, in hex.
    pub token: SecretText,
}

/// A secret text inside a JSON document; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl From<&SecretText> for SecretBytes {
    fn from(text: &SecretText) -> Self {
        Self::new(text.0.clone().into_bytes())
    }
}

/// A machine that shall exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRequest {
    /// Its key.
    pub key: ObjectKey,
    /// Digest of the node image (`sha256:…` or plain hex, as the image store names it).
    pub image: String,
    /// The fault domain to place it in.
    pub zone: String,
    /// Its address in the provider's network.
    pub address: Ipv4Addr,
    /// CPU limit in thousandths of a core; `None` is unlimited.
    pub cpu_millis_max: Option<u32>,
    /// Memory limit in bytes; `None` is unlimited.
    pub memory_bytes_max: Option<u64>,
    /// Size of its `/var` disk in bytes, where the provider can limit it.
    pub disk_bytes: u64,
    /// What it is told at boot.
    pub metadata: Metadata,
}

/// A TCP service of machines that must be reachable for users outside the provider's network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExposeRequest {
    /// The Keelson installation.
    pub install: InstallId,
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// Its name within the cluster, for example `api`.
    pub name: String,
    /// Where to send connections, tried in turn.
    pub targets: Vec<SocketAddr>,
    /// How to see that a target works. One that does not gets no connections while another one works, and loses those
    /// that it has.
    pub check: HealthCheck,
    /// The outside port that is wanted; `None` lets the provider choose a free one (and keep it).
    pub port: Option<u16>,
}

/// How a provider sees that a target of an exposed service works. Both kinds are what load balancers of clouds know, and
/// as little: no provider needs to know what the service is.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthCheck {
    /// It takes a connection. That tells a machine that lives from one that is off, not from one that is frozen: its
    /// kernel takes connections all the same.
    #[default]
    Tcp,
    /// It answers an HTTPS request at the target's own port with a status of 2xx. The certificate is not verified, as
    /// load balancers of clouds do not verify it either: the check gives nothing away, and clients verify for
    /// themselves whom they speak to.
    Https {
        /// Path and query, beginning with `/`.
        path: String,
    },
}

/// Longest path of a health check, in bytes: far more than any health endpoint has.
const CHECK_PATH_BYTES_MAX: usize = 256;

impl HealthCheck {
    /// Refuses what can never be asked.
    pub(crate) fn validate(&self) -> Result<(), ProviderError> {
        let Self::Https { path } = self else { return Ok(()) };
        let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        if plain && path.len() <= CHECK_PATH_BYTES_MAX {
            return Ok(());
        }
        let detail =
            format!("`{path}` is no path of at most {CHECK_PATH_BYTES_MAX} characters that begins with /");
        Err(ProviderError::Invalid { field: "check", detail })
    }
}

/// A service that is reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Exposed {
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// Its name within the cluster.
    pub name: String,
    /// Where users reach it.
    pub address: SocketAddr,
}

/// How to take power away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerOff {
    /// Ask the machine's init to shut down, then take power away after this long.
    Soft(Duration),
    /// Take power away at once.
    Hard,
}

/// One call to an infrastructure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Make a machine and switch it on. Finds and returns its own earlier object; switches it on when it is off.
    CreateMachine(Box<MachineRequest>),
    /// All machines of an installation, also half-made ones.
    ListMachines(InstallId),
    /// Switch a machine on.
    PowerOn(ObjectKey),
    /// Switch a machine off.
    PowerOff(ObjectKey, PowerOff),
    /// Off and on again.
    Reboot(ObjectKey),
    /// The last lines of a machine's console.
    Console(ObjectKey),
    /// Remove a machine and its disk. Removing what is not there is success.
    DeleteMachine(ObjectKey),
    /// Make sure that a machine is off and stays off until it is deleted or switched on again.
    Fence(ObjectKey),
    /// Make a machine anew around the disk that it has, as it is asked for now, and switch it on. The machine must be off;
    /// a fence ends with this.
    Rebuild(Box<MachineRequest>),
    /// Make a service reachable from outside, or change where it leads.
    Expose(ExposeRequest),
    /// All exposed services of an installation.
    ListExposed(InstallId),
    /// Remove every exposed service of a cluster. Removing what is not there is success.
    Unexpose(InstallId, ClusterName),
}

/// Whether a machine has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MachineState {
    /// Being made: tagged, not yet started.
    Creating,
    /// Running.
    On,
    /// Its processes are stopped and hold their memory.
    Frozen,
    /// Not running.
    Off,
}

/// A machine as the infrastructure sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    /// Its key, read back from its tags.
    pub key: ObjectKey,
    /// Whether it has power.
    pub state: MachineState,
    /// Its fault domain.
    pub zone: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Proof that a machine has no power. Only a provider can make one.
#[derive(Debug, PartialEq, Eq)]
pub struct Fenced {
    key: ObjectKey,
}

impl Fenced {
    /// Called by providers alone, after they have seen that the machine is off.
    pub(crate) fn proven(key: ObjectKey) -> Self {
        Self { key }
    }

    /// The machine that is off.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// What a call gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The machine as it is now.
    Machine(MachineView),
    /// All machines of the installation.
    Machines(Vec<MachineView>),
    /// The machine is off for certain.
    Fenced(Fenced),
    /// Console text, newest last, bounded.
    Console(String),
    /// The service is reachable.
    Exposed(Exposed),
    /// All exposed services.
    AllExposed(Vec<Exposed>),
    /// Done, nothing to tell.
    Done,
}

/// What an infrastructure can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the infrastructure, for people only.
    pub name: &'static str,
    /// Its fault domains.
    pub zones: Vec<String>,
    /// The network that machines' addresses are taken from.
    pub network: (Ipv4Addr, u8),
    /// First address that machines may have.
    pub first_address: Ipv4Addr,
    /// The coordinator's address in that network.
    pub coordinator_address: Ipv4Addr,
    /// Whether it can expose services to users outside.
    pub expose: bool,
    /// Whether a machine keeps its disk and address over power-off.
    pub keeps_disk: bool,
    /// Most machines that fit, as far as it is known.
    pub machines_max: Option<u32>,
}

/// Why a call was not carried out. Each variant says who must act: retry, another place, or a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// A limit of the account or the host; a person must raise it or free something.
    #[error("the quota of {what} is used up: {detail}")]
    Quota {
        /// Which resource.
        what: String,
        /// What was asked for and what there is.
        detail: String,
    },
    /// The place has no room now; another zone may.
    #[error("zone {zone} has no room: {detail}")]
    StockOut {
        /// The zone without room.
        zone: String,
        /// What the infrastructure said.
        detail: String,
    },
    /// Too many calls; try again after this long.
    #[error("the infrastructure asks to slow down")]
    Throttled {
        /// When to try again.
        retry_after: Duration,
    },
    /// The credentials were not accepted; a person must mend them.
    #[error("the credentials were not accepted: {detail}")]
    Auth {
        /// What the infrastructure said.
        detail: String,
    },
    /// The credentials do not allow this call; a person must allow it.
    #[error("not allowed: {detail}")]
    Denied {
        /// What the infrastructure said.
        detail: String,
    },
    /// The object is not there.
    #[error("{what} does not exist")]
    NotFound {
        /// Which object.
        what: String,
    },
    /// An object of that name is there and is not ours.
    #[error("{what} exists already and belongs to {holder}")]
    Conflict {
        /// Which object.
        what: String,
        /// Who holds it.
        holder: String,
    },
    /// The request can never succeed as it is.
    #[error("field {field} is not valid: {detail}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// Why.
        detail: String,
    },
    /// The infrastructure is not usable now; try again later.
    #[error("the infrastructure is not usable now: {detail}")]
    Unavailable {
        /// What was tried and what came of it.
        detail: String,
    },
    /// The call may or may not have taken effect; only a list by key settles it.
    #[error("it is unknown whether the call took effect: {detail}")]
    Unknown {
        /// What was tried and what came of it.
        detail: String,
    },
}

/// What to do about a [`ProviderError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Try the same call again later.
    Retry,
    /// Try another zone.
    OtherZone,
    /// List by key first, then decide.
    LookUp,
    /// A person must act.
    Person,
}

impl ProviderError {
    /// Who must act.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Throttled { .. } | Self::Unavailable { .. } => Remedy::Retry,
            Self::StockOut { .. } => Remedy::OtherZone,
            Self::Unknown { .. } => Remedy::LookUp,
            Self::Quota { .. }
            | Self::Auth { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::Invalid { .. } => Remedy::Person,
        }
    }
}

/// Where a node image's layers lie, lowest first. The coordinator resolves a digest through the image store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayers {
    /// Digest of the image.
    pub digest: String,
    /// Directories of its layers, lowest first.
    pub layers: Vec<PathBuf>,
}

/// Resolves an image digest to its layers.
pub type ImageResolver = std::sync::Arc<dyn Fn(&str) -> Result<ImageLayers, ProviderError> + Send + Sync>;

/// Tags of an object, as the infrastructure stores them.
pub type Tags = BTreeMap<String, String>;
