//! The coordinator without a network: its loop, its store and an infrastructure that never answers, asked as the API asks.

use std::net::UdpSocket;
use std::sync::Arc;

use keelson_api::types::OperationStateView;
use keelson_coordinator_core::{CoordinatorCore, Saved, Settings};
use keelson_model::{PoolName, Release, ReleaseCatalog};
use keelson_pki::SealingKey;
use keelson_planner::Place;
use keelson_protocol::SecretBytes;
use keelson_providers::fake::{FakeConfig, FakeProvider};
use keelson_providers::{Answer, Call, Capabilities, Provider, ProviderError, ProviderFuture};
use keelson_store::Store;
use keelson_transport::LinkCa;
use tokio::sync::mpsc;

use super::*;
use crate::clock::Clock;
use crate::providers::Infrastructure;
use crate::shell::{self, Parts};

const RELEASE: &str = "1.37.2";

/// An infrastructure on which everything stays under way.
struct NeverAnswers(FakeProvider);

impl Provider for NeverAnswers {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn perform<'a>(&'a self, _call: &'a Call, _deadline: Duration) -> ProviderFuture<'a, Answer> {
        Box::pin(std::future::pending())
    }

    fn bind_link(&self, port: u16) -> Result<UdpSocket, ProviderError> {
        self.0.bind_link(port)
    }
}

struct World {
    fleet: CoordinatorFleet,
    _home: tempfile::TempDir,
}

/// A core with one release and the built-in plans.
pub(crate) fn settings() -> Settings {
    let release = Release {
        name: RELEASE.parse().unwrap(),
        components: BTreeMap::new(),
        images: BTreeMap::new(),
        archives: BTreeMap::new(),
        upgrade_from: Vec::new(),
        image: Some("sha256:2f".to_owned()),
    };
    Settings {
        install: "test".parse().unwrap(),
        place: Place {
            network: "10.210.0.0/16".parse().unwrap(),
            first_address: [10, 210, 1, 0].into(),
            zones: vec!["zone-a".to_owned()],
        },
        plans: Plan::built_in(),
        releases: ReleaseCatalog { releases: [(release.name.clone(), release)].into() },
        token_key: SecretBytes::new(vec![3; 32]),
    }
}

fn spec(name: &str) -> ClusterSpec {
    ClusterSpec {
        name: name.parse().unwrap(),
        plan: PlanName("small".to_owned()),
        release: RELEASE.parse().unwrap(),
        workers: None,
        pools: BTreeMap::new(),
        drain: DrainSpec::default(),
        expose: Vec::new(),
        pod_network: keelson_model::spec::default_pod_network(),
        service_network: keelson_model::spec::default_service_network(),
        deletion_protection: false,
        labels: BTreeMap::new(),
    }
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let key = SealingKey::new(&SecretBytes::new(vec![4; 32])).unwrap();
        let store = Store::open(&home.path().join("keelson.db"), key).unwrap();
        let (clock, wall) = (Clock::start(), wall_now());
        let link_ca = LinkCa::generate("test", wall, Duration::from_secs(3_600)).unwrap();
        let infrastructure = Infrastructure {
            provider: Arc::new(NeverAnswers(FakeProvider::new(FakeConfig::default()))),
            install: "test".parse().unwrap(),
            coordinators: Vec::new(),
            ca_fingerprint: link_ca.fingerprint(),
        };
        let core = CoordinatorCore::restore(settings(), Saved::default(), clock.now());
        let (_link, link) = mpsc::channel(1);
        let parts = Parts { core, store, clock, link_ca, infrastructure, link };
        let (handle, serve) = shell::start(parts, std::future::pending());
        tokio::spawn(serve);
        let (install, default_release) = ("test".to_owned(), RELEASE.parse().unwrap());
        Self { fleet: CoordinatorFleet { handle, install, default_release, started: wall }, _home: home }
    }

    async fn create(&self, name: &str) -> OperationView {
        self.fleet.create_cluster(spec(name), None).await.unwrap()
    }

    async fn etag(&self, name: &str) -> IfMatch {
        IfMatch::OneOf(vec![self.fleet.cluster(name.parse().unwrap()).await.unwrap().meta.etag])
    }

    async fn scale(&self, if_match: &IfMatch, count: u16) -> Result<OperationView, Problem> {
        let size = PoolSize { pool: PoolName("worker".to_owned()), count, drain: DrainBody::default() };
        self.fleet.scale_cluster("demo".parse().unwrap(), if_match.clone(), size).await
    }

    async fn delete(&self, if_match: &IfMatch) -> Result<OperationView, Problem> {
        self.fleet.delete_cluster("demo".parse().unwrap(), if_match.clone()).await
    }

    async fn cancel(&self, id: &str) -> Result<OperationView, Problem> {
        self.fleet.cancel_operation(OperationId(id.to_owned())).await
    }
}

#[tokio::test]
async fn an_operation_that_goes_on_is_told_from_one_that_has_ended() {
    let world = World::new();
    let check = async |id: &str, code: Code, why: &str| {
        let refused = world.cancel(id).await.unwrap_err();
        assert_eq!(refused.code(), code, "{id}");
        assert!(refused.view().causes.concat().contains(why), "{refused:?}");
    };
    let made = world.create("demo").await;
    let scaled = world.scale(&IfMatch::Any, 3).await.unwrap();
    check(&scaled.id, Code::OperationNotCancellable, "scale the pool").await;
    let gone = world.delete(&IfMatch::Any).await.unwrap();
    check(&gone.id, Code::OperationNotCancellable, "do not come back").await;
    check(&made.id, Code::OperationEnded, "").await;
    let other = world.create("other").await;
    for _ in 0..2 {
        assert_eq!(world.cancel(&other.id).await.unwrap().state, OperationStateView::Cancelled);
    }
}

#[tokio::test]
async fn a_change_that_is_sent_twice_finds_what_the_first_one_began() {
    let world = World::new();
    world.create("demo").await;
    let seen = world.etag("demo").await;
    let scaled = world.scale(&seen, 3).await.unwrap();
    assert_eq!(world.scale(&seen, 3).await.unwrap().id, scaled.id);
    assert_eq!(world.scale(&seen, 4).await.unwrap_err().code(), Code::PreconditionFailed);
    assert_eq!(world.delete(&seen).await.unwrap_err().code(), Code::PreconditionFailed);
    let seen = world.etag("demo").await;
    let gone = world.delete(&seen).await.unwrap();
    assert_eq!(world.delete(&seen).await.unwrap().id, gone.id);
}
