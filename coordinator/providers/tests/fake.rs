//! The contract against the fake infrastructure, and what the fake can do beyond it.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a failing test says so")]

mod suite;

use keelson_protocol::{InstallId, MachineId};
use keelson_providers::fake::{CallKind, FakeConfig, FakeProvider, Outcome};
use keelson_providers::{Answer, Call, MachineRequest, MachineState, Provider, ProviderError, Remedy};
use suite::{Subject, create, list, request, state};

#[derive(Default)]
struct Fake(FakeProvider);

impl Subject for Fake {
    fn provider(&self) -> &dyn Provider {
        &self.0
    }

    fn install(&self) -> InstallId {
        InstallId::new("fake").unwrap()
    }

    fn image(&self) -> String {
        "sha256:any".to_owned()
    }

    fn break_creation(&self, _request: &mut MachineRequest) {
        self.0.inject(CallKind::CreateMachine, Outcome::BreakOff);
    }

    fn write_disk(&self, machine: &MachineId, text: &str) {
        assert!(self.0.write_disk(machine, "contract", text));
    }

    fn read_disk(&self, machine: &MachineId) -> Option<String> {
        self.0.read_disk(machine, "contract")
    }
}

contract!(Fake::default());

fn with(config: FakeConfig) -> Fake {
    Fake(FakeProvider::new(config))
}

#[tokio::test]
async fn injected_outcomes_come_once_and_in_order() {
    let fake = Fake::default();
    let wanted = request(&fake, 0, 1);
    let refusal = ProviderError::Denied { detail: "no".to_owned() };
    fake.0.inject(CallKind::CreateMachine, Outcome::Fail(refusal.clone()));
    fake.0.inject(CallKind::CreateMachine, Outcome::LoseAnswer);
    assert_eq!(create(&fake, &wanted).await, Err(refusal));
    assert_eq!(list(&fake).await, [], "a failed call has no effect");
    let lost = create(&fake, &wanted).await.unwrap_err();
    assert_eq!(lost.remedy(), Remedy::LookUp);
    assert_eq!(state(&fake, &wanted.key).await, Some(MachineState::On), "a lost answer has");
    assert_eq!(create(&fake, &wanted).await.unwrap().state, MachineState::On);
    let kinds: Vec<_> = fake.0.calls().iter().map(CallKind::of).collect();
    use CallKind::{CreateMachine, ListMachines};
    assert_eq!(kinds, [CreateMachine, ListMachines, CreateMachine, ListMachines, CreateMachine]);
}

#[tokio::test]
async fn capacity_runs_out_by_zone_and_altogether() {
    let limits =
        FakeConfig { machines_per_zone_max: Some(1), machines_max: Some(2), ..FakeConfig::default() };
    let fake = with(limits);
    create(&fake, &request(&fake, 0, 1)).await.unwrap();
    let same_zone = create(&fake, &request(&fake, 3, 1)).await.unwrap_err();
    assert_eq!(same_zone.remedy(), Remedy::OtherZone);
    create(&fake, &request(&fake, 1, 1)).await.unwrap();
    let full = create(&fake, &request(&fake, 2, 1)).await.unwrap_err();
    assert!(matches!(full, ProviderError::Quota { .. }), "{full}");
}

#[tokio::test]
async fn lists_can_lag() {
    let fake = with(FakeConfig { list_lag: 2, ..FakeConfig::default() });
    let wanted = request(&fake, 0, 1);
    create(&fake, &wanted).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(list(&fake).await.len());
    }
    assert_eq!(seen, [0, 0, 1]);
    assert!(fake.0.set_state(&wanted.key.machine, MachineState::Off));
    assert_eq!(state(&fake, &wanted.key).await, Some(MachineState::On), "the list is old");
    let now = fake.0.carry_out(&Call::PowerOn(wanted.key.clone()));
    assert!(matches!(now, Ok(Answer::Machine(_))), "{now:?}");
}
