//! The contract that every provider keeps. Each check is written once, against [`Subject`], and runs against the fake
//! and against real infrastructure.

#![allow(dead_code, reason = "each test program uses its part")]

use std::time::Duration;

use keelson_protocol::{ClusterName, Incarnation, InstallId, MachineId};
use keelson_providers::{
    Answer, Call, ExposeRequest, Exposed, HealthCheck, MachineRequest, MachineState, MachineView, Metadata,
    ObjectKey, PowerOff, Provider, ProviderError, SecretText,
};

/// More than any call needs on a loaded machine; a call that takes this long hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A provider under test, with the views that the contract needs behind its back.
pub(crate) trait Subject {
    /// The provider.
    fn provider(&self) -> &dyn Provider;
    /// Its installation.
    fn install(&self) -> InstallId;
    /// Digest of an image that boots.
    fn image(&self) -> String;
    /// Makes creating `request` break off half-way; the object then exists and is not finished.
    fn break_creation(&self, request: &mut MachineRequest);
    /// Writes a file on a machine's disk.
    fn write_disk(&self, machine: &MachineId, text: &str);
    /// Reads it.
    fn read_disk(&self, machine: &MachineId) -> Option<String>;
}

/// A request for machine number `number` (from 0).
pub(crate) fn request(subject: &dyn Subject, number: u8, incarnation: u32) -> MachineRequest {
    let capabilities = subject.provider().capabilities();
    let machine = MachineId::new(format!("demo-worker-{number}")).unwrap();
    let incarnation = Incarnation(incarnation);
    let coordinator = (capabilities.coordinator_address, 7443).into();
    MachineRequest {
        key: ObjectKey {
            install: subject.install(),
            cluster: ClusterName::new("demo").unwrap(),
            machine: machine.clone(),
            incarnation,
        },
        image: subject.image(),
        zone: capabilities.zones[usize::from(number) % capabilities.zones.len()].clone(),
        address: (capabilities.first_address.to_bits() + u32::from(number)).into(),
        cpu_millis_max: None,
        memory_bytes_max: None,
        disk_bytes: 1 << 30,
        metadata: Metadata {
            machine,
            incarnation,
            coordinators: vec![coordinator],
            ca_fingerprint: "00".repeat(32),
            token: SecretText("11".repeat(32)),
        },
    }
}

pub(crate) async fn perform(subject: &dyn Subject, call: Call) -> Result<Answer, ProviderError> {
    subject.provider().perform(&call, DEADLINE).await
}

pub(crate) async fn create(
    subject: &dyn Subject,
    request: &MachineRequest,
) -> Result<MachineView, ProviderError> {
    match perform(subject, Call::CreateMachine(Box::new(request.clone()))).await? {
        Answer::Machine(view) => Ok(view),
        other => panic!("create gave {other:?}"),
    }
}

pub(crate) async fn list(subject: &dyn Subject) -> Vec<MachineView> {
    match perform(subject, Call::ListMachines(subject.install())).await.unwrap() {
        Answer::Machines(views) => views,
        other => panic!("list gave {other:?}"),
    }
}

pub(crate) async fn state(subject: &dyn Subject, key: &ObjectKey) -> Option<MachineState> {
    list(subject).await.into_iter().find(|view| view.key == *key).map(|view| view.state)
}

pub(crate) async fn done(subject: &dyn Subject, call: Call) {
    let answer = perform(subject, call.clone()).await.unwrap_or_else(|e| panic!("{call:?}: {e}"));
    assert_eq!(answer, Answer::Done, "{call:?}");
}

fn view(request: &MachineRequest, state: MachineState) -> MachineView {
    MachineView { key: request.key.clone(), state, zone: request.zone.clone(), address: request.address }
}

pub(crate) async fn create_is_idempotent_and_the_tag_reads_back(subject: &dyn Subject) {
    let request = request(subject, 0, 1);
    let expected = view(&request, MachineState::On);
    assert_eq!(create(subject, &request).await, Ok(expected.clone()));
    assert_eq!(create(subject, &request).await, Ok(expected.clone()));
    assert_eq!(list(subject).await, [expected]);
    let other = InstallId::new("other").unwrap();
    let listed = perform(subject, Call::ListMachines(other)).await;
    assert_eq!(listed, Ok(Answer::Machines(Vec::new())), "another installation sees nothing");
}

pub(crate) async fn a_half_made_machine_is_listed_finished_and_deleted(subject: &dyn Subject) {
    for finish in [true, false] {
        let good = request(subject, 0, 1);
        let mut broken = good.clone();
        subject.break_creation(&mut broken);
        create(subject, &broken).await.unwrap_err();
        assert_eq!(state(subject, &good.key).await, Some(MachineState::Creating));
        if finish {
            assert_eq!(create(subject, &good).await.unwrap().state, MachineState::On);
        }
        done(subject, Call::DeleteMachine(good.key.clone())).await;
        assert_eq!(list(subject).await, []);
    }
}

pub(crate) async fn delete_is_idempotent_and_takes_the_disk(subject: &dyn Subject) {
    let request = request(subject, 0, 1);
    create(subject, &request).await.unwrap();
    subject.write_disk(&request.key.machine, "mine");
    for _ in 0..2 {
        done(subject, Call::DeleteMachine(request.key.clone())).await;
        assert_eq!(list(subject).await, []);
    }
    create(subject, &request).await.unwrap();
    assert_eq!(subject.read_disk(&request.key.machine), None, "the disk of a deleted machine is gone");
}

pub(crate) async fn another_incarnation_is_a_conflict(subject: &dyn Subject) {
    let first = request(subject, 0, 1);
    let second = request(subject, 0, 2);
    create(subject, &first).await.unwrap();
    let refused = create(subject, &second).await;
    assert!(matches!(refused, Err(ProviderError::Conflict { .. })), "{refused:?}");
    done(subject, Call::DeleteMachine(second.key.clone())).await;
    assert_eq!(state(subject, &first.key).await, Some(MachineState::On), "the other one was not meant");
    for call in [Call::PowerOff(second.key.clone(), PowerOff::Hard), Call::Fence(second.key.clone())] {
        let refused = perform(subject, call).await;
        assert!(matches!(refused, Err(ProviderError::NotFound { .. })), "{refused:?}");
    }
    done(subject, Call::DeleteMachine(first.key)).await;
    create(subject, &second).await.unwrap();
}

pub(crate) async fn a_taken_address_is_a_conflict(subject: &dyn Subject) {
    let first = request(subject, 0, 1);
    create(subject, &first).await.unwrap();
    let second = MachineRequest { address: first.address, ..request(subject, 1, 1) };
    let refused = create(subject, &second).await;
    assert!(matches!(refused, Err(ProviderError::Conflict { .. })), "{refused:?}");
    assert_eq!(list(subject).await.len(), 1, "nothing of the refused machine is left");
}

pub(crate) async fn what_can_never_be_is_invalid(subject: &dyn Subject) {
    let good = request(subject, 0, 1);
    let coordinator = subject.provider().capabilities().coordinator_address;
    for (field, bad) in [
        ("zone", MachineRequest { zone: "nowhere".to_owned(), ..good.clone() }),
        ("address", MachineRequest { address: coordinator, ..good.clone() }),
        ("metadata", MachineRequest { metadata: request(subject, 1, 1).metadata, ..good.clone() }),
    ] {
        match create(subject, &bad).await {
            Err(ProviderError::Invalid { field: got, .. }) => assert_eq!(got, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert_eq!(list(subject).await, []);
}

pub(crate) async fn the_disk_survives_a_power_cycle(subject: &dyn Subject) {
    let request = request(subject, 0, 1);
    let key = &request.key;
    create(subject, &request).await.unwrap();
    subject.write_disk(&key.machine, "kept");
    for how in [PowerOff::Soft(Duration::from_secs(20)), PowerOff::Hard, PowerOff::Hard] {
        done(subject, Call::PowerOff(key.clone(), how)).await;
        assert_eq!(state(subject, key).await, Some(MachineState::Off));
        done(subject, Call::PowerOff(key.clone(), how)).await;
        let on = perform(subject, Call::PowerOn(key.clone())).await;
        assert_eq!(on, Ok(Answer::Machine(view(&request, MachineState::On))));
        assert_eq!(subject.read_disk(&key.machine).as_deref(), Some("kept"));
    }
    let rebooted = perform(subject, Call::Reboot(key.clone())).await;
    assert_eq!(rebooted, Ok(Answer::Machine(view(&request, MachineState::On))));
    assert_eq!(subject.read_disk(&key.machine).as_deref(), Some("kept"));
    done(subject, Call::PowerOff(key.clone(), PowerOff::Hard)).await;
    assert_eq!(create(subject, &request).await.unwrap().state, MachineState::On, "create switches on");
}

pub(crate) async fn a_fenced_machine_stays_off_until_switched_on(subject: &dyn Subject) {
    let request = request(subject, 0, 1);
    let key = &request.key;
    create(subject, &request).await.unwrap();
    for _ in 0..2 {
        match perform(subject, Call::Fence(key.clone())).await {
            Ok(Answer::Fenced(proof)) => assert_eq!(proof.key(), key),
            other => panic!("{other:?}"),
        }
        assert_eq!(state(subject, key).await, Some(MachineState::Off));
    }
    assert_eq!(
        create(subject, &request).await.unwrap().state,
        MachineState::Off,
        "create does not undo a fence"
    );
    done(subject, Call::PowerOff(key.clone(), PowerOff::Hard)).await;
    assert_eq!(
        create(subject, &request).await.unwrap().state,
        MachineState::Off,
        "nor after another power-off"
    );
    perform(subject, Call::PowerOn(key.clone())).await.unwrap();
    assert_eq!(state(subject, key).await, Some(MachineState::On));
}

pub(crate) async fn a_machine_is_made_anew_around_its_disk(subject: &dyn Subject) {
    let request = request(subject, 0, 1);
    let key = &request.key;
    create(subject, &request).await.unwrap();
    subject.write_disk(&key.machine, "kept");
    let running = perform(subject, Call::Rebuild(Box::new(request.clone()))).await;
    assert!(matches!(running, Err(ProviderError::Conflict { .. })), "{running:?}");
    perform(subject, Call::Fence(key.clone())).await.unwrap();
    match perform(subject, Call::Rebuild(Box::new(request.clone()))).await {
        Ok(Answer::Machine(view)) => {
            assert_eq!((view.state, view.address), (MachineState::On, request.address))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(subject.read_disk(&key.machine).as_deref(), Some("kept"));
}

pub(crate) async fn unknown_machines_are_not_found(subject: &dyn Subject) {
    let key = request(subject, 7, 1).key;
    for call in [
        Call::PowerOn(key.clone()),
        Call::PowerOff(key.clone(), PowerOff::Hard),
        Call::Reboot(key.clone()),
        Call::Console(key.clone()),
        Call::Fence(key.clone()),
    ] {
        let refused = perform(subject, call.clone()).await;
        assert!(matches!(refused, Err(ProviderError::NotFound { .. })), "{call:?}: {refused:?}");
    }
    done(subject, Call::DeleteMachine(key)).await;
}

pub(crate) async fn exposed(subject: &dyn Subject) -> Vec<Exposed> {
    match perform(subject, Call::ListExposed(subject.install())).await.unwrap() {
        Answer::AllExposed(all) => all,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn expose_request(subject: &dyn Subject, name: &str) -> ExposeRequest {
    ExposeRequest {
        install: subject.install(),
        cluster: ClusterName::new("demo").unwrap(),
        name: name.to_owned(),
        targets: Vec::new(),
        check: HealthCheck::Tcp,
        port: None,
    }
}

pub(crate) async fn expose(subject: &dyn Subject, request: &ExposeRequest) -> Result<Exposed, ProviderError> {
    match perform(subject, Call::Expose(request.clone())).await? {
        Answer::Exposed(exposed) => Ok(exposed),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn exposing_is_idempotent_and_keeps_its_port(subject: &dyn Subject) {
    let api = expose_request(subject, "api");
    let first = expose(subject, &api).await.unwrap();
    assert_eq!(expose(subject, &api).await.unwrap(), first);
    let moved = ExposeRequest { targets: vec!["10.0.0.1:6443".parse().unwrap()], ..api.clone() };
    assert_eq!(expose(subject, &moved).await.unwrap(), first, "another target, the same port");
    let many =
        ExposeRequest { targets: (1..=40).map(|n| ([10, 0, 0, n], 6443).into()).collect(), ..api.clone() };
    assert_eq!(expose(subject, &many).await.unwrap(), first, "more targets than a forward takes");
    let web = expose(subject, &expose_request(subject, "web")).await.unwrap();
    assert_ne!(web.address, first.address);
    assert_eq!(exposed(subject).await, [first.clone(), web]);
    for path in ["readyz", "/a b", ""] {
        let check = HealthCheck::Https { path: path.to_owned() };
        let refused = expose(subject, &ExposeRequest { check, ..api.clone() }).await;
        assert!(matches!(refused, Err(ProviderError::Invalid { field: "check", .. })), "{refused:?}");
    }
    let greedy = ExposeRequest { port: Some(first.address.port()), ..expose_request(subject, "other") };
    let refused = expose(subject, &greedy).await;
    assert!(matches!(refused, Err(ProviderError::Conflict { .. })), "{refused:?}");
    for _ in 0..2 {
        done(subject, Call::Unexpose(subject.install(), api.cluster.clone())).await;
        assert_eq!(exposed(subject).await, []);
    }
}

/// One test for each check of the contract, against what `$subject` makes.
#[macro_export]
macro_rules! contract {
    ($subject:expr; $($check:ident)*) => {$(
        #[tokio::test]
        async fn $check() {
            let subject = $subject;
            suite::$check(&subject).await;
        }
    )*};
    ($subject:expr) => {
        $crate::contract! { $subject;
            create_is_idempotent_and_the_tag_reads_back
            a_half_made_machine_is_listed_finished_and_deleted
            delete_is_idempotent_and_takes_the_disk
            another_incarnation_is_a_conflict
            a_taken_address_is_a_conflict
            what_can_never_be_is_invalid
            the_disk_survives_a_power_cycle
            a_fenced_machine_stays_off_until_switched_on
            a_machine_is_made_anew_around_its_disk
            unknown_machines_are_not_found
            exposing_is_idempotent_and_keeps_its_port
        }
    };
}
