//! The infrastructure: the fake provider of the provider crate, asked as the coordinator's shell asks, with the answers of
//! a bad day.

use std::collections::{BTreeMap, VecDeque};

use keelson_coordinator_core::{ProviderAnswer, ProviderCall, ProviderFailure, Remedy, SeenMachine};
use keelson_model::BlueprintMachine;
use keelson_protocol::{ClusterName, InstallId, MachineId, SecretBytes};
use keelson_providers::call::{Metadata, SecretText};
use keelson_providers::fake::{CallKind, FakeConfig, FakeProvider, Outcome};
use keelson_providers::{Answer, Call, MachineRequest, MachineState, ObjectKey, ProviderError};

use crate::case::Weather;
use crate::rng::Stream;

/// A list shows nothing that is older than this, in milliseconds.
const LIST_LAG_MS: u64 = 5_000;
/// Longest time after which a call whose answer got lost is given up, in milliseconds: by then its machine may have booted.
const LOST_AFTER_MS: u64 = 60_000;

/// The provider, and how it fails.
#[derive(Debug)]
pub(crate) struct Infrastructure {
    pub(crate) provider: FakeProvider,
    install: InstallId,
    random: Stream,
    /// Until when it answers nothing.
    pub(crate) out_until: u64,
    /// Until when its lists are empty.
    pub(crate) lists_nothing_until: u64,
    /// Until when it has no room for another machine, by zone.
    pub(crate) full_until: BTreeMap<String, u64>,
    /// By how many lists its list lags, and when those were made that may still be shown.
    list_lag: usize,
    listed: VecDeque<u64>,
    /// How long the answer to the last call takes to come, in milliseconds.
    answer_ms: u64,
}

impl Infrastructure {
    pub(crate) fn new(install: InstallId, list_lag: usize, random: Stream) -> Self {
        let provider = FakeProvider::new(FakeConfig { list_lag, ..FakeConfig::default() });
        let full_until = BTreeMap::new();
        Self {
            provider,
            install,
            random,
            out_until: 0,
            lists_nothing_until: 0,
            full_until,
            list_lag,
            listed: VecDeque::new(),
            answer_ms: 0,
        }
    }

    /// How long the answer to the call that was carried out last takes, in milliseconds. One that got lost is known to be
    /// when the patience of who waits for it is over.
    pub(crate) fn answer_ms(&self) -> u64 {
        self.answer_ms
    }

    /// How long a call takes, in milliseconds.
    pub(crate) fn delay(&mut self, call: &ProviderCall) -> u64 {
        match call {
            ProviderCall::Create { .. } | ProviderCall::Rebuild { .. } => self.random.between(800, 3_000),
            ProviderCall::Fence { .. } | ProviderCall::PowerOn { .. } => self.random.between(100, 800),
            ProviderCall::Delete { .. } => self.random.between(300, 1_500),
            ProviderCall::List | ProviderCall::Expose { .. } | ProviderCall::Unexpose { .. } => {
                self.random.between(20, 200)
            }
        }
    }

    /// Carries out a call.
    pub(crate) fn call(
        &mut self,
        call: ProviderCall,
        weather: &Weather,
        now: u64,
    ) -> Result<ProviderAnswer, ProviderFailure> {
        let call = translate(&self.install, call);
        let outcome = self.outcome(&call, weather, now);
        let fails = matches!(outcome, Some(Outcome::Fail(_)));
        if matches!(call, Call::ListMachines(_)) && !fails {
            self.age_lists(&call, now);
        }
        if let Some(outcome) = outcome {
            self.provider.inject(CallKind::of(&call), outcome);
        }
        match self.provider.carry_out(&call) {
            Ok(Answer::Machines(_)) if now < self.lists_nothing_until => {
                Ok(ProviderAnswer::Machines(Vec::new()))
            }
            Ok(answer) => Ok(translate_answer(answer)),
            // What is not there has no power.
            Err(ProviderError::NotFound { .. }) if matches!(call, Call::Fence(_)) => {
                Ok(ProviderAnswer::Fenced)
            }
            Err(error) => Err(translate_error(&error)),
        }
    }

    /// The provider is about to show a list that lags: not by longer than a provider's list may, however seldom it is asked.
    fn age_lists(&mut self, call: &Call, now: u64) {
        self.listed.retain(|made| made + LIST_LAG_MS >= now);
        for _ in self.listed.len()..self.list_lag {
            drop(self.provider.carry_out(call));
            self.listed.push_back(now);
        }
        self.listed.push_back(now);
        while self.listed.len() > self.list_lag {
            self.listed.pop_front();
        }
    }

    fn outcome(&mut self, call: &Call, weather: &Weather, now: u64) -> Option<Outcome> {
        let lost = self.random.chance(weather.provider_lost_permille);
        let broken = self.random.chance(weather.provider_broken_permille);
        let full = self.random.chance(weather.provider_full_permille);
        let patience = if matches!(call, Call::ListMachines(_)) { 50 } else { LOST_AFTER_MS };
        self.answer_ms = self.random.between(1, if lost { patience } else { 50 });
        if now < self.out_until {
            let detail = "no answer".to_owned();
            return Some(Outcome::Fail(ProviderError::Unavailable { detail }));
        }
        // What is there is found, and what is found cannot be half made or out of room.
        let new = match call {
            Call::CreateMachine(request) => self.provider.view(&request.key.machine).is_none(),
            _ => false,
        };
        match call {
            Call::CreateMachine(request) if new && (full || self.is_full(&request.zone, now)) => {
                let (zone, detail) = (request.zone.clone(), "others took it".to_owned());
                Some(Outcome::Fail(ProviderError::StockOut { zone, detail }))
            }
            Call::CreateMachine(_) if broken && new => Some(Outcome::BreakOff),
            _ if lost => Some(Outcome::LoseAnswer),
            _ => None,
        }
    }

    fn is_full(&self, zone: &str, now: u64) -> bool {
        self.full_until.get(zone).is_some_and(|until| now < *until)
    }
}

/// The machine that a call is about.
pub(crate) fn machine_of(call: &ProviderCall) -> Option<MachineId> {
    match call {
        ProviderCall::Create { machine, .. } | ProviderCall::Rebuild { machine, .. } => {
            Some(machine.id.clone())
        }
        ProviderCall::Delete { machine, .. }
        | ProviderCall::Fence { machine, .. }
        | ProviderCall::PowerOn { machine, .. } => Some(machine.clone()),
        ProviderCall::List | ProviderCall::Expose { .. } | ProviderCall::Unexpose { .. } => None,
    }
}

/// A call in a few words; `None` for those that change nothing.
pub(crate) fn words(call: &ProviderCall) -> Option<String> {
    match call {
        ProviderCall::Create { machine, .. } => {
            Some(format!("create {} incarnation {}", machine.id, machine.incarnation))
        }
        ProviderCall::Delete { machine, incarnation, .. } => {
            Some(format!("delete {machine} incarnation {incarnation}"))
        }
        ProviderCall::Fence { machine, incarnation, .. } => {
            Some(format!("fence {machine} incarnation {incarnation}"))
        }
        ProviderCall::PowerOn { machine, incarnation, .. } => {
            Some(format!("power on {machine} incarnation {incarnation}"))
        }
        ProviderCall::Rebuild { machine, .. } => {
            Some(format!("rebuild {} incarnation {}", machine.id, machine.incarnation))
        }
        ProviderCall::List => None,
        ProviderCall::Expose { cluster, name, targets, .. } => {
            Some(format!("expose {name} of {cluster} at {} targets", targets.len()))
        }
        ProviderCall::Unexpose { cluster } => Some(format!("unexpose {cluster}")),
    }
}

fn translate(install: &InstallId, call: ProviderCall) -> Call {
    let install = install.clone();
    match call {
        ProviderCall::Create { machine, cluster, token } => {
            Call::CreateMachine(Box::new(request(install, *machine, cluster, &token)))
        }
        ProviderCall::Rebuild { machine, cluster, token } => {
            Call::Rebuild(Box::new(request(install, *machine, cluster, &token)))
        }
        ProviderCall::Fence { machine, cluster, incarnation } => {
            Call::Fence(ObjectKey { install, cluster, machine, incarnation })
        }
        ProviderCall::PowerOn { machine, cluster, incarnation } => {
            Call::PowerOn(ObjectKey { install, cluster, machine, incarnation })
        }
        ProviderCall::Delete { machine, cluster, incarnation } => {
            Call::DeleteMachine(ObjectKey { install, cluster, machine, incarnation })
        }
        ProviderCall::List => Call::ListMachines(install),
        ProviderCall::Expose { cluster, name, targets, check: _ } => {
            let check = keelson_providers::HealthCheck::Tcp;
            Call::Expose(keelson_providers::ExposeRequest {
                install,
                cluster,
                name,
                targets,
                check,
                port: None,
            })
        }
        ProviderCall::Unexpose { cluster } => Call::Unexpose(install, cluster),
    }
}

fn request(
    install: InstallId,
    machine: BlueprintMachine,
    cluster: ClusterName,
    token: &SecretBytes,
) -> MachineRequest {
    let (id, incarnation) = (machine.id, machine.incarnation);
    MachineRequest {
        key: ObjectKey { install, cluster, machine: id.clone(), incarnation },
        image: machine.image,
        zone: machine.zone,
        address: machine.address,
        cpu_millis_max: machine.size.cpu_millis,
        memory_bytes_max: machine.size.memory_bytes,
        disk_bytes: machine.size.disk_bytes,
        metadata: Metadata {
            machine: id,
            incarnation,
            coordinators: Vec::new(),
            ca_fingerprint: String::new(),
            token: SecretText(String::from_utf8_lossy(token.expose_secret()).into_owned()),
        },
    }
}

fn translate_answer(answer: Answer) -> ProviderAnswer {
    match answer {
        Answer::Machine(_) => ProviderAnswer::Created,
        Answer::Machines(machines) => {
            let seen = |view: keelson_providers::MachineView| SeenMachine {
                machine: view.key.machine,
                cluster: view.key.cluster,
                incarnation: view.key.incarnation,
                on: !matches!(view.state, MachineState::Off),
            };
            ProviderAnswer::Machines(machines.into_iter().map(seen).collect())
        }
        Answer::Exposed(exposed) => ProviderAnswer::Exposed(exposed.address),
        Answer::Fenced(_) => ProviderAnswer::Fenced,
        Answer::Done | Answer::Console(_) | Answer::AllExposed(_) => ProviderAnswer::Done,
    }
}

fn translate_error(error: &ProviderError) -> ProviderFailure {
    let remedy = match error.remedy() {
        keelson_providers::call::Remedy::Person => Remedy::Person,
        keelson_providers::call::Remedy::Retry
        | keelson_providers::call::Remedy::OtherZone
        | keelson_providers::call::Remedy::LookUp => Remedy::Retry,
    };
    ProviderFailure { remedy, text: error.to_string() }
}
