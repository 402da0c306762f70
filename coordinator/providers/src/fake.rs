//! An infrastructure in memory, for tests of everything that uses one. It keeps the same contract as the real ones and
//! is deterministic: it has no clock and no randomness, and fails exactly when it was told to.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keelson_protocol::{ClusterName, InstallId, MachineId};

use crate::{
    Answer, Call, Capabilities, ExposeRequest, Exposed, Fenced, MachineRequest, MachineState, MachineView,
    ObjectKey, Provider, ProviderError, ProviderFuture,
};

/// Ports that are given out when none is asked for: as the local provider's.
const FIRST_PORT: u16 = 16_443;

/// How long the list of calls becomes before old ones are forgotten. Long simulations make millions.
const CALLS_KEPT: usize = 4096;

/// Shape of a fake infrastructure.
#[derive(Debug, Clone)]
pub struct FakeConfig {
    /// The machines' network.
    pub network: (Ipv4Addr, u8),
    /// Its fault domains.
    pub zones: Vec<String>,
    /// Most machines in one zone; one more gives `StockOut`.
    pub machines_per_zone_max: Option<u32>,
    /// Most machines altogether; one more gives `Quota`.
    pub machines_max: Option<u32>,
    /// A list shows the machines as they were this many list calls earlier, as clouds' lists do.
    pub list_lag: usize,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            network: (Ipv4Addr::new(10, 210, 0, 0), 16),
            zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
            machines_per_zone_max: None,
            machines_max: None,
            list_lag: 0,
        }
    }
}

/// Kinds of [`Call`], to say which one an outcome is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the call of the same name")]
pub enum CallKind {
    CreateMachine,
    ListMachines,
    PowerOn,
    PowerOff,
    Reboot,
    Console,
    DeleteMachine,
    Fence,
    Rebuild,
    Expose,
    ListExposed,
    Unexpose,
}

impl CallKind {
    /// The kind of a call.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        match call {
            Call::CreateMachine(_) => Self::CreateMachine,
            Call::ListMachines(_) => Self::ListMachines,
            Call::PowerOn(_) => Self::PowerOn,
            Call::PowerOff(..) => Self::PowerOff,
            Call::Reboot(_) => Self::Reboot,
            Call::Console(_) => Self::Console,
            Call::DeleteMachine(_) => Self::DeleteMachine,
            Call::Fence(_) => Self::Fence,
            Call::Rebuild(_) => Self::Rebuild,
            Call::Expose(_) => Self::Expose,
            Call::ListExposed(_) => Self::ListExposed,
            Call::Unexpose(..) => Self::Unexpose,
        }
    }
}

/// What shall come of a call instead of success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing happens, and this is the answer.
    Fail(ProviderError),
    /// It takes effect, and the answer is lost: the caller sees `Unknown`.
    LoseAnswer,
    /// Creating a machine breaks off after its tag was written; other calls fail without effect.
    BreakOff,
}

#[derive(Debug, Clone)]
struct Machine {
    request: MachineRequest,
    state: MachineState,
    fenced: bool,
    disk: BTreeMap<String, String>,
}

impl Machine {
    fn view(&self) -> MachineView {
        MachineView {
            key: self.request.key.clone(),
            state: self.state,
            zone: self.request.zone.clone(),
            address: self.request.address,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<MachineId, Machine>,
    exposed: BTreeMap<(InstallId, ClusterName, String), (u16, Vec<SocketAddr>)>,
    outcomes: BTreeMap<CallKind, VecDeque<Outcome>>,
    calls: VecDeque<Call>,
    lists: VecDeque<Vec<MachineView>>,
}

/// The fake infrastructure. Shared by reference; every method is one atomic step.
#[derive(Debug, Default)]
pub struct FakeProvider {
    config: FakeConfig,
    state: Mutex<State>,
}

impl FakeProvider {
    /// An empty infrastructure.
    #[must_use]
    pub fn new(config: FakeConfig) -> Self {
        Self { config, state: Mutex::default() }
    }

    /// Makes the next call of this kind that has no outcome yet come out so.
    pub fn inject(&self, kind: CallKind, outcome: Outcome) {
        self.state().outcomes.entry(kind).or_default().push_back(outcome);
    }

    /// The calls so far, oldest first, the last few thousand.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.iter().cloned().collect()
    }

    /// Changes a machine's power behind everybody's back: a crash, a reboot from inside, a freeze. False when there is
    /// no such machine.
    pub fn set_state(&self, machine: &MachineId, to: MachineState) -> bool {
        self.state().machines.get_mut(machine).map(|m| m.state = to).is_some()
    }

    /// Loses a machine with its disk, and tells nobody. False when there is no such machine.
    pub fn lose(&self, machine: &MachineId) -> bool {
        self.state().machines.remove(machine).is_some()
    }

    /// Writes a file on a machine's disk. False when there is no such machine.
    pub fn write_disk(&self, machine: &MachineId, file: &str, text: &str) -> bool {
        let insert = |m: &mut Machine| drop(m.disk.insert(file.to_owned(), text.to_owned()));
        self.state().machines.get_mut(machine).map(insert).is_some()
    }

    /// Reads a file of a machine's disk.
    #[must_use]
    pub fn read_disk(&self, machine: &MachineId, file: &str) -> Option<String> {
        self.state().machines.get(machine)?.disk.get(file).cloned()
    }

    /// What a machine was asked to be, with what it is told at boot.
    #[must_use]
    pub fn request(&self, machine: &MachineId) -> Option<MachineRequest> {
        self.state().machines.get(machine).map(|m| m.request.clone())
    }

    /// A machine as it is at this moment, whatever a list that lags says.
    #[must_use]
    pub fn view(&self, machine: &MachineId) -> Option<MachineView> {
        self.state().machines.get(machine).map(Machine::view)
    }

    /// All machines as they are at this moment, whatever a list that lags says.
    #[must_use]
    pub fn views(&self) -> Vec<MachineView> {
        self.state().machines.values().map(Machine::view).collect()
    }

    /// What is exposed, and where it leads: cluster, name and targets.
    #[must_use]
    pub fn exposures(&self) -> Vec<(ClusterName, String, Vec<SocketAddr>)> {
        let exposed = &self.state().exposed;
        exposed
            .iter()
            .map(|((_, cluster, name), (_, targets))| (cluster.clone(), name.clone(), targets.clone()))
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a call at once: [`Provider::perform`] for callers without a runtime, as simulators are.
    ///
    /// # Errors
    /// As the contract says, or as it was injected.
    pub fn carry_out(&self, call: &Call) -> Result<Answer, ProviderError> {
        let mut state = self.state();
        state.calls.push_back(call.clone());
        if state.calls.len() > CALLS_KEPT {
            state.calls.pop_front();
        }
        let outcome = state.outcomes.get_mut(&CallKind::of(call)).and_then(VecDeque::pop_front);
        match (outcome, call) {
            (None, call) => state.apply(&self.config, call),
            (Some(Outcome::Fail(error)), _) => Err(error),
            (Some(Outcome::LoseAnswer), call) => {
                state.apply(&self.config, call)?;
                Err(ProviderError::Unknown { detail: "the answer was lost".to_owned() })
            }
            (Some(Outcome::BreakOff), Call::CreateMachine(request)) => {
                state.create(&self.config, request)?;
                if let Some(machine) = state.machines.get_mut(&request.key.machine) {
                    machine.state = MachineState::Creating;
                }
                Err(broken_off())
            }
            (Some(Outcome::BreakOff), _) => Err(broken_off()),
        }
    }
}

fn broken_off() -> ProviderError {
    ProviderError::Unavailable { detail: "the call broke off".to_owned() }
}

impl State {
    fn apply(&mut self, config: &FakeConfig, call: &Call) -> Result<Answer, ProviderError> {
        Ok(match call {
            Call::CreateMachine(request) => Answer::Machine(self.create(config, request)?),
            Call::ListMachines(install) => Answer::Machines(self.list(config, install)),
            Call::PowerOn(key) => {
                let machine = self.machine(key)?;
                machine.fenced = false;
                if machine.state != MachineState::Frozen {
                    machine.state = MachineState::On;
                }
                Answer::Machine(machine.view())
            }
            Call::PowerOff(key, _) => {
                self.machine(key)?.state = MachineState::Off;
                Answer::Done
            }
            Call::Reboot(key) => {
                let machine = self.machine(key)?;
                machine.state = MachineState::On;
                machine.fenced = false;
                Answer::Machine(machine.view())
            }
            Call::Console(key) => Answer::Console(format!("{} boots\n", self.machine(key)?.request.key)),
            Call::DeleteMachine(key) => {
                if self.machine(key).is_ok() {
                    self.machines.remove(&key.machine);
                }
                Answer::Done
            }
            Call::Fence(key) => {
                let machine = self.machine(key)?;
                machine.state = MachineState::Off;
                machine.fenced = true;
                Answer::Fenced(Fenced::proven(key.clone()))
            }
            Call::Rebuild(request) => {
                check_request(config, request)?;
                let machine = self.machine(&request.key)?;
                if matches!(machine.state, MachineState::On | MachineState::Frozen) {
                    let what = format!("machine {}", request.key);
                    return Err(ProviderError::Conflict { what, holder: "itself: it has power".to_owned() });
                }
                machine.request = (**request).clone();
                machine.state = MachineState::On;
                machine.fenced = false;
                Answer::Machine(machine.view())
            }
            Call::Expose(request) => Answer::Exposed(self.expose(request)?),
            Call::ListExposed(install) => Answer::AllExposed(
                self.exposed
                    .iter()
                    .filter(|((of, ..), _)| of == install)
                    .map(|((_, cluster, name), (port, _))| exposed(cluster, name, *port))
                    .collect(),
            ),
            Call::Unexpose(install, cluster) => {
                self.exposed.retain(|(of, whose, _), _| of != install || whose != cluster);
                Answer::Done
            }
        })
    }

    fn machine(&mut self, key: &ObjectKey) -> Result<&mut Machine, ProviderError> {
        self.machines
            .get_mut(&key.machine)
            .filter(|machine| machine.request.key == *key)
            .ok_or_else(|| ProviderError::NotFound { what: format!("machine {key}") })
    }

    fn create(
        &mut self,
        config: &FakeConfig,
        request: &MachineRequest,
    ) -> Result<MachineView, ProviderError> {
        check_request(config, request)?;
        match self.machines.get_mut(&request.key.machine) {
            Some(found) if found.request.key != request.key => {
                let what = format!("machine {}", request.key.machine);
                Err(ProviderError::Conflict { what, holder: found.request.key.to_string() })
            }
            Some(found)
                if (found.request.address, &found.request.zone) != (request.address, &request.zone) =>
            {
                let detail = format!("{} exists elsewhere", request.key);
                Err(ProviderError::Invalid { field: "address", detail })
            }
            Some(found) => {
                found.request = request.clone();
                if !found.fenced && found.state != MachineState::Frozen {
                    found.state = MachineState::On;
                }
                Ok(found.view())
            }
            None => self.make(config, request),
        }
    }

    fn make(&mut self, config: &FakeConfig, request: &MachineRequest) -> Result<MachineView, ProviderError> {
        if let Some(holder) = self.machines.values().find(|m| m.request.address == request.address) {
            let what = format!("address {}", request.address);
            return Err(ProviderError::Conflict { what, holder: holder.request.key.to_string() });
        }
        let full = |count: usize, most: Option<u32>| most.is_some_and(|most| count >= most as usize);
        if full(self.machines.len(), config.machines_max) {
            let detail = format!("{} machines are there", self.machines.len());
            return Err(ProviderError::Quota { what: "machines".to_owned(), detail });
        }
        let in_zone = self.machines.values().filter(|m| m.request.zone == request.zone).count();
        if full(in_zone, config.machines_per_zone_max) {
            let detail = format!("{in_zone} machines are there");
            return Err(ProviderError::StockOut { zone: request.zone.clone(), detail });
        }
        let machine = Machine {
            request: request.clone(),
            state: MachineState::On,
            fenced: false,
            disk: BTreeMap::new(),
        };
        let view = machine.view();
        self.machines.insert(request.key.machine.clone(), machine);
        Ok(view)
    }

    fn list(&mut self, config: &FakeConfig, install: &InstallId) -> Vec<MachineView> {
        let now = self.machines.values().map(Machine::view).collect();
        self.lists.push_back(now);
        if self.lists.len() > config.list_lag + 1 {
            self.lists.pop_front();
        }
        // Before the lag has passed, the list is what it was at the beginning: empty.
        let shown = if self.lists.len() > config.list_lag { self.lists.front() } else { None };
        shown.into_iter().flatten().filter(|view| view.key.install == *install).cloned().collect()
    }

    fn expose(&mut self, request: &ExposeRequest) -> Result<Exposed, ProviderError> {
        request.check.validate()?;
        let key = (request.install.clone(), request.cluster.clone(), request.name.clone());
        let own = self.exposed.get(&key).map(|(port, _)| *port);
        let holder = |port| self.exposed.iter().find(|(other, (held, _))| **other != key && *held == port);
        let port = match request.port.or(own) {
            Some(port) => port,
            None => (FIRST_PORT..).find(|port| holder(*port).is_none()).ok_or_else(|| {
                ProviderError::Quota { what: "ports".to_owned(), detail: "all are taken".to_owned() }
            })?,
        };
        if let Some(((_, cluster, name), _)) = holder(port) {
            let what = format!("port {port}");
            return Err(ProviderError::Conflict { what, holder: format!("{name} of cluster {cluster}") });
        }
        self.exposed.insert(key, (port, request.targets.clone()));
        Ok(exposed(&request.cluster, &request.name, port))
    }
}

fn exposed(cluster: &ClusterName, name: &str, port: u16) -> Exposed {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Exposed { cluster: cluster.clone(), name: name.to_owned(), address }
}

fn check_request(config: &FakeConfig, request: &MachineRequest) -> Result<(), ProviderError> {
    if !config.zones.contains(&request.zone) {
        let detail = format!("{} is none of {}", request.zone, config.zones.join(", "));
        return Err(ProviderError::Invalid { field: "zone", detail });
    }
    if request.address < first_address(config) {
        let detail = format!("{} is not for machines of this network", request.address);
        return Err(ProviderError::Invalid { field: "address", detail });
    }
    if request.metadata.machine != request.key.machine
        || request.metadata.incarnation != request.key.incarnation
    {
        let detail = "it names another machine than the key".to_owned();
        return Err(ProviderError::Invalid { field: "metadata", detail });
    }
    Ok(())
}

fn first_address(config: &FakeConfig) -> Ipv4Addr {
    (config.network.0.to_bits() + 10).into()
}

impl Provider for FakeProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "fake",
            zones: self.config.zones.clone(),
            network: self.config.network,
            first_address: first_address(&self.config),
            coordinator_address: (self.config.network.0.to_bits() + 1).into(),
            expose: true,
            keeps_disk: true,
            machines_max: self.config.machines_max,
        }
    }

    fn perform<'a>(&'a self, call: &'a Call, _deadline: Duration) -> ProviderFuture<'a, Answer> {
        Box::pin(async move { self.carry_out(call) })
    }

    fn bind_link(&self, port: u16) -> Result<UdpSocket, ProviderError> {
        let bind = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        bind().map_err(|error: std::io::Error| ProviderError::Conflict {
            what: format!("UDP port {port} of 127.0.0.1"),
            holder: format!("another program ({error})"),
        })
    }
}
