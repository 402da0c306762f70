//! `keelson wait`: until a cluster or an operation is where it should be.

use keelson_api::types::{API_VERSION, ClusterState, ClusterView, MachineState, MachineStep};
use keelson_api::{Code, ExitCode, Problem};
use serde_json::json;

use super::cluster::path;
use super::{Work, delete, operation};
use crate::args::{AwaitArgs, Awaited, AwaitedState};
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::progress::{self, Progress, Subject, Verdict, needs_person};
use crate::tree::machine_condition;

/// `keelson wait`.
pub(super) async fn run(work: &mut Work<'_>, args: &AwaitArgs) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match &args.what {
        Awaited::Operation(id) => {
            if args.until.is_some() {
                return Err(Failure::usage(
                    "--for is for clusters: an operation is waited for until it ends",
                ));
            }
            let ended = operation::watch(work, &mut client, id, args.timeout).await?;
            operation::result(work, &ended);
        }
        Awaited::Cluster(name) => {
            let until = args.until.unwrap_or(AwaitedState::Ready);
            let subject = ClusterSubject { name, until };
            let mode = work.global.progress;
            let ended = progress::wait(&mut client, work.session, &subject, mode, args.timeout).await?;
            print(work, &mut client, name, ended).await;
        }
    }
    Ok(ExitCode::Done)
}

async fn print(work: &mut Work<'_>, client: &mut Client, name: &str, ended: Option<ClusterView>) {
    let names = [format!("cluster/{name}")];
    match ended {
        Some(cluster) => work.output().document(&cluster, &names, |_| format!("cluster {name} is ready\n")),
        None => {
            delete::forget_kubeconfig(work, client, name).await;
            let document = json!({ "apiVersion": API_VERSION, "kind": "ClusterDeleted", "cluster": name });
            work.output().document(&document, &names, |_| format!("cluster {name} is gone\n"));
        }
    }
}

/// A cluster that is waited for. `None` is what a cluster that is gone gives back.
struct ClusterSubject<'a> {
    name: &'a str,
    until: AwaitedState,
}

impl Subject for ClusterSubject<'_> {
    type View = ClusterView;
    type Done = Option<ClusterView>;

    fn call(&self) -> Call {
        Call::get(path(self.name))
    }

    fn progress(&self, view: &ClusterView) -> Progress {
        let status = &view.status;
        let step = |machine: &keelson_api::types::MachineSummary| {
            let wait = status.waiting.iter().find(|wait| wait.machine.as_deref() == Some(&machine.id));
            MachineStep {
                machine: machine.id.clone(),
                role: machine.role.clone(),
                step: wait.map_or_else(|| machine.state.to_string(), |wait| wait.text.clone()),
                status: machine_condition(machine.state),
                since: wait.map_or_else(|| machine.since.unwrap_or(status.created), |wait| wait.since),
                ends_when: wait
                    .filter(|_| machine.state != MachineState::Ready)
                    .map(|wait| wait.ends_when.clone()),
            }
        };
        Progress {
            title: format!("cluster {}", self.name),
            state: status.state.to_string(),
            created: status.created,
            ended: None,
            machines: status.machines.iter().map(step).collect(),
            waiting: status.waiting.clone(),
        }
    }

    fn verdict(&self, read: Result<ClusterView, Failure>) -> Verdict<Option<ClusterView>> {
        let view = match read {
            Ok(view) => view,
            Err(failure) => {
                let gone = failure.code() == Some(Code::ClusterNotFound);
                let wanted = gone && self.until == AwaitedState::Deleted;
                return Verdict::Ended(if wanted { Ok(None) } else { Err(failure) });
            }
        };
        let (name, state) = (self.name, view.status.state);
        let blocked = view.status.waiting.iter().any(|wait| wait.needs_person);
        let fails = |code: Code, what: String| {
            let problem = Problem::new(code, what)
                .remedy(format!("do what the reason says: keelson cluster show {name} --explain"));
            Verdict::Ended(Err(needs_person(problem, &view.status.waiting).into()))
        };
        match (self.until, state) {
            (AwaitedState::Ready, ClusterState::Ready) => Verdict::Ended(Ok(Some(view))),
            (AwaitedState::Ready, ClusterState::Deleting) => {
                fails(Code::ClusterNotThere, format!("cluster {name} is being removed"))
            }
            // A cluster that nobody removes yet may still be removed: that is waited for too.
            (AwaitedState::Deleted, state) if state != ClusterState::Deleting => Verdict::Waits,
            _ if blocked => {
                fails(Code::OperationBlocked, format!("cluster {name} is {state} and waits for a person"))
            }
            (_, ClusterState::Failed) => fails(Code::ClusterNotThere, format!("cluster {name} has failed")),
            _ => Verdict::Waits,
        }
    }

    fn name(&self) -> String {
        format!("the way of cluster {}", self.name)
    }

    fn path(&self) -> String {
        path(self.name)
    }

    fn again(&self) -> String {
        let until = match self.until {
            AwaitedState::Ready => "ready",
            AwaitedState::Deleted => "deleted",
        };
        format!("keelson wait cluster/{} --for {until}", self.name)
    }
}
