//! Certificates: asked for when missing, when their specification changed, and at two thirds of their life.
//!
//! Keys are made by the host and never come here; only signing requests do.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_protocol::config::{CertificateSpec, NodeConfig};
use keelson_protocol::health::EventKind;
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::{MonoTime, WallTime};

use crate::action::{Action, CertificateFiles, Step, StepKey};
use crate::core::{AgentCore, Now};
use crate::desired::Desired;
use crate::digest::Digest;
use crate::event::{CertificateSeen, StepOutput, Validity};
use crate::looks::Class;
use crate::rest::News;
use crate::retry::Backoff;

/// A request without an answer is sent again after this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A certificate that has just come is not renewed again before this time: on a machine whose clock is ahead, or with a
/// CA that dates back more than the life is long, two thirds of a new one's life are over at once.
const RENEWAL_GAP: Duration = Duration::from_secs(20);

/// Where a request for a certificate stands.
#[derive(Debug, Default)]
enum Request {
    /// Nothing is asked.
    #[default]
    None,
    /// The host makes the key.
    MakingKey,
    /// The coordinator was asked, or will be as soon as there is one.
    Asked { signing_request: Vec<u8>, sent_at: Option<MonoTime> },
    /// The host writes the answer.
    Installing,
    /// The coordinator refused; asked again later, because a new config may make it right.
    Refused { retry_at: MonoTime },
}

#[derive(Debug, Default)]
pub(crate) struct CertificateRun {
    seen: Option<CertificateSeen>,
    request: Request,
    /// Digest of the specification that the request in flight is for.
    spec: Option<Digest>,
    refusals: Backoff,
    /// When the last one came.
    came_at: Option<MonoTime>,
    /// Why it is asked for.
    cause: String,
    files: Option<CertificateFiles>,
    pub(crate) refused: Option<String>,
}

impl CertificateRun {
    pub(crate) fn forget_seen(&mut self) {
        self.seen = None;
    }

    pub(crate) fn asks_nothing(&self) -> bool {
        matches!(self.request, Request::None)
    }

    fn is_being_written(&self) -> bool {
        matches!(self.request, Request::Installing)
    }

    pub(crate) fn validity(&self) -> Option<Validity> {
        match self.seen {
            Some(CertificateSeen::Held(validity)) => Some(validity),
            _ => None,
        }
    }

    /// Why a new one is needed; `None` when it is not, or when nobody has looked yet.
    fn needed(&self, held_spec: Option<&Digest>, wanted: &Digest, now: Now) -> Option<String> {
        match self.seen.as_ref()? {
            CertificateSeen::Missing { why } => Some(why.clone()),
            CertificateSeen::Held(_) if held_spec != Some(wanted) => {
                Some("its specification changed".to_owned())
            }
            CertificateSeen::Held(validity) if is_due(*validity, self.came_at, now) => {
                Some("two thirds of its life are over".to_owned())
            }
            CertificateSeen::Held(_) => None,
        }
    }
}

/// Whether a certificate is to be renewed now.
fn is_due(validity: Validity, came_at: Option<MonoTime>, now: Now) -> bool {
    validity.renew_at() <= now.wall && came_at.is_none_or(|at| now.mono.since(at) >= RENEWAL_GAP)
}

/// The link certificate: like the others, but written by the transport's rules.
#[derive(Debug, Default)]
pub(crate) struct LinkRun {
    pub(crate) identity: Option<Validity>,
    came_at: Option<MonoTime>,
    request: Request,
}

impl AgentCore {
    pub(crate) fn certificates_seen(&mut self, seen: BTreeMap<String, CertificateSeen>) -> News {
        let mut news = false;
        for (name, seen) in seen {
            if let Some(run) = self.certificates.get_mut(&name) {
                let seen = Some(seen);
                news |= run.seen != seen;
                run.seen = seen;
            }
        }
        News::when(news)
    }

    pub(crate) fn reconcile_certificates(&mut self, config: &NodeConfig, desired: &Desired) {
        self.certificates_stand =
            config.certificates.iter().all(|spec| self.holds_certificate(desired, &spec.name));
        for spec in &config.certificates {
            let wanted = desired.certificates[&spec.name];
            let Some(mut run) = self.certificates.get_mut(&spec.name).map(std::mem::take) else { continue };
            self.reconcile_certificate(config, spec, wanted, &mut run);
            if let Some(place) = self.certificates.get_mut(&spec.name) {
                *place = run;
            }
        }
    }

    fn reconcile_certificate(
        &mut self,
        config: &NodeConfig,
        spec: &CertificateSpec,
        wanted: Digest,
        run: &mut CertificateRun,
    ) {
        let needed = run.needed(self.ledger.certificates.get(&spec.name), &wanted, self.corrected_now());
        if run.spec.is_some_and(|asked_for| asked_for != wanted)
            && !matches!(run.request, Request::Installing)
        {
            // The answer would be for another specification: begin again.
            run.request = Request::None;
            run.spec = None;
        }
        let key = StepKey::Certificate(spec.name.clone());
        match &mut run.request {
            Request::None => {
                if let Some(cause) = needed
                    && self.link_view.connected()
                    && self.free(&key)
                {
                    run.cause = cause;
                    run.spec = Some(wanted);
                    run.files = Some(files_of(spec));
                    run.request = Request::MakingKey;
                    self.run(Step::MakeKey { certificate: spec.name.clone() });
                }
            }
            Request::MakingKey | Request::Installing => {}
            Request::Asked { signing_request, sent_at } => {
                let message = ToCoordinator::SignCertificate {
                    name: spec.name.clone(),
                    generation: config.generation,
                    signing_request: signing_request.clone(),
                };
                self.ask(sent_at, message);
            }
            Request::Refused { retry_at } if *retry_at <= self.now.mono => run.request = Request::None,
            Request::Refused { retry_at } => {
                let retry_at = *retry_at;
                self.wake_at(retry_at);
            }
        }
        if let Some(validity) = run.validity() {
            self.wake_by_wall(validity.renew_at());
        }
    }

    fn ask(&mut self, sent_at: &mut Option<MonoTime>, message: ToCoordinator) {
        let due = sent_at.map_or(self.now.mono, |at| at.plus(ANSWER_TIMEOUT));
        if self.link_view.connected() && due <= self.now.mono {
            *sent_at = Some(self.now.mono);
            self.push(Action::Send(message));
        }
    }

    fn wake_by_wall(&mut self, at: WallTime) {
        let wait = at.since(self.corrected_now().wall);
        if !wait.is_zero() {
            self.wake_at(self.now.mono.plus(wait));
        }
    }

    /// A new session: whatever was asked in the last one is asked again.
    pub(crate) fn requests_again(&mut self) {
        let requests = self.certificates.values_mut().map(|run| &mut run.request);
        for request in requests.chain([&mut self.link.request]) {
            match request {
                Request::Asked { sent_at, .. } => *sent_at = None,
                Request::Refused { .. } => *request = Request::None,
                Request::None | Request::MakingKey | Request::Installing => {}
            }
        }
    }

    pub(crate) fn certificate_came(&mut self, name: &str, chain: Vec<Vec<u8>>) {
        let Some(run) = self.certificates.get_mut(name) else { return };
        // An answer that nobody waits for belongs to a key that is gone.
        let Request::Asked { .. } = run.request else { return };
        let Some(files) = run.files.clone() else { return };
        run.request = Request::Installing;
        // Until it is known which one is there, it is none.
        if self.ledger.certificates.get(name).is_some_and(|held| Some(held) != run.spec.as_ref()) {
            self.ledger.certificates.remove(name);
            self.persist_now();
        }
        self.run(Step::InstallCertificate { files, chain });
    }

    pub(crate) fn certificate_refused(&mut self, name: &str, why: &str) {
        let now = self.now.mono;
        let Some(run) = self.certificates.get_mut(name) else { return };
        let Request::Asked { .. } = run.request else { return };
        run.refusals.failures += 1;
        let delay = run.refusals.delay();
        run.request = Request::Refused { retry_at: now.plus(delay) };
        let news = run.refused.as_deref() != Some(why);
        run.refused = Some(why.to_owned());
        if news {
            let outcome = format!("asked again in {} s", delay.as_secs());
            self.note(EventKind::CertificateRefused, name, why, &outcome);
        }
    }

    /// Names of certificates that are being written.
    pub(crate) fn certificates_changing(&self) -> impl Iterator<Item = &String> {
        self.certificates.iter().filter(|(_, run)| run.is_being_written()).map(|(name, _)| name)
    }

    pub(crate) fn certificate_done(&mut self, name: &str, result: Result<StepOutput, String>) {
        let now = self.now.mono;
        // A renewal changes nothing that a unit is started anew for.
        let renewed = |run: &CertificateRun| self.ledger.certificates.get(name) == run.spec.as_ref();
        if self.certificates.get(name).is_some_and(|run| run.is_being_written() && !renewed(run)) {
            self.inputs_touched(|input| input == name);
        }
        let Some(run) = self.certificates.get_mut(name) else { return };
        match (&run.request, result) {
            (Request::MakingKey, Ok(StepOutput::SigningRequest(signing_request))) => {
                run.request = Request::Asked { signing_request, sent_at: None };
            }
            (Request::Installing, Ok(StepOutput::Installed(validity))) => {
                run.request = Request::None;
                run.came_at = Some(now);
                run.refusals = Backoff::default();
                run.refused = None;
                run.seen = Some(CertificateSeen::Held(validity));
                let cause = std::mem::take(&mut run.cause);
                let spec = run.spec.take();
                if let Some(spec) = spec {
                    self.ledger.certificates.insert(name.to_owned(), spec);
                }
                self.look_again(Class::Certificates);
                self.note(EventKind::CertificateIssued, name, &cause, "written");
            }
            _ => {
                run.request = Request::None;
                run.spec = None;
                self.look_again(Class::Certificates);
            }
        }
    }

    /// Whether the certificate is there, belongs to its key, and was issued for what is wanted now.
    pub(crate) fn holds_certificate(&self, desired: &Desired, name: &str) -> bool {
        let held = self.certificates.get(name).and_then(CertificateRun::validity);
        // An expired one counts as held: a unit that reads it can only tell its own story, and renewal is under way.
        held.is_some() && self.ledger.certificates.get(name) == desired.certificates.get(name)
    }

    pub(crate) fn reconcile_link(&mut self) {
        let Some(validity) = self.link.identity else { return };
        let mut request = std::mem::take(&mut self.link.request);
        match &mut request {
            Request::None => {
                let due =
                    is_due(validity, self.link.came_at, self.corrected_now()) && self.link_view.connected();
                if due && self.free(&StepKey::Link) {
                    request = Request::MakingKey;
                    self.run(Step::MakeLinkKey);
                }
            }
            Request::Asked { signing_request, sent_at } => {
                let message = ToCoordinator::RenewLink { signing_request: signing_request.clone() };
                self.ask(sent_at, message);
            }
            Request::MakingKey | Request::Installing | Request::Refused { .. } => {}
        }
        self.link.request = request;
    }

    pub(crate) fn link_came(&mut self, chain: Vec<Vec<u8>>) {
        if let Request::Asked { .. } = self.link.request {
            self.link.request = Request::Installing;
            self.run(Step::InstallLink { chain });
        }
    }

    pub(crate) fn link_done(&mut self, result: Result<StepOutput, String>) {
        self.link.request = match (&self.link.request, result) {
            (Request::MakingKey, Ok(StepOutput::SigningRequest(signing_request))) => {
                Request::Asked { signing_request, sent_at: None }
            }
            (Request::Installing, Ok(StepOutput::Installed(validity))) => {
                self.link.identity = Some(validity);
                self.link.came_at = Some(self.now.mono);
                self.note(EventKind::CertificateIssued, "link", "two thirds of its life are over", "written");
                Request::None
            }
            _ => Request::None,
        };
    }
}

fn files_of(spec: &CertificateSpec) -> CertificateFiles {
    CertificateFiles {
        name: spec.name.clone(),
        certificate_path: spec.certificate_path.clone(),
        key_path: spec.key_path.clone(),
    }
}
