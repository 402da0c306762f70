//! What goes into the core and what comes out of it.

use std::net::SocketAddr;

use keelson_model::etcd::{EtcdAnswer, EtcdCall};
use keelson_model::kubernetes::{KubeAnswer, KubeCall, KubeFailure};
use keelson_model::{BlueprintMachine, FleetEvent};
use keelson_protocol::config::CertificateSpec;
use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{EnrolRequest, Refusal, ToAgent, ToCoordinator};
use keelson_protocol::{ClusterName, Incarnation, MachineId, SecretBytes};

use crate::row::Row;

/// A provider call under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A session of the link, as the transport numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// An enrolment that waits for its answer, as the shell numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnrolId(pub u64);

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// Time has passed. Given at least twice a second.
    Tick,
    /// A machine without a certificate asks for one.
    Enrol {
        /// Under which number the shell keeps the connection.
        id: EnrolId,
        /// What it asks.
        request: EnrolRequest,
        /// SHA-256 of the request's public key, in hex; `None` when the signing request is malformed.
        key_hash: Option<String>,
    },
    /// A session was opened by a machine with this certificate.
    Opened {
        /// The session.
        session: SessionId,
        /// Machine in the certificate.
        machine: MachineId,
        /// Incarnation in the certificate.
        incarnation: Incarnation,
        /// Its first message.
        hello: ToCoordinator,
    },
    /// A heartbeat came.
    Heartbeat {
        /// The session.
        session: SessionId,
        /// The heartbeat.
        heartbeat: Heartbeat,
    },
    /// A message came.
    Message {
        /// The session.
        session: SessionId,
        /// The message.
        message: ToCoordinator,
    },
    /// A machine wants another certificate for its link.
    RenewLink {
        /// The session.
        session: SessionId,
        /// What it asks to be certified.
        signing_request: Vec<u8>,
        /// SHA-256 of the request's public key, in hex; `None` when the signing request is malformed.
        key_hash: Option<String>,
    },
    /// A session ended.
    Closed {
        /// The session.
        session: SessionId,
        /// How.
        why: String,
    },
    /// A call to a cluster's etcd ended.
    Etcd {
        /// The call.
        id: CallId,
        /// How; the error in words.
        result: Result<EtcdAnswer, String>,
    },
    /// A call to a cluster's API server ended.
    Kube {
        /// The call.
        id: CallId,
        /// How.
        result: Result<KubeAnswer, KubeFailure>,
    },
    /// A provider call ended.
    Provider {
        /// The call.
        id: CallId,
        /// How.
        result: Result<ProviderAnswer, ProviderFailure>,
    },
}

/// Something to do. The shell does them in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write these rows in one transaction; it is on disk before the next effect begins.
    Persist(Vec<Row>),
    /// Ask the provider; the answer comes back as [`Input::Provider`].
    Provider {
        /// Number of the call.
        id: CallId,
        /// The call.
        call: ProviderCall,
    },
    /// Ask a cluster's etcd; the answer comes back as [`Input::Etcd`].
    Etcd {
        /// Number of the call.
        id: CallId,
        /// The machine beside whose member it is asked.
        session: SessionId,
        /// The cluster.
        cluster: ClusterName,
        /// The call.
        call: EtcdCall,
    },
    /// Ask a cluster's API server; the answer comes back as [`Input::Kube`].
    Kube {
        /// Number of the call.
        id: CallId,
        /// The cluster.
        cluster: ClusterName,
        /// The call.
        call: KubeCall,
    },
    /// Send to an agent.
    Send {
        /// The session.
        session: SessionId,
        /// The message.
        message: Box<ToAgent>,
    },
    /// End a session.
    Close {
        /// The session.
        session: SessionId,
        /// Why.
        why: String,
    },
    /// Sign a link certificate and answer an enrolment with it.
    AcceptEnrol {
        /// The enrolment.
        id: EnrolId,
        /// For whom.
        machine: MachineId,
        /// Which machine of that id.
        incarnation: Incarnation,
        /// The request (DER).
        signing_request: Vec<u8>,
    },
    /// Answer an enrolment with a refusal.
    RefuseEnrol {
        /// The enrolment.
        id: EnrolId,
        /// Why.
        refusal: Refusal,
    },
    /// Sign the next link certificate of a session's machine and send it.
    RenewLink {
        /// The session.
        session: SessionId,
        /// For whom.
        machine: MachineId,
        /// Which machine of that id.
        incarnation: Incarnation,
        /// The request (DER).
        signing_request: Vec<u8>,
    },
    /// Sign a certificate of a cluster and send it.
    SignLeaf {
        /// The session.
        session: SessionId,
        /// Whose authority signs.
        cluster: ClusterName,
        /// What the blueprint allows.
        spec: Box<CertificateSpec>,
        /// The request (DER).
        signing_request: Vec<u8>,
    },
    /// Tell whoever listens. The event is among the rows of an earlier `Persist`.
    Note(FleetEvent),
}

/// A call to the infrastructure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderCall {
    /// Make a machine, or find it, and switch it on.
    Create {
        /// The machine.
        machine: Box<BlueprintMachine>,
        /// Its cluster.
        cluster: ClusterName,
        /// Its enrolment token.
        token: SecretBytes,
    },
    /// Remove a machine.
    Delete {
        /// The machine.
        machine: MachineId,
        /// Its cluster.
        cluster: ClusterName,
        /// Which machine of that id.
        incarnation: Incarnation,
    },
    /// Take a machine's power away, and keep it away until [`Self::PowerOn`].
    Fence {
        /// The machine.
        machine: MachineId,
        /// Its cluster.
        cluster: ClusterName,
        /// Which machine of that id.
        incarnation: Incarnation,
    },
    /// Give a fenced machine its power again.
    PowerOn {
        /// The machine.
        machine: MachineId,
        /// Its cluster.
        cluster: ClusterName,
        /// Which machine of that id.
        incarnation: Incarnation,
    },
    /// Make a machine anew around its disk, and switch it on. It has no power.
    Rebuild {
        /// The machine.
        machine: Box<BlueprintMachine>,
        /// Its cluster.
        cluster: ClusterName,
        /// Its enrolment token.
        token: SecretBytes,
    },
    /// List all machines of this installation.
    List,
    /// Make a service reachable from outside.
    Expose {
        /// The cluster.
        cluster: ClusterName,
        /// Name of the service within it.
        name: String,
        /// Where it leads.
        targets: Vec<SocketAddr>,
        /// How the provider shall see that a target works.
        check: HealthCheck,
    },
    /// Remove all exposed services of a cluster.
    Unexpose {
        /// The cluster.
        cluster: ClusterName,
    },
}

/// How a provider shall see that a target of an exposed service works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// It takes a connection.
    Tcp,
    /// It answers an HTTPS request with a status of 2xx.
    Https {
        /// Path and query.
        path: String,
    },
}

/// A machine that the provider lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenMachine {
    /// Its id.
    pub machine: MachineId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// Whether it has power.
    pub on: bool,
}

/// What a provider call gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderAnswer {
    /// The machine is there and on.
    Created,
    /// The machine has no power for certain, and gets none by itself.
    Fenced,
    /// All machines.
    Machines(Vec<SeenMachine>),
    /// Reachable at this address.
    Exposed(SocketAddr),
    /// Done.
    Done,
}

/// Who must act on a provider's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Ask again later; it may also have taken effect.
    Retry,
    /// A person.
    Person,
}

/// Why a provider call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFailure {
    /// Who must act.
    pub remedy: Remedy,
    /// What the provider said.
    pub text: String,
}
