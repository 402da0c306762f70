//! Carries out the core's provider calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keelson_coordinator_core::{ProviderAnswer, ProviderCall, ProviderFailure, Remedy, SeenMachine};
use keelson_model::BlueprintMachine;
use keelson_protocol::{ClusterName, InstallId, SecretBytes};
use keelson_providers::call::{Metadata, SecretText};
use keelson_providers::{
    Answer, Call, ExposeRequest, HealthCheck, MachineRequest, MachineState, ObjectKey, Provider,
    ProviderError,
};

/// How long a provider call may take. Clouds need a minute to make a machine; the local provider needs a second.
const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// The provider, and what every call of it needs.
#[derive(Clone)]
pub(crate) struct Infrastructure {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) install: InstallId,
    /// Where agents reach the link.
    pub(crate) coordinators: Vec<SocketAddr>,
    /// By which agents know the coordinator.
    pub(crate) ca_fingerprint: String,
}

impl Infrastructure {
    /// Carries out one call.
    pub(crate) async fn perform(&self, call: ProviderCall) -> Result<ProviderAnswer, ProviderFailure> {
        let call = self.translate(call);
        match self.provider.perform(&call, CALL_DEADLINE).await {
            Ok(answer) => Ok(translate_answer(answer)),
            // What is not there has no power.
            Err(ProviderError::NotFound { .. }) if matches!(call, Call::Fence(_)) => {
                Ok(ProviderAnswer::Fenced)
            }
            Err(error) => Err(translate_error(&error)),
        }
    }

    fn translate(&self, call: ProviderCall) -> Call {
        let install = self.install.clone();
        match call {
            ProviderCall::Create { machine, cluster, token } => {
                Call::CreateMachine(Box::new(self.request(*machine, cluster, &token)))
            }
            ProviderCall::Rebuild { machine, cluster, token } => {
                Call::Rebuild(Box::new(self.request(*machine, cluster, &token)))
            }
            ProviderCall::Delete { machine, cluster, incarnation } => {
                Call::DeleteMachine(ObjectKey { install, cluster, machine, incarnation })
            }
            ProviderCall::Fence { machine, cluster, incarnation } => {
                Call::Fence(ObjectKey { install, cluster, machine, incarnation })
            }
            ProviderCall::PowerOn { machine, cluster, incarnation } => {
                Call::PowerOn(ObjectKey { install, cluster, machine, incarnation })
            }
            ProviderCall::List => Call::ListMachines(install),
            ProviderCall::Expose { cluster, name, targets, check } => {
                let check = translate_check(check);
                Call::Expose(ExposeRequest { install, cluster, name, targets, check, port: None })
            }
            ProviderCall::Unexpose { cluster } => Call::Unexpose(install, cluster),
        }
    }

    /// All that the infrastructure has to know of a machine.
    fn request(
        &self,
        machine: BlueprintMachine,
        cluster: ClusterName,
        token: &SecretBytes,
    ) -> MachineRequest {
        let key = ObjectKey {
            install: self.install.clone(),
            cluster,
            machine: machine.id.clone(),
            incarnation: machine.incarnation,
        };
        MachineRequest {
            image: machine.image,
            zone: machine.zone,
            address: machine.address,
            cpu_millis_max: machine.size.cpu_millis,
            memory_bytes_max: machine.size.memory_bytes,
            disk_bytes: machine.size.disk_bytes,
            metadata: Metadata {
                machine: machine.id,
                incarnation: machine.incarnation,
                coordinators: self.coordinators.clone(),
                ca_fingerprint: self.ca_fingerprint.clone(),
                token: SecretText(String::from_utf8_lossy(token.expose_secret()).into_owned()),
            },
            key,
        }
    }
}

fn translate_check(check: keelson_coordinator_core::HealthCheck) -> HealthCheck {
    match check {
        keelson_coordinator_core::HealthCheck::Tcp => HealthCheck::Tcp,
        keelson_coordinator_core::HealthCheck::Https { path } => HealthCheck::Https { path },
    }
}

fn translate_answer(answer: Answer) -> ProviderAnswer {
    match answer {
        Answer::Machine(_) => ProviderAnswer::Created,
        Answer::Machines(machines) => ProviderAnswer::Machines(
            machines
                .into_iter()
                .map(|view| SeenMachine {
                    machine: view.key.machine,
                    cluster: view.key.cluster,
                    incarnation: view.key.incarnation,
                    // A frozen machine has power: what it does is for the link to find out.
                    on: !matches!(view.state, MachineState::Off),
                })
                .collect(),
        ),
        Answer::Exposed(exposed) => ProviderAnswer::Exposed(exposed.address),
        Answer::Fenced(_) => ProviderAnswer::Fenced,
        Answer::Done | Answer::Console(_) | Answer::AllExposed(_) => ProviderAnswer::Done,
    }
}

fn translate_error(error: &ProviderError) -> ProviderFailure {
    let remedy = match error.remedy() {
        keelson_providers::call::Remedy::Person => Remedy::Person,
        // A create finds its own object by key, so asking again is also how an unknown outcome is settled.
        keelson_providers::call::Remedy::Retry
        | keelson_providers::call::Remedy::OtherZone
        | keelson_providers::call::Remedy::LookUp => Remedy::Retry,
    };
    ProviderFailure { remedy, text: error.to_string() }
}
