//! The fault bench: breaks machines, their network and their disks on purpose, for tests and for drills.
//!
//! It works on the installation in a state directory, beside the coordinator and without its knowledge, as real faults
//! do. What it cannot do: skew a machine's clock (the kernel has one wall clock for all containers) and lose a part of
//! the packets (no netem on the kernels we must run on).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keelson_protocol::MachineId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroups::Population;
use super::error::LocalError;
use super::files::{self, FileLock, wait_until};
use super::record::{self, MachineRecord};
use super::site::Site;
use super::{forwards, mounts, netns, runc};
use crate::{MachineState, PowerOff, ProviderError};

/// How long one act may take.
const ACT_WAIT: Duration = Duration::from_secs(30);

/// Most cuts in force at a time: more than any drill needs, few enough to look at.
const CUTS_MAX: usize = 256;

/// The nftables table inside the LAN's namespace that carries the cuts.
const TABLE: &str = "keelson_faults";

/// The file that fills a disk.
const FILL_FILE: &str = ".keelson-fill";

/// Bytes written at a time while filling; the last megabyte is filled in smaller steps.
const FILL_CHUNKS: [usize; 2] = [1024 * 1024, 4096];

/// One side of a cut.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// One machine.
    Machine(MachineId),
    /// All machines of a zone, as they are when the cut is made or [`FaultBench::refresh`] is called.
    Zone(String),
    /// The coordinator, and with it the forwards from outside.
    Coordinator,
    /// Everybody who is not on the other side.
    Rest,
}

/// Which packets a cut drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ways {
    /// Everything in both directions, as a pulled cable.
    Both,
    /// Everything from the first side to the second except address resolution (ARP), which needs both directions and
    /// would soon make of it a cut of both.
    OneWay,
}

/// A link that does not carry packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    /// Who sends.
    pub from: Side,
    /// Who does not receive.
    pub to: Side,
    /// Whether the other direction is cut as well.
    pub ways: Ways,
}

/// Breaks things in one installation.
#[derive(Debug)]
pub struct FaultBench {
    site: Site,
}

impl FaultBench {
    /// The bench of the installation in `state_dir`.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] when there is none.
    pub fn open(state_dir: &Path) -> Result<Self, ProviderError> {
        let state_dir = std::path::absolute(state_dir).map_err(LocalError::file("find", state_dir))?;
        match Site::load(&state_dir)? {
            Some(site) => Ok(Self { site }),
            None => {
                Err(ProviderError::NotFound { what: format!("an installation in {}", state_dir.display()) })
            }
        }
    }

    /// Kills every process of a machine at once, as a crash of its kernel would. Nobody is told.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, else what the host refused.
    pub fn kill(&self, machine: &MachineId) -> Result<(), ProviderError> {
        self.record(machine)?;
        Ok(self.site.cgroups.kill(machine, Instant::now() + ACT_WAIT)?)
    }

    /// The process of the forwarder; `None` while none runs.
    ///
    /// # Errors
    /// What the host refused.
    pub fn forwarder(&self) -> Result<Option<Pid>, ProviderError> {
        Ok(forwards::forwarder(&self.site.paths)?)
    }

    /// Kills the forwarder, which carries what is exposed. Nobody is told.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] when none runs, else what the host refused.
    pub fn kill_forwarder(&self) -> Result<(), ProviderError> {
        let pid =
            self.forwarder()?.ok_or_else(|| ProviderError::NotFound { what: "forwarder".to_owned() })?;
        let doing = format!("kill the forwarder (process {pid})");
        Ok(kill(pid, Signal::SIGKILL).map_err(LocalError::kernel(doing))?)
    }

    /// Stops every process of a machine; they keep their memory and their connections.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, else what the host refused.
    pub fn freeze(&self, machine: &MachineId) -> Result<(), ProviderError> {
        self.expect_state(machine, &[MachineState::On, MachineState::Frozen])?;
        let until = Instant::now() + ACT_WAIT;
        if self.site.cgroups.population(machine)? == Population::Running {
            runc::pause(&self.site.paths, machine, until)?;
        }
        self.wait_for(machine, Population::Frozen, until)
    }

    /// Lets a frozen machine go on.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, else what the host refused.
    pub fn thaw(&self, machine: &MachineId) -> Result<(), ProviderError> {
        self.expect_state(machine, &[MachineState::On, MachineState::Frozen])?;
        let until = Instant::now() + ACT_WAIT;
        if self.site.cgroups.population(machine)? == Population::Frozen {
            runc::resume(&self.site.paths, machine, until)?;
        }
        self.wait_for(machine, Population::Running, until)
    }

    /// Switches a machine off behind the coordinator's back.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, else what the host refused.
    pub fn power_off(&self, machine: &MachineId, how: PowerOff) -> Result<(), ProviderError> {
        let record = self.record(machine)?;
        Ok(self.site.power_off(&record.key, how, Instant::now() + ACT_WAIT)?)
    }

    /// Switches a machine on behind the coordinator's back.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, else what the host refused.
    pub fn power_on(&self, machine: &MachineId) -> Result<(), ProviderError> {
        let record = self.record(machine)?;
        self.site.power_on(&record.key, Instant::now() + ACT_WAIT)?;
        Ok(())
    }

    /// Removes a machine with its disk behind the coordinator's back, as an operator of the infrastructure does who
    /// thinks that nobody needs it.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, else what the host refused.
    pub fn vanish(&self, machine: &MachineId) -> Result<(), ProviderError> {
        let record = self.record(machine)?;
        Ok(self.site.delete(&record.key, Instant::now() + ACT_WAIT)?)
    }

    /// Exchanges a machine's disk, and what it is told at boot, for those in `with`, and leaves it without power: when it is
    /// switched on, it wakes as whoever had that disk before. Into an empty directory, which is made when it is absent, the
    /// disk goes, and the machine wakes with a blank one; what it is told stays then.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] without such a machine, [`ProviderError::Invalid`] when disks have a size of their own or
    /// `with` is on another file system, else what the host refused.
    pub fn exchange_disk(&self, machine: &MachineId, with: &Path) -> Result<(), ProviderError> {
        let until = Instant::now() + ACT_WAIT;
        if self.site.install.var_tmpfs_bytes.is_some() {
            let detail = "this machine's disk is in memory and cannot be taken out".to_owned();
            return Err(ProviderError::Invalid { field: "machine", detail });
        }
        let _lock = FileLock::acquire(&self.site.paths.machine_lock(machine), until)?;
        self.record(machine)?;
        self.site.cgroups.kill(machine, until)?;
        let paths = self.site.paths.machine(machine);
        files::make_dir(with)?;
        let blank = !with.join("var").exists();
        for (inside, name) in [(paths.var(), "var"), (paths.metadata(), "metadata")] {
            let (outside, aside) = (with.join(name), with.join(format!("{name}.new")));
            match blank {
                true if name == "metadata" => copy_files(&inside, &outside)?,
                true => move_directory(&inside, &outside)?,
                false => {
                    move_directory(&inside, &aside)?;
                    move_directory(&outside, &inside)?;
                    move_directory(&aside, &outside)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a cut in force, beside those that are.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] when a side is an unknown machine, `Invalid` for an unknown zone or a cut that cuts
    /// nothing, else what the host refused.
    pub fn cut(&self, cut: Cut) -> Result<(), ProviderError> {
        for side in [&cut.from, &cut.to] {
            self.ports(side)?;
        }
        if cut.from == cut.to || (carries_no_port(&cut.from) && carries_no_port(&cut.to)) {
            let detail = "a cut needs two different sides, one of them a machine or a zone".to_owned();
            return Err(ProviderError::Invalid { field: "cut", detail });
        }
        self.change(|cuts| {
            cuts.insert(cut);
        })
    }

    /// Takes one cut out of force; that it is not in force is success.
    ///
    /// # Errors
    /// What the host refused.
    pub fn mend(&self, cut: &Cut) -> Result<(), ProviderError> {
        self.change(|cuts| {
            cuts.remove(cut);
        })
    }

    /// Takes all cuts out of force.
    ///
    /// # Errors
    /// What the host refused.
    pub fn heal(&self) -> Result<(), ProviderError> {
        self.change(BTreeSet::clear)
    }

    /// Applies the cuts in force to the machines that are there now.
    ///
    /// # Errors
    /// What the host refused.
    pub fn refresh(&self) -> Result<(), ProviderError> {
        self.change(|_| {})
    }

    /// The cuts in force.
    ///
    /// # Errors
    /// When their file cannot be read.
    pub fn cuts(&self) -> Result<Vec<Cut>, ProviderError> {
        let cuts: Option<Vec<Cut>> = files::read_json(&self.site.paths.faults())?;
        Ok(cuts.unwrap_or_default())
    }

    /// Fills a machine's disk until `leave_bytes` are free. Only where the installation gives machines disks of a
    /// limited size (`var_tmpfs_bytes`): the host's own disk is never filled.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] when the disk has no size of its own, else what the host refused.
    pub fn fill_disk(&self, machine: &MachineId, leave_bytes: u64) -> Result<(), ProviderError> {
        let path = self.fill_file(machine)?;
        let mut file = File::create(&path).map_err(LocalError::file("create", &path))?;
        for chunk in FILL_CHUNKS.map(|bytes| vec![0x4b_u8; bytes]) {
            loop {
                match file.write_all(&chunk) {
                    Ok(()) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => return Err(LocalError::file("fill", &path)(e).into()),
                }
            }
        }
        let shorten = || {
            let length = file.metadata()?.len();
            file.set_len(length.saturating_sub(leave_bytes))
        };
        Ok(shorten().map_err(LocalError::file("shorten", &path))?)
    }

    /// Frees what [`Self::fill_disk`] took.
    ///
    /// # Errors
    /// As [`Self::fill_disk`].
    pub fn free_disk(&self, machine: &MachineId) -> Result<(), ProviderError> {
        Ok(files::remove_file(&self.fill_file(machine)?)?)
    }

    fn fill_file(&self, machine: &MachineId) -> Result<PathBuf, ProviderError> {
        self.record(machine)?;
        let var = self.site.paths.machine(machine).var();
        let limited = self.site.install.var_tmpfs_bytes.is_some() && mounts::is_own_mount(&var)?;
        if limited {
            return Ok(var.join(FILL_FILE));
        }
        let detail = "this machine's disk is a directory of the host, which must not be filled; make the \
                      installation with `var_tmpfs_bytes`"
            .to_owned();
        Err(ProviderError::Invalid { field: "machine", detail })
    }

    fn record(&self, machine: &MachineId) -> Result<MachineRecord, ProviderError> {
        record::machine(&self.site.paths, machine)?
            .ok_or_else(|| ProviderError::NotFound { what: format!("machine {machine}") })
    }

    fn expect_state(&self, machine: &MachineId, allowed: &[MachineState]) -> Result<(), ProviderError> {
        let state = self.site.state(&self.record(machine)?)?;
        if allowed.contains(&state) {
            return Ok(());
        }
        let detail = format!("{machine} is {state:?}; switch it on first");
        Err(ProviderError::Invalid { field: "machine", detail })
    }

    fn wait_for(&self, machine: &MachineId, wanted: Population, until: Instant) -> Result<(), ProviderError> {
        let reached = || Ok(self.site.cgroups.population(machine)? == wanted);
        Ok(wait_until(|| format!("machine {machine} to be {wanted:?}"), until, reached)?)
    }

    /// Changes the set of cuts and puts all of it in force: whole state, so nothing depends on what was there.
    fn change(&self, edit: impl FnOnce(&mut BTreeSet<Cut>)) -> Result<(), ProviderError> {
        let until = Instant::now() + ACT_WAIT;
        let _lock = FileLock::acquire(&self.site.paths.faults_lock(), until)?;
        let mut cuts: BTreeSet<Cut> = self.cuts()?.into_iter().collect();
        edit(&mut cuts);
        if cuts.len() > CUTS_MAX {
            let detail = format!("{} cuts, at most {CUTS_MAX} are possible; heal some", cuts.len());
            return Err(ProviderError::Invalid { field: "cut", detail });
        }
        let rules = rules(&cuts, |side| self.ports(side))?;
        // Written first: a cut that is in force and in no list could not be healed.
        files::write_json(&self.site.paths.faults(), &cuts)?;
        let apply = || files::run("nft", Command::new("nft").args(["-f", "-"]), Some(&rules), until);
        Ok(netns::inside(&self.site.paths.lan(), apply)?)
    }

    /// The bridge ports of a side; `None` for the bridge itself.
    fn ports(&self, side: &Side) -> Result<Option<Vec<String>>, ProviderError> {
        match side {
            Side::Coordinator | Side::Rest => Ok(None),
            Side::Machine(id) => Ok(Some(vec![self.record(id)?.port()])),
            Side::Zone(zone) if self.site.install.zones.contains(zone) => {
                let machines = record::machines(&self.site.paths)?;
                Ok(Some(machines.iter().filter(|m| m.zone == *zone).map(MachineRecord::port).collect()))
            }
            Side::Zone(zone) => {
                let detail = format!("{zone} is none of {}", self.site.install.zones.join(", "));
                Err(ProviderError::Invalid { field: "zone", detail })
            }
        }
    }
}

fn move_directory(from: &Path, to: &Path) -> Result<(), ProviderError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let detail = format!("{} is not on the file system of the machines", to.display());
            Err(ProviderError::Invalid { field: "with", detail })
        }
        moved => Ok(moved.map_err(LocalError::file("move", from))?),
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<(), ProviderError> {
    files::make_dir(to)?;
    let copied = std::fs::read_dir(from).and_then(|mut entries| {
        entries.try_for_each(|entry| {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name())).map(drop)
        })
    });
    Ok(copied.map_err(LocalError::file("copy", from))?)
}

fn carries_no_port(side: &Side) -> bool {
    matches!(side, Side::Coordinator | Side::Rest)
}

/// The whole nftables table. Packets between machines pass the bridge's forward hook; those to and from the bridge's
/// own address, where the coordinator listens, its input and output hooks.
fn rules(
    cuts: &BTreeSet<Cut>,
    ports: impl Fn(&Side) -> Result<Option<Vec<String>>, ProviderError>,
) -> Result<String, ProviderError> {
    let mut hooks = [("forward", String::new()), ("input", String::new()), ("output", String::new())];
    for cut in cuts {
        let (from, to) = (ports(&cut.from)?, ports(&cut.to)?);
        let what = if cut.ways == Ways::OneWay { "ether type != arp drop" } else { "drop" };
        drop_between(&mut hooks, (&cut.from, from.as_deref()), (&cut.to, to.as_deref()), what);
        if cut.ways == Ways::Both {
            drop_between(&mut hooks, (&cut.to, to.as_deref()), (&cut.from, from.as_deref()), what);
        }
    }
    let mut text =
        format!("add table bridge {TABLE}\ndelete table bridge {TABLE}\ntable bridge {TABLE} {{\n");
    for (hook, rules) in hooks {
        // Writing to a String cannot fail.
        let _ =
            write!(text, "chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n{rules}}}\n");
    }
    text.push_str("}\n");
    Ok(text)
}

/// Adds the rules that drop packets from one side to the other.
fn drop_between(
    hooks: &mut [(&str, String); 3],
    (from_side, from): (&Side, Option<&[String]>),
    (to_side, to): (&Side, Option<&[String]>),
    what: &str,
) {
    let [(_, forward), (_, input), (_, output)] = hooks;
    let set = |ports: &[String]| {
        (!ports.is_empty()).then(|| {
            format!("{{ {} }}", ports.iter().map(|p| format!("\"{p}\"")).collect::<Vec<_>>().join(", "))
        })
    };
    let (from, to) = (from.map(&set), to.map(&set));
    match (from, to) {
        (Some(Some(from)), Some(Some(to))) => {
            forward.push_str(&format!("iifname {from} oifname {to} {what}\n"));
        }
        (Some(Some(from)), None) => {
            input.push_str(&format!("iifname {from} {what}\n"));
            if *to_side == Side::Rest {
                forward.push_str(&format!("iifname {from} oifname != {from} {what}\n"));
            }
        }
        (None, Some(Some(to))) => {
            output.push_str(&format!("oifname {to} {what}\n"));
            if *from_side == Side::Rest {
                forward.push_str(&format!("iifname != {to} oifname {to} {what}\n"));
            }
        }
        // A zone without machines, or no port on either side: there is nothing to drop.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cut: Cut, expected: &[(&str, &str)]) {
        let ports = |side: &Side| match side {
            Side::Machine(id) => Ok(Some(vec![format!("port-{id}")])),
            Side::Zone(_) => Ok(Some(vec!["z1".to_owned(), "z2".to_owned()])),
            Side::Coordinator | Side::Rest => Ok(None),
        };
        let text = rules(&BTreeSet::from([cut]), ports).unwrap();
        let mut got = Vec::new();
        let mut hook = "";
        for line in text.lines() {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["chain", name, "{"] => hook = name,
                [.., "drop"] => got.push((hook, line)),
                _ => {}
            }
        }
        assert_eq!(got, expected);
    }

    fn machine(name: &str) -> Side {
        Side::Machine(MachineId::new(name).unwrap())
    }

    #[test]
    fn cuts_become_rules() {
        let cut = |from, to, ways| Cut { from, to, ways };
        check(
            cut(machine("a"), machine("b"), Ways::OneWay),
            &[("forward", r#"iifname { "port-a" } oifname { "port-b" } ether type != arp drop"#)],
        );
        check(
            cut(machine("a"), Side::Coordinator, Ways::Both),
            &[("input", r#"iifname { "port-a" } drop"#), ("output", r#"oifname { "port-a" } drop"#)],
        );
        check(
            cut(Side::Zone("z".to_owned()), Side::Rest, Ways::Both),
            &[
                ("forward", r#"iifname { "z1", "z2" } oifname != { "z1", "z2" } drop"#),
                ("forward", r#"iifname != { "z1", "z2" } oifname { "z1", "z2" } drop"#),
                ("input", r#"iifname { "z1", "z2" } drop"#),
                ("output", r#"oifname { "z1", "z2" } drop"#),
            ],
        );
        check(
            cut(Side::Coordinator, machine("b"), Ways::OneWay),
            &[("output", r#"oifname { "port-b" } ether type != arp drop"#)],
        );
    }
}
