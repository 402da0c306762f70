//! A machine's operating system: files, systemd, certificates, routes. What its programs mean is elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use keelson_agent_core::{
    Active, CertificateSeen, Digest, FileSeen, Invocation, Ledger, LedgerError, LedgerFound, Observation,
    PeerChannel, Query, Step, StepOutput, UNIT_DIRECTORY, UnitSeen, Validity,
};
use keelson_model::etcd::MemberId;
use keelson_protocol::config::{BalancerSpec, RouteSpec};
use keelson_protocol::health::Pressure;
use keelson_protocol::{SecretBytes, WallTime};

/// Used part of a disk, in percent.
const DISK_USED_PERCENT: u8 = 20;
/// The same of a full one.
const DISK_FULL_PERCENT: u8 = 100;

/// How a program ends that somebody else ends.
pub(crate) const KILLED: &str = "it was killed by signal 9";

/// What survives a reboot, and is gone with the disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) ledger: Option<SecretBytes>,
    /// Validity of the link certificate.
    pub(crate) identity: Option<Validity>,
    /// The key that the machine enrols with; zero until it made one.
    pub(crate) key: u64,
    files: BTreeMap<String, (Digest, u32)>,
    certificates: BTreeMap<String, Validity>,
    /// The etcd member whose data lie here.
    pub(crate) etcd: Option<MemberId>,
    pub(crate) full: bool,
}

/// From one key of a link to the next: odd, so that no two are the same.
const NEXT_KEY: u64 = 0x5851_F42D_4C95_7F2D;

/// What is gone at a reboot.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The ledger that a full disk did not take.
    pub(crate) ledger: Option<SecretBytes>,
    /// Unit files, and what systemd would make of them.
    unit_files: BTreeMap<String, (Digest, u32, UnitFile)>,
    units: BTreeMap<String, Unit>,
    /// What the last look at units found; `None` when one has changed since.
    seen: Option<UnitsLook>,
    routes: BTreeSet<RouteSpec>,
    /// The key that the next link certificate is for.
    next_key: Option<u64>,
    pub(crate) balancer: Option<BalancerSpec>,
    /// How its agent answers peers.
    pub(crate) peers: Option<PeerChannel>,
    next_invocation: u128,
}

/// The units that were asked about, and what was seen of them, in that order.
type UnitsLook = (Arc<[String]>, Arc<[UnitSeen]>);

/// What matters of a unit file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnitFile {
    pub(crate) oneshot: bool,
    /// It says itself when it has started.
    notifies: bool,
    /// Flags of an etcd member.
    pub(crate) etcd: Option<EtcdFlags>,
    /// Where an API server looks for etcd.
    pub(crate) etcd_servers: Vec<Ipv4Addr>,
}

/// How an etcd member was told to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcdFlags {
    pub(crate) name: String,
    /// Names and addresses of `--initial-cluster`.
    pub(crate) members: BTreeMap<Ipv4Addr, String>,
    pub(crate) founding: bool,
}

/// A unit as systemd has it.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    /// What systemd read last; `None` when its file is gone.
    loaded: Option<UnitFile>,
    /// Where its program, an API server, looks for etcd: the flags that it was started with.
    pub(crate) etcd_servers: Vec<Ipv4Addr>,
    pub(crate) state: UnitState,
    invocation: Option<Invocation>,
    /// Changes with everything that happens to it, so that timers of an earlier state are told apart.
    pub(crate) serial: u32,
    /// It has said that it has started.
    notified: bool,
    /// It runs and answers nobody.
    pub(crate) hung: bool,
    ended: String,
}

/// What a unit does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum UnitState {
    /// Nothing.
    #[default]
    Stopped,
    /// Its program runs and does not serve yet.
    Starting,
    /// Its program serves.
    Serving,
    /// A oneshot ended with success.
    Done,
    /// It ended; systemd will start it again.
    Again,
}

/// A disk and what is in memory.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) disk: Disk,
    pub(crate) memory: Memory,
}

impl Host {
    /// An agent that is started reads its ledger.
    pub(crate) fn read_ledger(&self) -> LedgerFound {
        let read = |bytes: &SecretBytes| Ledger::decode(bytes.expose_secret()).map(Box::new);
        match (&self.memory.ledger, &self.disk.ledger) {
            (None, None) => LedgerFound::Absent,
            (Some(bytes), _) => read(bytes).map_or_else(set_aside, LedgerFound::InMemory),
            (None, Some(bytes)) => read(bytes).map_or_else(set_aside, LedgerFound::Intact),
        }
    }

    /// An agent writes its ledger.
    pub(crate) fn write_ledger(&mut self, bytes: SecretBytes) -> Result<(), String> {
        if self.disk.full {
            self.memory.ledger = Some(bytes);
            return Err("no space left on device".to_owned());
        }
        (self.disk.ledger, self.memory.ledger) = (Some(bytes), None);
        Ok(())
    }
}

fn set_aside(error: LedgerError) -> LedgerFound {
    LedgerFound::SetAside { why: error.to_string() }
}

/// Something that a step did to a unit, for the world to play on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UnitNews {
    Started(String),
    Stopped(String),
}

impl Host {
    /// All that a reboot leaves.
    pub(crate) fn reboot(&mut self) {
        self.memory = Memory::default();
    }

    /// Whether a unit's program serves.
    pub(crate) fn serves(&self, unit: &str) -> bool {
        self.memory.units.get(unit).is_some_and(|unit| unit.state == UnitState::Serving && !unit.hung)
    }

    /// A program that shall last, and does not serve.
    pub(crate) fn first_down(&self) -> Option<&str> {
        let lasts = |unit: &Unit| unit.loaded.as_ref().is_some_and(|file| !file.oneshot);
        let mut down = self.memory.units.iter().filter(|(name, unit)| lasts(unit) && !self.serves(name));
        down.next().map(|(name, _)| name.as_str())
    }

    /// The present run of a unit, while it serves.
    pub(crate) fn run_of(&self, unit: &str) -> Option<Invocation> {
        self.memory.units.get(unit).filter(|unit| unit.state == UnitState::Serving)?.invocation
    }

    pub(crate) fn unit(&self, unit: &str) -> Option<&Unit> {
        self.memory.units.get(unit)
    }

    pub(crate) fn unit_mut(&mut self, unit: &str) -> Option<&mut Unit> {
        self.memory.seen = None;
        self.memory.units.get_mut(unit)
    }

    /// Units whose programs run, but oneshots.
    pub(crate) fn running(&self) -> Vec<String> {
        let lasting = self.memory.units.iter().filter(|(_, unit)| {
            matches!(unit.state, UnitState::Starting | UnitState::Serving) && !unit.is_oneshot()
        });
        lasting.map(|(name, _)| name.clone()).collect()
    }

    /// Starts a unit anew.
    pub(crate) fn start(&mut self, name: &str) -> Result<(), String> {
        self.memory.seen = None;
        let invocation = Invocation(self.memory.next_invocation + 1);
        let unit = self.memory.units.get_mut(name).filter(|unit| unit.loaded.is_some());
        let unit = unit.ok_or_else(|| format!("Unit {name} not found."))?;
        self.memory.next_invocation += 1;
        unit.invocation = Some(invocation);
        unit.etcd_servers = unit.loaded.iter().flat_map(|file| file.etcd_servers.iter().copied()).collect();
        unit.state = UnitState::Starting;
        unit.serial += 1;
        (unit.hung, unit.notified) = (false, false);
        Ok(())
    }

    /// Whether a unit's program serves and has not said so yet.
    pub(crate) fn is_unsaid(&self, unit: &str) -> bool {
        let unsaid = |unit: &Unit| unit.notifies() && !unit.notified;
        self.serves(unit) && self.memory.units.get(unit).is_some_and(unsaid)
    }

    /// A unit's program says that it has started.
    pub(crate) fn notify(&mut self, unit: &str) {
        self.unit_mut(unit).into_iter().for_each(|unit| unit.notified = true);
    }

    /// What a look sees.
    pub(crate) fn look(&mut self, query: Query) -> Observation {
        match query {
            Query::Units(names) => Observation::Units(self.units_seen(&names)),
            Query::Files(paths) => {
                let seen = |path: &String| (path.clone(), self.file_seen(path));
                Observation::Files(paths.iter().map(seen).collect())
            }
            Query::Certificates(pairs) => {
                let seen = |name: &str| match self.disk.certificates.get(name) {
                    Some(validity) => CertificateSeen::Held(*validity),
                    None => CertificateSeen::Missing { why: "it is not there".to_owned() },
                };
                Observation::Certificates(
                    pairs
                        .into_iter()
                        .map(|pair| (seen(&pair.name), pair.name))
                        .map(|(s, n)| (n, s))
                        .collect(),
                )
            }
            Query::Routes => Observation::Routes(self.memory.routes.clone()),
            Query::Pressure => Observation::Pressure(Pressure {
                disk_used_percent: if self.disk.full { DISK_FULL_PERCENT } else { DISK_USED_PERCENT },
                inodes_used_percent: 1,
                memory_available_percent: 60,
            }),
        }
    }

    /// Nearly every look finds what the last one found, and there is one each second: it is kept until a unit changes.
    fn units_seen(&mut self, names: &Arc<[String]>) -> Arc<[UnitSeen]> {
        match &self.memory.seen {
            Some((asked, seen)) if Arc::ptr_eq(asked, names) => Arc::clone(seen),
            _ => {
                let seen: Arc<[UnitSeen]> = names.iter().map(|name| self.unit_seen(name)).collect();
                self.memory.seen = Some((Arc::clone(names), Arc::clone(&seen)));
                seen
            }
        }
    }

    fn unit_seen(&self, name: &str) -> UnitSeen {
        let Some(unit) = self.memory.units.get(name) else {
            let (active, ended) = (Active::Stopped, String::new());
            return UnitSeen { active, invocation: None, ended, killed: false };
        };
        let (active, runs) = match unit.state {
            UnitState::Stopped => (Active::Stopped, false),
            UnitState::Starting if unit.is_oneshot() => (Active::Settling, false),
            UnitState::Starting | UnitState::Serving if unit.notifies() && !unit.notified => {
                (Active::Settling, false)
            }
            UnitState::Starting | UnitState::Serving => (Active::Running, true),
            UnitState::Done => (Active::Exited, true),
            UnitState::Again => (Active::AutoRestart, false),
        };
        let killed = unit.ended == KILLED;
        UnitSeen { active, invocation: unit.invocation.filter(|_| runs), ended: unit.ended.clone(), killed }
    }

    fn file_seen(&self, path: &str) -> FileSeen {
        let found = match path.strip_prefix(UNIT_DIRECTORY) {
            Some(unit) => {
                let file = self.memory.unit_files.get(unit.trim_start_matches('/'));
                file.map(|(digest, mode, _)| (*digest, *mode))
            }
            None => self.disk.files.get(path).copied(),
        };
        found.map_or(FileSeen::Absent, |(digest, mode)| FileSeen::Present { digest, mode })
    }

    /// Carries out a step. What it did to a unit is for the world to play on.
    pub(crate) fn carry_out(&mut self, step: Step) -> (Result<StepOutput, String>, Option<UnitNews>) {
        let (result, news) = match step {
            Step::WriteFiles(writes) => (Ok(self.write(writes)), None),
            Step::RemoveFiles(paths) => {
                paths.iter().for_each(|path| self.remove(path));
                (Ok(StepOutput::Done), None)
            }
            Step::Reload => {
                self.reload();
                (Ok(StepOutput::Done), None)
            }
            Step::Start { unit, .. } => {
                let up = |unit: &Unit| !matches!(unit.state, UnitState::Stopped | UnitState::Again);
                if self.memory.units.get(&unit).is_some_and(up) {
                    (Ok(StepOutput::Done), None)
                } else {
                    self.started(unit)
                }
            }
            Step::Restart { unit, .. } => self.started(unit),
            Step::Stop { unit } => {
                self.end(&unit, "it was stopped", UnitState::Stopped);
                (Ok(StepOutput::Done), Some(UnitNews::Stopped(unit)))
            }
            Step::MakeKey { certificate } => (Ok(StepOutput::SigningRequest(certificate.into_bytes())), None),
            Step::InstallCertificate { files, chain } => (self.install(files.name, &chain), None),
            Step::MakeLinkKey => {
                // Another one each time, of which this machine alone thinks.
                let next = self.memory.next_key.unwrap_or(self.disk.key).wrapping_mul(NEXT_KEY) | 1;
                self.memory.next_key = Some(next);
                (Ok(StepOutput::SigningRequest(next.to_be_bytes().to_vec())), None)
            }
            Step::InstallLink { .. } if self.disk.full => (Err("no space left on device".to_owned()), None),
            Step::InstallLink { chain } => {
                let validity = validity_in(&chain);
                if let (Some(validity), Some(key)) = (validity, self.memory.next_key) {
                    (self.disk.identity, self.disk.key) = (Some(validity), key);
                }
                (validity.map(StepOutput::Installed).ok_or_else(|| "no certificate".to_owned()), None)
            }
            Step::ChangeRoutes { add, remove } => {
                let routes = &mut self.memory.routes;
                routes.retain(|route| !remove.contains(route));
                routes.retain(|route| !add.iter().any(|new| new.destination == route.destination));
                routes.extend(add);
                (Ok(StepOutput::Done), None)
            }
            Step::Balance(spec) => {
                self.memory.balancer = spec;
                (Ok(StepOutput::Done), None)
            }
            // What remedies throw away is not simulated; a reboot is the world's.
            Step::Act { .. } => (Ok(StepOutput::Said("done".to_owned())), None),
            // The world's part.
            Step::PowerOff => (Ok(StepOutput::Done), None),
            Step::AnswerPeers(channel) => {
                self.memory.peers = channel;
                (Ok(StepOutput::Done), None)
            }
        };
        (result, news)
    }

    fn started(&mut self, unit: String) -> (Result<StepOutput, String>, Option<UnitNews>) {
        match self.start(&unit) {
            Ok(()) => (Ok(StepOutput::Done), Some(UnitNews::Started(unit))),
            Err(why) => (Err(why), None),
        }
    }

    /// Ends a unit's program.
    pub(crate) fn end(&mut self, name: &str, why: &str, then: UnitState) {
        self.memory.seen = None;
        if let Some(unit) = self.memory.units.get_mut(name) {
            unit.state = then;
            unit.serial += 1;
            why.clone_into(&mut unit.ended);
        }
    }

    fn install(&mut self, name: String, chain: &[Vec<u8>]) -> Result<StepOutput, String> {
        let validity = validity_in(chain).ok_or_else(|| "no certificate".to_owned())?;
        if self.disk.full {
            return Err("no space left on device".to_owned());
        }
        self.disk.certificates.insert(name, validity);
        Ok(StepOutput::Installed(validity))
    }

    fn write(&mut self, writes: Vec<keelson_agent_core::FileWrite>) -> StepOutput {
        let mut failed = Vec::new();
        for write in writes {
            match write.path.strip_prefix(UNIT_DIRECTORY) {
                Some(unit) => {
                    let file = UnitFile::read(&String::from_utf8_lossy(write.content.expose_secret()));
                    let name = unit.trim_start_matches('/').to_owned();
                    self.memory.unit_files.insert(name, (write.digest, write.mode, file));
                }
                None if self.disk.full => failed.push((write.path, "no space left on device".to_owned())),
                None => drop(self.disk.files.insert(write.path, (write.digest, write.mode))),
            }
        }
        StepOutput::Written { failed }
    }

    fn remove(&mut self, path: &str) {
        match path.strip_prefix(UNIT_DIRECTORY) {
            Some(unit) => drop(self.memory.unit_files.remove(unit.trim_start_matches('/'))),
            None => drop(self.disk.files.remove(path)),
        }
    }

    fn reload(&mut self) {
        let memory = &mut self.memory;
        memory.seen = None;
        for (name, unit) in &mut memory.units {
            unit.loaded = memory.unit_files.get(name).map(|(_, _, file)| file.clone());
        }
        memory.units.retain(|_, unit| unit.loaded.is_some() || unit.state != UnitState::Stopped);
        for (name, (_, _, file)) in &memory.unit_files {
            let unit = memory.units.entry(name.clone()).or_default();
            unit.loaded = Some(file.clone());
        }
    }
}

impl Unit {
    fn notifies(&self) -> bool {
        self.loaded.as_ref().is_some_and(|file| file.notifies)
    }

    pub(crate) fn is_oneshot(&self) -> bool {
        self.loaded.as_ref().is_some_and(|file| file.oneshot)
    }

    pub(crate) fn etcd_flags(&self) -> Option<&EtcdFlags> {
        self.loaded.as_ref()?.etcd.as_ref()
    }
}

impl UnitFile {
    /// Reads what the agent rendered: one argument on each line.
    fn read(text: &str) -> Self {
        let flag = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.map(|value| value.trim_end_matches('\\').trim().to_owned())
        };
        let etcd = || {
            let members = flag("--initial-cluster=")?;
            Some(EtcdFlags {
                name: flag("--name=")?,
                members: members.split(',').filter_map(member).collect(),
                founding: flag("--initial-cluster-state=")? == "new",
            })
        };
        let servers = flag("--etcd-servers=").unwrap_or_default();
        Self {
            oneshot: text.lines().any(|line| line == "Type=oneshot"),
            notifies: text.lines().any(|line| line == "Type=notify"),
            etcd: etcd(),
            etcd_servers: servers.split(',').filter_map(address).collect(),
        }
    }
}

/// A part of `--initial-cluster`: `name=https://address:port`.
fn member(text: &str) -> Option<(Ipv4Addr, String)> {
    let (name, url) = text.split_once('=')?;
    Some((address(url)?, name.to_owned()))
}

/// The address in `https://address:port`.
fn address(url: &str) -> Option<Ipv4Addr> {
    url.strip_prefix("https://")?.split(':').next()?.parse().ok()
}

/// The form of a certificate in this world: when it holds.
pub(crate) fn chain_of(validity: Validity) -> Vec<Vec<u8>> {
    vec![[validity.not_before.0.to_be_bytes(), validity.not_after.0.to_be_bytes()].concat()]
}

/// When the certificate holds that is in a chain of [`chain_of`].
pub(crate) fn validity_in(chain: &[Vec<u8>]) -> Option<Validity> {
    let (from, to) = chain.first()?.split_first_chunk::<8>()?;
    let to: [u8; 8] = to.try_into().ok()?;
    let wall = |bytes: [u8; 8]| WallTime(i64::from_be_bytes(bytes));
    Some(Validity { not_before: wall(*from), not_after: wall(to) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_etcd_are_read_from_its_unit_file() {
        let text = "[Service]\nType=notify\nExecStart=/opt/etcd \\\n    --name=demo-etcd-1 \\\n    \
            --initial-cluster=demo-etcd-1=https://10.0.0.1:2380,demo-etcd-2=https://10.0.0.2:2380 \\\n    \
            --initial-cluster-state=existing \\\n    --last=x\n";
        let flags = UnitFile::read(text).etcd.unwrap();
        assert_eq!(flags.name, "demo-etcd-1");
        assert_eq!(flags.members.len(), 2);
        assert!(!flags.founding);
    }

    #[test]
    fn where_an_api_server_looks_for_etcd_is_read_from_its_unit_file() {
        let text = "[Service]\nExecStart=/opt/kube-apiserver \\\n    \
            --etcd-servers=https://10.0.0.1:2379,https://10.0.0.2:2379 \\\n    --last=x\n";
        assert_eq!(UnitFile::read(text).etcd_servers, [Ipv4Addr::new(10, 0, 0, 1), [10, 0, 0, 2].into()]);
        assert_eq!(UnitFile::read("[Service]\nExecStart=/opt/etcd\n").etcd_servers, [] as [Ipv4Addr; 0]);
    }

    #[test]
    fn a_certificate_says_when_it_holds() {
        let validity = Validity { not_before: WallTime(5), not_after: WallTime(9) };
        assert_eq!(validity_in(&chain_of(validity)), Some(validity));
        assert_eq!(validity_in(&[]), None);
    }
}
