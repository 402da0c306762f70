//! Keeps the machine's link up: enrols when it has no usable certificate, starts the client, hands its events on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_agent_core::{Event, LinkNews, Seed, enrol_retry_delay};
use keelson_protocol::errors::chain;
use keelson_protocol::health::Facts;
use keelson_protocol::message::{EnrolRequest, Refusal, ToCoordinator};
use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN};
use keelson_protocol::{Generation, Incarnation, MachineId};
use keelson_transport::{
    CaTrust, ClientConfig, ClientEvent, EnrolConfig, EnrolError, Identity, LinkClient, LinkError,
    PeerIdentity, enrol,
};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock;
use crate::identity::{self, Held, IdentityFiles};
use crate::metadata::Metadata;
use crate::paths::Paths;
use crate::shell::Input;

/// Metadata that is not there yet is looked for this often.
const METADATA_EVERY: Duration = Duration::from_millis(500);

/// Generation that the next `Hello` tells.
pub(crate) type SharedGeneration = Arc<Mutex<Option<Generation>>>;

/// Everything that the link's task needs.
pub(crate) struct LinkTask {
    pub(crate) paths: Paths,
    pub(crate) machine: MachineId,
    pub(crate) incarnation: Incarnation,
    pub(crate) facts: Facts,
    pub(crate) generation: SharedGeneration,
    pub(crate) seed: Seed,
    pub(crate) inputs: mpsc::Sender<Input>,
}

/// The shell has gone.
struct Gone;

impl LinkTask {
    /// Runs until the shell has gone.
    pub(crate) async fn run(mut self) {
        // Only the end of the shell ends it.
        let Err(Gone) = self.keep_up().await;
    }

    async fn keep_up(&mut self) -> Result<std::convert::Infallible, Gone> {
        let files = IdentityFiles::new(self.paths.link());
        let coordinators = self.coordinators(&files).await?;
        let held = match self.load(&files).await {
            Ok(held) => held,
            Err(why) => {
                info!(why, "asking for a link certificate");
                self.enrol(&files).await?
            }
        };
        self.tell(LinkNews::Identity(held.validity)).await?;
        let (client, mut events) = LinkClient::start(self.client_config(coordinators, &held), held.identity);
        self.send(Input::LinkUp(client)).await?;
        while let Some(event) = events.recv().await {
            let expired = matches!(
                event,
                ClientEvent::Disconnected {
                    error: LinkError::CertificateExpired | LinkError::CertificateRefused { .. },
                    ..
                }
            );
            self.forward(event).await?;
            if expired && self.load(&files).await.is_err() {
                let held = self.enrol(&files).await?;
                self.tell(LinkNews::Identity(held.validity)).await?;
                self.send(Input::NewIdentity(held.identity)).await?;
            }
        }
        Err(Gone)
    }

    /// Where the coordinators are, as the metadata says. While that cannot be read, a machine that has a certificate looks where
    /// they were last.
    async fn coordinators(&self, files: &IdentityFiles) -> Result<Vec<SocketAddr>, Gone> {
        if let Err(error) = Metadata::read(&self.paths.metadata) {
            let kept = self.on_disk(files, |files, _, _| files.coordinators()).await;
            if !kept.is_empty() && self.load(files).await.is_ok() {
                warn!(error = chain(&error), ?kept, "the coordinators are looked for where they were last");
                let me = (self.machine.clone(), self.incarnation);
                tokio::spawn(correct(self.paths.clone(), me, kept.clone(), self.inputs.clone()));
                return Ok(kept);
            }
            self.tell(LinkNews::Enrolling { why: chain(&error), retry_in: METADATA_EVERY }).await?;
        }
        let metadata = wait_for_metadata(&self.paths).await;
        if (&metadata.machine, metadata.incarnation) != (&self.machine, self.incarnation) {
            let why = format!("the metadata names {} incarnation {}", metadata.machine, metadata.incarnation);
            self.send(Input::Restart(why)).await?;
        }
        let (files, told) = (files.clone(), metadata.coordinators.clone());
        // Not waited for: on a disk that hangs it is not kept, and the machine is heard all the same.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = files.keep_coordinators(&told) {
                warn!(error = chain(&error), "where the coordinators are could not be written");
            }
        });
        Ok(metadata.coordinators)
    }

    fn client_config(&self, coordinators: Vec<SocketAddr>, held: &Held) -> ClientConfig {
        let (facts, generation) = (self.facts.clone(), Arc::clone(&self.generation));
        let hello = move || ToCoordinator::Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            boot: facts.boot,
            generation: *generation.lock().expect("no holder of this lock panics"),
            facts: Box::new(facts.clone()),
        };
        let trust = CaTrust::Certificate(held.ca_der.clone());
        ClientConfig::new(coordinators, trust, Box::new(hello), self.seed.0)
    }

    /// Asks until there is a certificate. The metadata is read anew each time: a fresh token comes by it.
    async fn enrol(&mut self, files: &IdentityFiles) -> Result<Held, Gone> {
        for attempt in 1_u32.. {
            // What was found expired may be valid after all, once the machine's clock has been set.
            if let Ok(held) = self.load(files).await {
                return Ok(held);
            }
            let failure = match self.enrol_once(files).await {
                Ok(held) => {
                    info!("the machine has a link certificate");
                    return Ok(held);
                }
                Err(failure) => failure,
            };
            let code = failure.refusal.as_ref().map(|refusal| refusal.code);
            let retry_in = enrol_retry_delay(attempt, code, &mut self.seed);
            if let Some(refusal) = failure.refusal {
                self.tell(LinkNews::Refused(refusal)).await?;
            }
            warn!(error = failure.why, ?retry_in, "no link certificate yet");
            self.tell(LinkNews::Enrolling { why: failure.why, retry_in }).await?;
            tokio::time::sleep(retry_in).await;
        }
        // Not reached within a hundred years.
        Err(Gone)
    }

    async fn enrol_once(&self, files: &IdentityFiles) -> Result<Held, Failure> {
        let metadata = Metadata::read(&self.paths.metadata).map_err(|error| Failure::of(&error))?;
        if (&metadata.machine, metadata.incarnation) != (&self.machine, self.incarnation) {
            let why = "the metadata names another machine now; the agent must be restarted".to_owned();
            return Err(Failure { why, refusal: None });
        }
        let pending = self
            .on_disk(files, |files, machine, incarnation| files.enrolment_key(machine, incarnation))
            .await
            .map_err(|error| Failure::of(&error))?;
        let request = EnrolRequest {
            machine: metadata.machine,
            incarnation: metadata.incarnation,
            token: metadata.token,
            signing_request: pending.signing_request,
        };
        let config = EnrolConfig::new(metadata.coordinators, metadata.ca_fingerprint);
        let enrolled = enrol(&config, request).await.map_err(|error| {
            let refusal = match &error {
                EnrolError::Refused { refusal } => Some(refusal.clone()),
                _ => None,
            };
            Failure { why: chain(&error), refusal }
        })?;
        // It would be asked for again at once, and without end.
        let new = enrolled.chain.first().and_then(|leaf| PeerIdentity::from_certificate(leaf).ok());
        if new.is_some_and(|new| new.not_after <= clock::wall()) {
            return Err(Failure { why: CLOCK_AHEAD.to_owned(), refusal: None });
        }
        let identity = Identity { chain: enrolled.chain, key: pending.key };
        let validity = identity::check(&identity, &self.machine, self.incarnation);
        let validity = validity.map_err(|error| Failure::of(&error))?;
        let (new, ca_der) = (identity.clone(), enrolled.ca_der.clone());
        let written = self
            .on_disk(files, move |files, machine, incarnation| {
                files.install(&new, Some(&ca_der), machine, incarnation)
            })
            .await;
        // Its key is on disk, so that the next agent asks with the same one.
        if let Err(error) = written {
            warn!(error = chain(&error), "the link certificate is used and could not be written");
        }
        Ok(Held { identity, ca_der: enrolled.ca_der, validity })
    }

    async fn load(&self, files: &IdentityFiles) -> Result<Held, &'static str> {
        let now = clock::wall();
        self.on_disk(files, move |files, machine, incarnation| files.load(machine, incarnation, now)).await
    }

    /// Works on the identity's files beside the loop: a disk that hangs must not silence the machine.
    async fn on_disk<T: Send + 'static>(
        &self,
        files: &IdentityFiles,
        work: impl FnOnce(&IdentityFiles, &MachineId, Incarnation) -> T + Send + 'static,
    ) -> T {
        let (files, machine, incarnation) = (files.clone(), self.machine.clone(), self.incarnation);
        let work = tokio::task::spawn_blocking(move || work(&files, &machine, incarnation));
        work.await.expect("what works on the identity's files does not panic, and nobody gives it up")
    }

    async fn forward(&self, event: ClientEvent) -> Result<(), Gone> {
        let news = match event {
            ClientEvent::Connected { coordinator } => {
                LinkNews::Connected { coordinator: coordinator.to_string() }
            }
            ClientEvent::Disconnected { why, retry_in, .. } => LinkNews::Disconnected { why, retry_in },
            ClientEvent::Refused(refusal) => {
                warn!(%refusal, "the coordinator refuses this machine");
                LinkNews::Refused(refusal)
            }
            ClientEvent::Message(message) => {
                return self.send(Input::Event(Event::Message(Box::new(message)))).await;
            }
            ClientEvent::Bulk(request, stream) => {
                return self.send(Input::Bulk(request, Box::new(stream))).await;
            }
        };
        self.tell(news).await
    }

    async fn tell(&self, news: LinkNews) -> Result<(), Gone> {
        self.send(Input::Event(Event::Link(news))).await
    }

    async fn send(&self, input: Input) -> Result<(), Gone> {
        self.inputs.send(input).await.map_err(|_| Gone)
    }
}

/// Why a certificate that was just given is of no use.
const CLOCK_AHEAD: &str =
    "the new link certificate is over already by this machine's clock, which must be set (NTP)";

/// Why there is no certificate yet.
struct Failure {
    why: String,
    refusal: Option<Refusal>,
}

impl Failure {
    fn of(error: &dyn std::error::Error) -> Self {
        Self { why: chain(error), refusal: None }
    }
}

/// Begins anew when the metadata is there at last and names another machine, or other coordinators.
async fn correct(
    paths: Paths,
    me: (MachineId, Incarnation),
    kept: Vec<SocketAddr>,
    inputs: mpsc::Sender<Input>,
) {
    let metadata = wait_for_metadata(&paths).await;
    if (metadata.machine, metadata.incarnation, metadata.coordinators) != (me.0, me.1, kept) {
        let why = "the metadata names another machine, or other coordinators, than were known".to_owned();
        // The shell may have gone.
        let _ = inputs.send(Input::Restart(why)).await;
    }
}

/// A machine whose metadata cannot be read waits for it: on some infrastructures it comes after the agent starts.
pub(crate) async fn wait_for_metadata(paths: &Paths) -> Metadata {
    const TOLD_EVERY: u32 = 60;
    for attempt in 0_u32.. {
        let path = paths.metadata.clone();
        // Beside the loop: what it comes from may hang.
        let read = tokio::task::spawn_blocking(move || Metadata::read(&path)).await;
        match read.expect("what reads the metadata does not panic, and nobody gives it up") {
            Ok(metadata) => return metadata,
            Err(error) if attempt % TOLD_EVERY == 0 => {
                warn!(error = chain(&error), "waiting for the metadata")
            }
            Err(_) => {}
        }
        tokio::time::sleep(METADATA_EVERY).await;
    }
    unreachable!("the loop ends only with the metadata")
}
