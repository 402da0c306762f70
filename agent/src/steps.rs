//! Carries out steps: those of the machine by the host, those of link, balancer and peers here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use keelson_agent_core::{Event, Step, StepOutput};
use keelson_host::Host;
use keelson_protocol::errors::chain;
use keelson_protocol::{Incarnation, MachineId, SecretBytes};
use keelson_transport::{Identity, key_request_of, make_key_request};
use tokio::sync::mpsc;

use crate::balancer::Balancer;
use crate::identity::IdentityFiles;
use crate::peers::{Me, Responder};
use crate::shell::Input;

/// The hands of the shell.
pub(crate) struct Steps {
    host: Arc<Host>,
    files: IdentityFiles,
    machine: MachineId,
    incarnation: Incarnation,
    /// Key of the next link certificate, until that is installed. In memory only: the old certificate still holds. A new one
    /// for each try would make the coordinator forget the one that the machine has.
    link_key: Arc<Mutex<Option<SecretBytes>>>,
    balancer: Arc<tokio::sync::Mutex<Balancer>>,
    responder: Arc<tokio::sync::Mutex<Responder>>,
}

impl Steps {
    pub(crate) fn new(host: Arc<Host>, link: PathBuf, machine: MachineId, incarnation: Incarnation) -> Self {
        let responder = Responder::new(Me { machine: machine.clone(), incarnation });
        Self {
            balancer: Arc::new(tokio::sync::Mutex::new(Balancer::new(Arc::clone(&host)))),
            host,
            files: IdentityFiles::new(link),
            machine,
            incarnation,
            link_key: Arc::default(),
            responder: Arc::new(tokio::sync::Mutex::new(responder)),
        }
    }

    pub(crate) fn host(&self) -> Arc<Host> {
        Arc::clone(&self.host)
    }

    /// Begins a step; its end comes as an input.
    pub(crate) fn run(&self, step: Step, inputs: &mpsc::Sender<Input>) {
        let (key, limit) = (step.key(), step.timeout());
        let work = self.work(step);
        let inputs = inputs.clone();
        tokio::spawn(async move {
            let (result, identity) = match tokio::time::timeout(limit, work).await {
                Ok(Ok((output, identity))) => (Ok(output), identity),
                Ok(Err(why)) => (Err(why), None),
                Err(_) => (Err(format!("it was not done within {} s", limit.as_secs())), None),
            };
            if let Some(identity) = identity {
                let _ = inputs.send(Input::NewIdentity(identity)).await;
            }
            // When the loop has ended, nobody waits for the answer.
            let _ = inputs.send(Input::Event(Event::StepDone { key, result })).await;
        });
    }

    fn work(
        &self,
        step: Step,
    ) -> impl Future<Output = Result<(StepOutput, Option<Identity>), String>> + Send + 'static {
        let host = Arc::clone(&self.host);
        let balancer = Arc::clone(&self.balancer);
        let responder = Arc::clone(&self.responder);
        let link_key = Arc::clone(&self.link_key);
        let files = self.files.clone();
        let (machine, incarnation) = (self.machine.clone(), self.incarnation);
        async move {
            match step {
                Step::Balance(spec) => {
                    balancer.lock().await.apply(spec).await.map_err(|error| chain(&error))?;
                    Ok((StepOutput::Done, None))
                }
                Step::AnswerPeers(channel) => {
                    responder.lock().await.apply(channel).await.map_err(|error| chain(&error))?;
                    Ok((StepOutput::Done, None))
                }
                Step::MakeLinkKey => {
                    let mut kept = link_key.lock().expect("no holder of this lock panics");
                    let request = kept.as_ref().map_or_else(make_key_request, key_request_of);
                    let request = request.map_err(|error| chain(&error))?;
                    *kept = Some(request.key);
                    Ok((StepOutput::SigningRequest(request.signing_request), None))
                }
                Step::InstallLink { chain } => {
                    let key = link_key.lock().expect("no holder of this lock panics").clone();
                    let key = key.ok_or("no key is kept for the link certificate")?;
                    let install = move || install_link(&files, chain, key, &machine, incarnation);
                    let installed = tokio::task::spawn_blocking(install).await;
                    let installed = installed.map_err(|_| "the work was given up".to_owned())??;
                    *link_key.lock().expect("no holder of this lock panics") = None;
                    Ok(installed)
                }
                other => host.run(other).await.map(|output| (output, None)).map_err(|error| error.chain()),
            }
        }
    }
}

fn install_link(
    files: &IdentityFiles,
    certificates: Vec<Vec<u8>>,
    key: SecretBytes,
    machine: &MachineId,
    incarnation: Incarnation,
) -> Result<(StepOutput, Option<Identity>), String> {
    let identity = Identity { chain: certificates, key };
    let validity = files.install(&identity, None, machine, incarnation).map_err(|error| chain(&error))?;
    Ok((StepOutput::Installed(validity), Some(identity)))
}
