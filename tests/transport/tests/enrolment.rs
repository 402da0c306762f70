//! Enrolment: a machine without a certificate gets one, once, from the coordinator that it was told to trust.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use keelson_protocol::message::{EnrolReply, EnrolRequest, Refusal, RefusalCode, ToAgent, ToCoordinator};
use keelson_protocol::{Incarnation, SecretBytes, WallTime};
use keelson_transport::{
    CloseCode, EnrolConfig, EnrolError, Identity, KeyRequest, LEAF_LIFE, LinkCa, LinkError, enrol,
    make_key_request,
};
use keelson_transport_tests::{Agent, Coordinator, LinkModel, World, within};
use tokio::time::Instant;

fn request(number: u16, key: &KeyRequest) -> EnrolRequest {
    EnrolRequest {
        machine: World::machine_id(number),
        incarnation: Incarnation(1),
        token: SecretBytes::new(b"token".to_vec()),
        signing_request: key.signing_request.clone(),
    }
}

fn config(world: &World, number: u16, coordinators: &[u8]) -> EnrolConfig {
    let addresses = coordinators.iter().map(|n| World::coordinator_address(*n)).collect();
    let mut config = EnrolConfig::new(addresses, world.ca.fingerprint());
    config.endpoint = Some(world.endpoint(number));
    config.clock = world.clock();
    config
}

#[tokio::test(start_paused = true)]
async fn a_machine_enrols_and_opens_a_session() {
    let world = World::new(1);
    let mut coordinator = Coordinator::start(&world, 1);
    let key = make_key_request().unwrap();
    let config = config(&world, 1, &[1]);
    let (enrolled, ()) = tokio::join!(enrol(&config, request(1, &key)), async {
        let (asked, replier) = coordinator.enrolment().await;
        assert_eq!(asked, request(1, &key));
        replier.send(Coordinator::sign(&world, &asked));
    });
    let enrolled = enrolled.unwrap();
    assert_eq!(enrolled.ca_der, world.ca.certificate_der());

    let identity = Identity { chain: enrolled.chain, key: key.key };
    let client = world.client_config(1, &[coordinator.address]);
    let mut agent = Agent::start_with(client, 1, identity);
    let (peer, session) = coordinator.opened().await;
    assert_eq!((peer.machine, peer.incarnation), (World::machine_id(1), Incarnation(1)));
    assert_eq!(agent.connected().await, coordinator.address);

    agent.beat();
    assert_eq!(coordinator.heartbeat().await.1.sequence, 1);
    agent.link.send(ToCoordinator::TimeRequest { asked_at: WallTime(5) }).unwrap();
    assert_eq!(
        coordinator.message().await,
        (session.id(), ToCoordinator::TimeRequest { asked_at: WallTime(5) })
    );
    let answer = ToAgent::Time { asked_at: WallTime(5), now: world.now() };
    session.send(answer.clone()).unwrap();
    assert_eq!(agent.message().await, answer);
    assert_eq!(coordinator.link.stats().enrolments, 1);
}

async fn refused_with(reply: Option<EnrolReply>) -> EnrolError {
    let world = World::new(2);
    let mut coordinator = Coordinator::start(&world, 1);
    let key = make_key_request().unwrap();
    let config = config(&world, 1, &[1]);
    let (enrolled, ()) = tokio::join!(enrol(&config, request(1, &key)), async {
        let (_, replier) = coordinator.enrolment().await;
        match reply {
            Some(reply) => replier.send(reply),
            None => drop(replier),
        }
    });
    enrolled.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_arrives_as_it_was_sent() {
    let refusal = Refusal { code: RefusalCode::WrongToken, text: "ask for a new token".into() };
    let error = refused_with(Some(EnrolReply::Refused(refusal.clone()))).await;
    assert_eq!(error, EnrolError::Refused { refusal });
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_drops_the_question_is_busy() {
    let error = refused_with(None).await;
    assert!(
        matches!(&error, EnrolError::Refused { refusal } if refusal.code == RefusalCode::Busy),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_machine_is_not_taken() {
    let world = World::new(3);
    let chain = world.identity(9).chain;
    let error = refused_with(Some(EnrolReply::Accepted { chain })).await;
    // That chain is of another world's CA too; the CA is looked at first.
    assert!(error.to_string().contains("its CA is another one"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_does_not_answer_says_that_it_took_too_long() {
    let world = World::new(4);
    let mut coordinator = Coordinator::start(&world, 1);
    let key = make_key_request().unwrap();
    let config = config(&world, 1, &[1]);
    let begin = Instant::now();
    let (enrolled, _replier) =
        tokio::join!(enrol(&config, request(1, &key)), async { coordinator.enrolment().await.1 });
    let Err(EnrolError::Unreachable { attempts }) = enrolled else { panic!("{enrolled:?}") };
    let code = attempts.iter().map(|(_, error)| match error {
        LinkError::Closed { code, .. } => *code,
        other => panic!("{other}"),
    });
    assert_eq!(code.collect::<Vec<_>>(), [CloseCode::Timeout]);
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_machine_tells_its_token_to_nobody_whose_ca_has_another_fingerprint() {
    let world = World::new(5);
    let mut impostor = Coordinator::start(&world, 1);
    let key = make_key_request().unwrap();
    let other = LinkCa::generate("other", world.now(), LEAF_LIFE).unwrap();
    let mut config = config(&world, 1, &[1]);
    config.ca_fingerprint = other.fingerprint();
    let error = enrol(&config, request(1, &key)).await.unwrap_err();
    let EnrolError::Unreachable { attempts } = &error else { panic!("{error}") };
    assert!(matches!(&attempts[..], [(_, LinkError::NotTrusted { .. })]), "{error}");
    assert!(error.to_string().contains(&world.ca.fingerprint()), "{error}");
    assert!(impostor.all_within(Duration::from_secs(20)).await.is_empty());
    assert_eq!(impostor.link.stats().enrolments, 0);
}

#[tokio::test(start_paused = true)]
async fn a_fingerprint_that_is_none_is_refused_before_anybody_is_asked() {
    let world = World::new(6);
    let key = make_key_request().unwrap();
    for bad in ["", "abc", &"z".repeat(64), &"a".repeat(63)] {
        let mut config = config(&world, 1, &[1]);
        bad.clone_into(&mut config.ca_fingerprint);
        let error = enrol(&config, request(1, &key)).await.unwrap_err();
        assert!(matches!(error, EnrolError::Config { .. }), "{bad}: {error}");
    }
    let error = enrol(&config(&world, 1, &[]), request(1, &key)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Config { .. }), "{error}");
    assert_eq!(world.network.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_second_coordinator_is_asked_when_the_first_is_dead() {
    let world = World::new(7);
    let mut coordinator = Coordinator::start(&world, 2);
    let key = make_key_request().unwrap();
    let config = config(&world, 1, &[1, 2]);
    let begin = Instant::now();
    let (enrolled, ()) = tokio::join!(enrol(&config, request(1, &key)), async {
        let (asked, replier) = coordinator.enrolment().await;
        replier.send(Coordinator::sign(&world, &asked));
    });
    enrolled.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(7), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn enrolment_survives_loss_and_duplicates() {
    for seed in 0..20 {
        let world = World::new(100 + seed);
        world.network.set_default(LinkModel {
            loss_permille: 150,
            duplicate_permille: 100,
            jitter: Duration::from_millis(20),
            ..LinkModel::GOOD
        });
        let mut coordinator = Coordinator::start(&world, 1);
        let key = make_key_request().unwrap();
        // The address thrice: a machine asks again as well.
        let config = config(&world, 1, &[1, 1, 1]);
        let answer = async {
            loop {
                let (asked, replier) = coordinator.enrolment().await;
                replier.send(Coordinator::sign(&world, &asked));
            }
        };
        tokio::select! {
            enrolled = within("enrolment", enrol(&config, request(1, &key))) => {
                enrolled.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            () = answer => {}
        }
    }
}
