//! Carries out steps: those of the machine by the host, those of link, balancer and peers here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_agent_core::{Event, Step, StepOutput, Validity};
use keelson_host::Host;
use keelson_protocol::errors::chain;
use keelson_protocol::{Incarnation, MachineId, SecretBytes, WallTime};
use keelson_transport::{Identity, key_request_of, make_key_request};
use tokio::sync::mpsc;

use crate::balancer::Balancer;
use crate::clock;
use crate::identity::{self, IdentityFiles};
use crate::peers::{Me, Responder};
use crate::shell::Input;

/// The hands of the shell.
pub(crate) struct Steps {
    host: Arc<Host>,
    link: NextLink,
    balancer: Arc<tokio::sync::Mutex<Balancer>>,
    responder: Arc<tokio::sync::Mutex<Responder>>,
}

impl Steps {
    pub(crate) fn new(host: Arc<Host>, link: PathBuf, machine: MachineId, incarnation: Incarnation) -> Self {
        let responder = Responder::new(Me { machine: machine.clone(), incarnation });
        Self {
            balancer: Arc::new(tokio::sync::Mutex::new(Balancer::new(Arc::clone(&host)))),
            host,
            link: NextLink {
                files: IdentityFiles::new(link),
                machine,
                incarnation,
                key: Arc::default(),
                unwritten: Arc::default(),
                writing: Arc::default(),
            },
            responder: Arc::new(tokio::sync::Mutex::new(responder)),
        }
    }

    pub(crate) fn host(&self) -> Arc<Host> {
        Arc::clone(&self.host)
    }

    /// Begins a step; its end comes as an input.
    pub(crate) fn run(&self, step: Step, inputs: &mpsc::Sender<Input>) {
        let (key, limit) = (step.key(), step.timeout());
        let work = self.work(step, inputs.clone());
        let inputs = inputs.clone();
        tokio::spawn(async move {
            let result = tokio::time::timeout(limit, work).await;
            let result =
                result.unwrap_or_else(|_| Err(format!("it was not done within {} s", limit.as_secs())));
            // When the loop has ended, nobody waits for the answer.
            let _ = inputs.send(Input::Event(Event::StepDone { key, result })).await;
        });
    }

    fn work(
        &self,
        step: Step,
        inputs: mpsc::Sender<Input>,
    ) -> impl Future<Output = Result<StepOutput, String>> + Send + 'static {
        let host = Arc::clone(&self.host);
        let balancer = Arc::clone(&self.balancer);
        let responder = Arc::clone(&self.responder);
        let link = self.link.clone();
        async move {
            match step {
                Step::Balance(spec) => {
                    balancer.lock().await.apply(spec).await.map_err(|error| chain(&error))?;
                    Ok(StepOutput::Done)
                }
                Step::AnswerPeers(channel) => {
                    responder.lock().await.apply(channel).await.map_err(|error| chain(&error))?;
                    Ok(StepOutput::Done)
                }
                Step::MakeLinkKey => link.make_key(),
                Step::InstallLink { chain } => link.install(chain, clock::wall(), &inputs).await,
                other => host.run(other).await.map_err(|error| error.chain()),
            }
        }
    }
}

/// The next link certificate of this machine.
#[derive(Debug, Clone)]
struct NextLink {
    files: IdentityFiles,
    machine: MachineId,
    incarnation: Incarnation,
    /// Its key, until it is on disk. In memory only: the old certificate still holds. A new one for each try would make the
    /// coordinator forget the one that the machine has.
    key: Arc<Mutex<Option<SecretBytes>>>,
    /// How long the one is valid that is used and that the disk has not taken.
    unwritten: Arc<Mutex<Option<Validity>>>,
    /// Held by the one that writes: on a disk that hangs the next try waits here, and takes no other thread.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl NextLink {
    fn key(&self) -> MutexGuard<'_, Option<SecretBytes>> {
        self.key.lock().expect("no holder of this lock panics")
    }

    fn make_key(&self) -> Result<StepOutput, String> {
        let mut kept = self.key();
        let request = kept.as_ref().map_or_else(make_key_request, key_request_of);
        let request = request.map_err(|error| chain(&error))?;
        *kept = Some(request.key);
        Ok(StepOutput::SigningRequest(request.signing_request))
    }

    /// Uses a certificate, and writes it down. It is used also when the disk does not take it: without it the machine would be
    /// cut off when the old one is over, and it is asked for again until it is on disk.
    async fn install(
        self,
        certificates: Vec<Vec<u8>>,
        now: WallTime,
        inputs: &mpsc::Sender<Input>,
    ) -> Result<StepOutput, String> {
        let key = self.key().clone().ok_or("no key is kept for the link certificate")?;
        let identity = Identity { chain: certificates, key };
        let validity = identity::check(&identity, &self.machine, self.incarnation);
        let validity = validity.map_err(|error| chain(&error))?;
        if self.is_used(validity, now) {
            // When the loop has ended, nobody has a link any more.
            let _ = inputs.send(Input::NewIdentity(identity.clone())).await;
        }
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let link = self.clone();
        let write = move || {
            let _turn = turn;
            link.files
                .install(&identity, None, &link.machine, link.incarnation)
                .map_err(|error| chain(&error))
        };
        let written = tokio::task::spawn_blocking(write).await;
        let validity = written.map_err(|_| "the work was given up".to_owned())??;
        *self.key() = None;
        *self.unwritten.lock().expect("no holder of this lock panics") = None;
        Ok(StepOutput::Installed(validity))
    }

    /// Whether a new certificate is to be used at once. To change it moves the session, which ends the shell of whoever looks
    /// after the disk: not while the last one that could not be written has half its life before it.
    fn is_used(&self, new: Validity, now: WallTime) -> bool {
        let mut unwritten = self.unwritten.lock().expect("no holder of this lock panics");
        let half = new.not_after.since(now) / 2;
        let fresh = unwritten.is_some_and(|used| used.not_after.since(now) > half);
        if !fresh {
            *unwritten = Some(new);
        }
        !fresh
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use std::time::Duration;

    use keelson_transport::LinkCa;

    use super::*;

    const NOW: WallTime = WallTime(1_700_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_link_certificate_that_the_disk_does_not_take_is_used_and_asked_for_with_the_same_key() {
        let root = tempfile::tempdir().unwrap();
        let link = NextLink {
            files: IdentityFiles::new(root.path().join("link")),
            machine: MachineId::new("demo-worker-1").unwrap(),
            incarnation: Incarnation(1),
            key: Arc::default(),
            unwritten: Arc::default(),
            writing: Arc::default(),
        };
        // Nothing can be made where a folder would have to be.
        std::fs::write(root.path().join("link"), "").unwrap();
        let ca = LinkCa::generate("test", NOW, 100 * HOUR).unwrap();
        let (inputs, mut told) = mpsc::channel(8);
        let mut keys = Vec::new();
        let minute = Duration::from_secs(60);
        for (later, is_used, disk_takes_it) in
            [(0, true, false), (1, false, false), (40, true, false), (41, false, true), (42, true, true)]
        {
            if disk_takes_it {
                let _ = std::fs::remove_file(root.path().join("link"));
            }
            let StepOutput::SigningRequest(request) = link.make_key().unwrap() else { panic!("no request") };
            let now = NOW.plus(later * minute);
            let chain = ca.sign_machine(&request, &link.machine, Incarnation(1), now, HOUR).unwrap();
            let installed = link.clone().install(chain.clone(), now, &inputs).await;
            assert_eq!(installed.is_ok(), disk_takes_it, "{later}: {installed:?}");
            assert_eq!(link.key().is_none(), disk_takes_it);
            match told.try_recv() {
                Ok(Input::NewIdentity(identity)) if is_used => {
                    assert_eq!(identity.chain, chain);
                    keys.push(identity.key);
                }
                Err(_) if !is_used => {}
                _ => panic!("{later} minutes later"),
            }
        }
        assert!(keys[0] == keys[1] && keys[1] != keys[2]);
    }
}
