//! One installation of the local provider on this host, and the life of its machines: made, on, off, gone. Every act
//! reads what is there and brings it to what is asked for, so that it can be repeated after being cut off anywhere.
//!
//! Order in a machine's life, each step leaving a state that the next call understands:
//! claim (record appears) -> disk and metadata -> namespace and cable -> root mounted -> bundle -> runc -> `started`;
//! and back: record says off (not before a delete, which must need no room on a full disk) -> processes killed -> runc forgets
//! -> control groups -> root unmounted -> cable -> (delete only) directory moved to the trash -> trash emptied.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keelson_protocol::{InstallId, MachineId};

use super::FREE_BYTES_MIN;
use super::cgroups::{Cgroups, Population};
use super::error::{DISK_SPACE, LocalError};
use super::files::{self, FileLock, wait_until};
use super::lan::{self, Network};
use super::paths::Paths;
use super::record::{self, InstallRecord, MachineRecord, Power, STATE_VERSION};
use super::{bundle, mounts, runc};
use crate::{
    ImageLayers, MachineRequest, MachineState, MachineView, Metadata, ObjectKey, PowerOff, ProviderError,
};

/// How long killed processes and their control groups may take to vanish. The kernel needs milliseconds; a loaded host
/// with processes in disk waits needs seconds.
const KILL_WAIT: Duration = Duration::from_secs(15);

/// How long a reboot waits for init to shut down by itself. systemd stops a busy worker in about 10 s.
const REBOOT_WAIT: Duration = Duration::from_secs(20);

/// How often init is asked again to shut down: one that has just been started does not listen yet, and systemd takes
/// being asked twice as being asked once.
const HALT_AGAIN: Duration = Duration::from_secs(1);

/// Longest path of an image layer that is accepted, in bytes (the kernel's own limit for a path).
const LAYER_PATH_BYTES_MAX: usize = 4095;

/// One installation on this host.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) paths: Paths,
    pub(crate) install: InstallRecord,
    pub(crate) network: Network,
    pub(crate) cgroups: Cgroups,
    /// See [`super::LocalConfig::free_bytes_min`].
    free_bytes_min: u64,
}

impl Site {
    /// Makes the installation, or finds it again; then the LAN exists and half-removed machines are gone.
    pub(crate) fn open(
        state_dir: &Path,
        install: InstallRecord,
        free_bytes_min: u64,
        until: Instant,
    ) -> Result<Self, LocalError> {
        let paths = Paths::new(state_dir);
        if state_dir.as_os_str().as_encoded_bytes().contains(&b',') {
            let detail =
                format!("{} has a comma, which runc cannot take in a namespace's path", state_dir.display());
            return Err(ProviderError::Invalid { field: "state_dir", detail }.into());
        }
        files::make_dir(paths.root())?;
        let lock = FileLock::acquire(&paths.claims_lock(), until)?;
        match files::read_json::<InstallRecord>(&paths.install())? {
            Some(found) if found == install => {}
            Some(found) => {
                admit(&paths, &found, &install)?;
                files::write_json(&paths.install(), &install)?;
            }
            None => files::write_json(&paths.install(), &install)?,
        }
        let site = Self::with(paths, install, free_bytes_min)?;
        site.paths.collections().iter().try_for_each(|dir| files::make_dir(dir))?;
        lan::ensure(&site.paths, site.network, until)?;
        mounts::remove_tree(&site.paths.drafts())?;
        files::make_dir(&site.paths.drafts())?;
        files::make_dir(&site.paths.trash())?;
        drop(lock);
        Ok(site)
    }

    /// Finds an existing installation; `None` when there is none.
    pub(crate) fn load(state_dir: &Path) -> Result<Option<Self>, LocalError> {
        let paths = Paths::new(state_dir);
        match files::read_json::<InstallRecord>(&paths.install())? {
            Some(install) => Self::with(paths, install, FREE_BYTES_MIN).map(Some),
            None => Ok(None),
        }
    }

    fn with(paths: Paths, install: InstallRecord, free_bytes_min: u64) -> Result<Self, LocalError> {
        if install.version != STATE_VERSION {
            let detail = format!(
                "{} has version {}, this program knows {STATE_VERSION}; use the program that wrote it",
                paths.install().display(),
                install.version
            );
            return Err(ProviderError::Unavailable { detail }.into());
        }
        let (base, prefix) = install.network;
        let network = Network::new(base, prefix).ok_or_else(|| {
            let detail = format!("{base}/{prefix} is no network address with a prefix of 8 to 27 bits");
            LocalError::Refused(ProviderError::Invalid { field: "network", detail })
        })?;
        let cgroups = Cgroups::detect(&install.install)?;
        Ok(Self { paths, install, network, cgroups, free_bytes_min })
    }

    /// Refuses keys of another installation.
    pub(crate) fn check_install(&self, install: &InstallId) -> Result<(), LocalError> {
        if *install == self.install.install {
            return Ok(());
        }
        let detail = format!("{install} is asked for, {} is here", self.install.install);
        Err(ProviderError::Invalid { field: "install", detail }.into())
    }

    fn lock(&self, id: &MachineId, until: Instant) -> Result<FileLock, LocalError> {
        FileLock::acquire(&self.paths.machine_lock(id), until)
    }

    /// Makes a machine and switches it on, or finds it.
    pub(crate) fn create(
        &self,
        request: &MachineRequest,
        image: ImageLayers,
        until: Instant,
    ) -> Result<MachineView, LocalError> {
        self.check_install(&request.key.install)?;
        check_request(request, &image, &self.install.zones, self.network)?;
        let lock = self.lock(&request.key.machine, until)?;
        let wanted = wanted_record(request, image);
        let record = match record::machine(&self.paths, &request.key.machine)? {
            None => {
                self.check_room()?;
                self.claim(wanted, until)?
            }
            Some(found) => self.adopt(found, wanted)?,
        };
        let machine = self.paths.machine(record.id());
        files::make_dir(&machine.metadata())?;
        write_metadata(&machine.metadata(), &request.metadata)?;
        if record.power == Power::Fenced {
            // Fenced means off until somebody says otherwise, and a repeated create does not.
            return self.view(&record);
        }
        self.switch_on(record, &lock, until)
    }

    /// Refuses new machines while the host's disk is about to be full: those that are there need what is left.
    fn check_room(&self) -> Result<(), LocalError> {
        let (free, dir) = (files::free_bytes(self.paths.root())?, self.paths.root().display());
        if free >= self.free_bytes_min {
            return Ok(());
        }
        // What is free is not named: it would be another text each time that is asked.
        let wanted = self.free_bytes_min / (1024 * 1024);
        let detail = format!("less than {wanted} MiB are free in {dir}; free some, or remove machines");
        Err(ProviderError::Quota { what: DISK_SPACE.to_owned(), detail }.into())
    }

    /// Writes the tag of a new machine, after making sure that nobody else has its address.
    fn claim(&self, record: MachineRecord, until: Instant) -> Result<MachineRecord, LocalError> {
        let _claims = FileLock::acquire(&self.paths.claims_lock(), until)?;
        let others = record::machines(&self.paths)?;
        if let Some(holder) = others.iter().find(|other| other.address == record.address) {
            let what = format!("address {}", record.address);
            return Err(ProviderError::Conflict { what, holder: holder.key.to_string() }.into());
        }
        record::claim(&self.paths, &record)?;
        Ok(record)
    }

    /// A machine of that name is there: it must be the one that is asked for.
    fn adopt(&self, found: MachineRecord, wanted: MachineRecord) -> Result<MachineRecord, LocalError> {
        if found.key != wanted.key {
            let what = format!("machine {}", found.id());
            return Err(ProviderError::Conflict { what, holder: found.key.to_string() }.into());
        }
        if (found.address, &found.zone) != (wanted.address, &wanted.zone) {
            let detail = format!("{} exists at {} in zone {}", found.key, found.address, found.zone);
            return Err(ProviderError::Invalid { field: "address", detail }.into());
        }
        // The image store may have moved; what runs keeps its layers until the next power-on.
        let record = MachineRecord { power: found.power, ..wanted };
        if record != found {
            record::write(&self.paths, &record)?;
        }
        Ok(record)
    }

    /// Makes a machine that is off anew around its disk. Its root is thrown away at each power-on anyway.
    pub(crate) fn rebuild(
        &self,
        request: &MachineRequest,
        image: ImageLayers,
        until: Instant,
    ) -> Result<MachineView, LocalError> {
        self.check_install(&request.key.install)?;
        check_request(request, &image, &self.install.zones, self.network)?;
        let lock = self.lock(&request.key.machine, until)?;
        let found = record::machine_of(&self.paths, &request.key)?;
        if matches!(self.state(&found)?, MachineState::On | MachineState::Frozen) {
            let what = format!("machine {}", request.key);
            return Err(ProviderError::Conflict { what, holder: "itself: it has power".to_owned() }.into());
        }
        let power = found.power;
        let record = self.adopt(found, MachineRecord { power, ..wanted_record(request, image) })?;
        let machine = self.paths.machine(record.id());
        files::make_dir(&machine.metadata())?;
        write_metadata(&machine.metadata(), &request.metadata)?;
        self.switch_on(record, &lock, until)
    }

    /// Switches a machine on; one that is frozen is left as it is.
    pub(crate) fn power_on(&self, key: &ObjectKey, until: Instant) -> Result<MachineView, LocalError> {
        let lock = self.lock(&key.machine, until)?;
        let record = record::machine_of(&self.paths, key)?;
        self.switch_on(record, &lock, until)
    }

    fn switch_on(
        &self,
        mut record: MachineRecord,
        lock: &FileLock,
        until: Instant,
    ) -> Result<MachineView, LocalError> {
        if record.power != Power::On {
            record.power = Power::On;
            record::write(&self.paths, &record)?;
        }
        let machine = self.paths.machine(record.id());
        let started = machine.started();
        let note_start = || std::fs::write(&started, "").map_err(LocalError::file("write", &started));
        if matches!(self.state(&record)?, MachineState::On | MachineState::Frozen) {
            // Whoever switched it on may have been killed before this was noted.
            note_start()?;
            return self.view(&record);
        }
        let mut laps = Laps::default();
        self.clear(&record, until)?;
        files::make_dir(&machine.metadata())?;
        self.prepare_disk(&machine.var())?;
        laps.end("clear");
        lan::plug(&self.paths, self.network, &machine, &record, until)?;
        laps.end("network");
        mounts::mount_overlay(&machine.overlay(), &record.layers, &machine.root())?;
        laps.end("root");
        bundle::write(&machine, &record, &self.cgroups)?;
        laps.end("bundle");
        runc::start(&self.paths, &machine, record.id(), lock, until)?;
        laps.end("runc");
        tracing::debug!(machine = %record.id(), milliseconds = ?laps.steps, "machine switched on");
        note_start()?;
        self.view(&record)
    }

    fn prepare_disk(&self, var: &Path) -> Result<(), LocalError> {
        std::fs::create_dir_all(var).map_err(LocalError::file("create", var))?;
        match self.install.var_tmpfs_bytes {
            Some(bytes_max) => mounts::mount_tmpfs(var, bytes_max),
            None => Ok(()),
        }
    }

    /// Switches a machine off.
    pub(crate) fn power_off(&self, key: &ObjectKey, how: PowerOff, until: Instant) -> Result<(), LocalError> {
        let _lock = self.lock(&key.machine, until)?;
        let record = record::machine_of(&self.paths, key)?;
        // A fence is not weakened by switching off once more.
        let power = if record.power == Power::Fenced { Power::Fenced } else { Power::Off };
        self.switch_off(record, power, how, until)
    }

    /// Switches a machine off at once and keeps it off.
    pub(crate) fn fence(&self, key: &ObjectKey, until: Instant) -> Result<(), LocalError> {
        let _lock = self.lock(&key.machine, until)?;
        self.end_unrecorded(&key.machine, until)?;
        let record = record::machine_of(&self.paths, key)?;
        self.switch_off(record, Power::Fenced, PowerOff::Hard, until)
    }

    fn switch_off(
        &self,
        mut record: MachineRecord,
        power: Power,
        how: PowerOff,
        until: Instant,
    ) -> Result<(), LocalError> {
        let noted = match record.power == power {
            true => Ok(()),
            false => {
                record.power = power;
                record::write(&self.paths, &record)
            }
        };
        if let PowerOff::Soft(grace) = how {
            self.halt(&record, until.min(Instant::now() + grace))?;
        }
        // Its power is taken away also when the host's disk is too full to note that: who asked asks again until it is noted.
        self.clear(&record, until)?;
        noted
    }

    /// Asks init to shut down and waits for it; that it does not is no error, power is taken away next.
    fn halt(&self, record: &MachineRecord, until: Instant) -> Result<(), LocalError> {
        if self.state(record)? != MachineState::On {
            return Ok(());
        }
        let mut ask_at = Instant::now();
        let gone = || {
            if self.cgroups.population(record.id())? == Population::Empty {
                return Ok(true);
            }
            if Instant::now() >= ask_at {
                ask_at = Instant::now() + HALT_AGAIN;
                if let Err(error) = runc::halt(&self.paths, record.id(), until) {
                    tracing::debug!(machine = %record.id(), %error, "init could not be asked to shut down");
                }
            }
            Ok(false)
        };
        match wait_until(|| format!("the shutdown of {}", record.id()), until, gone) {
            Err(LocalError::Late { .. }) => Ok(()),
            other => other,
        }
    }

    /// Off and on again.
    pub(crate) fn reboot(&self, key: &ObjectKey, until: Instant) -> Result<MachineView, LocalError> {
        let lock = self.lock(&key.machine, until)?;
        let record = record::machine_of(&self.paths, key)?;
        let left = until.saturating_duration_since(Instant::now());
        self.halt(&record, Instant::now() + REBOOT_WAIT.min(left / 2))?;
        self.clear(&record, until)?;
        self.switch_on(record, &lock, until)
    }

    /// Takes away everything that makes a machine run; its disk and its record stay.
    fn clear(&self, record: &MachineRecord, until: Instant) -> Result<(), LocalError> {
        let machine = self.paths.machine(record.id());
        // Killing goes on past the caller's deadline for a while: a machine that is half off helps nobody.
        let until = until.max(Instant::now() + KILL_WAIT);
        self.cgroups.kill(record.id(), until)?;
        runc::forget(&machine)?;
        self.cgroups.remove(record.id(), until)?;
        mounts::unmount(&machine.root())?;
        lan::unplug(&self.paths, &machine, record, until)
    }

    /// Removes a machine and its disk.
    pub(crate) fn delete(&self, key: &ObjectKey, until: Instant) -> Result<(), LocalError> {
        let lock = self.lock(&key.machine, until)?;
        match record::machine(&self.paths, &key.machine)? {
            Some(record) if record.key == *key => self.remove(record, until)?,
            Some(_) => {}
            None => self.remove_unrecorded(&key.machine, until)?,
        }
        lock.remove()
    }

    /// Ends what runs as a machine that has no record, because somebody moved that away: that nothing is known of it does not
    /// mean that it has no power.
    fn end_unrecorded(&self, id: &MachineId, until: Instant) -> Result<(), LocalError> {
        if record::machine(&self.paths, id)?.is_some() {
            return Ok(());
        }
        self.cgroups.kill(id, until)?;
        self.cgroups.remove(id, until)
    }

    /// Removes what is left of a machine that has no record, and whose lock is held.
    pub(crate) fn remove_unrecorded(&self, id: &MachineId, until: Instant) -> Result<(), LocalError> {
        self.end_unrecorded(id, until)?;
        self.discard(id)
    }

    /// Removes a machine's files, after its power was taken.
    fn discard(&self, id: &MachineId) -> Result<(), LocalError> {
        let machine = self.paths.machine(id);
        if !machine.dir().exists() {
            return Ok(());
        }
        mounts::unmount(&machine.root())?;
        mounts::unmount(&machine.var())?;
        // A place of its own: what of an earlier machine of this name could not be removed must not hold up this one.
        let place = |number: u32| self.paths.trash().join(format!("{id}.{number}"));
        let trash = (0..).map(place).find(|place| !place.exists()).expect("no folder has so many entries");
        // From here on the machine is not listed any more, also when removing its files is cut off.
        std::fs::rename(machine.dir(), &trash).map_err(LocalError::file("discard", machine.dir()))?;
        mounts::remove_tree(&trash)
    }

    /// Removes what a process before this one had discarded and did not live to remove; what can be, whatever else cannot.
    pub(crate) fn empty_trash(&self) -> Result<(), LocalError> {
        let trash = self.paths.trash();
        let entries = std::fs::read_dir(&trash).map_err(LocalError::file("list", &trash))?;
        let removed: Vec<_> = entries.flatten().map(|entry| mounts::remove_tree(&entry.path())).collect();
        removed.into_iter().collect()
    }

    /// Removes a machine whose lock is held.
    pub(crate) fn remove(&self, record: MachineRecord, until: Instant) -> Result<(), LocalError> {
        self.clear(&record, until)?;
        self.discard(record.id())
    }

    /// All machines.
    pub(crate) fn list(&self) -> Result<Vec<MachineView>, LocalError> {
        record::machines(&self.paths)?.iter().map(|record| self.view(record)).collect()
    }

    /// The last lines of what init wrote and of the journal on the machine's disk. systemd in a container writes to
    /// its journal only, so that is where a failed boot says why.
    pub(crate) fn console(&self, key: &ObjectKey, until: Instant) -> Result<String, LocalError> {
        let record = record::machine_of(&self.paths, key)?;
        let machine = self.paths.machine(record.id());
        let mut text = files::tail(&machine.console(), runc::CONSOLE_BYTES_KEPT)?;
        match runc::journal(&machine, until) {
            Ok(journal) => text.push_str(&journal),
            // The host need not have journalctl, and the machine may just be writing.
            Err(error) => tracing::debug!(machine = %record.id(), %error, "the journal cannot be read"),
        }
        Ok(text)
    }

    fn view(&self, record: &MachineRecord) -> Result<MachineView, LocalError> {
        Ok(MachineView {
            key: record.key.clone(),
            state: self.state(record)?,
            zone: record.zone.clone(),
            address: record.address,
        })
    }

    /// What the machine does now, whatever was asked for.
    pub(crate) fn state(&self, record: &MachineRecord) -> Result<MachineState, LocalError> {
        let machine = self.paths.machine(record.id());
        let stopped = if machine.started().exists() { MachineState::Off } else { MachineState::Creating };
        if machine.runc_unstarted().exists() {
            // Processes are runc's own; init does not run yet.
            return Ok(stopped);
        }
        Ok(match self.cgroups.population(record.id())? {
            Population::Empty => stopped,
            Population::Running => MachineState::On,
            Population::Frozen => MachineState::Frozen,
        })
    }
}

/// How long each step of switching on took, for the log.
struct Laps {
    begin: Instant,
    steps: Vec<(&'static str, u128)>,
}

impl Default for Laps {
    fn default() -> Self {
        Self { begin: Instant::now(), steps: Vec::new() }
    }
}

impl Laps {
    fn end(&mut self, step: &'static str) {
        self.steps.push((step, self.begin.elapsed().as_millis()));
        self.begin = Instant::now();
    }
}

/// Whether an installation may be opened with other settings than it was made with.
fn admit(paths: &Paths, found: &InstallRecord, wanted: &InstallRecord) -> Result<(), LocalError> {
    if found.version != wanted.version || found.install != wanted.install {
        let what = format!("the state directory {}", paths.state_dir().display());
        let holder = format!("installation {} (state version {})", found.install, found.version);
        return Err(ProviderError::Conflict { what, holder }.into());
    }
    if found.network != wanted.network {
        let (base, prefix) = found.network;
        let detail =
            format!("the installation was made with {base}/{prefix}; take it down to change its network");
        return Err(ProviderError::Invalid { field: "network", detail }.into());
    }
    if found.var_tmpfs_bytes != wanted.var_tmpfs_bytes {
        // A new disk would be mounted over the one that has the machine's state.
        let detail =
            "the installation was made with disks of another kind; take it down to change that".to_owned();
        return Err(ProviderError::Invalid { field: "var_tmpfs_bytes", detail }.into());
    }
    Ok(())
}

fn check_request(
    request: &MachineRequest,
    image: &ImageLayers,
    zones: &[String],
    network: Network,
) -> Result<(), LocalError> {
    let invalid = |field, detail| Err(LocalError::Refused(ProviderError::Invalid { field, detail }));
    if !zones.contains(&request.zone) {
        return invalid("zone", format!("{} is none of {}", request.zone, zones.join(", ")));
    }
    if !network.allows(request.address) {
        return invalid("address", format!("{} is not for machines of this network", request.address));
    }
    if request.metadata.machine != request.key.machine
        || request.metadata.incarnation != request.key.incarnation
    {
        return invalid("metadata", "it names another machine than the key".to_owned());
    }
    if image.layers.is_empty() || image.layers.len() > mounts::LAYERS_MAX {
        let detail = format!("{} layers, 1 to {} are possible", image.layers.len(), mounts::LAYERS_MAX);
        return invalid("image", detail);
    }
    let usable = |layer: &&PathBuf| {
        layer.is_absolute() && layer.as_os_str().len() <= LAYER_PATH_BYTES_MAX && layer.is_dir()
    };
    match image.layers.iter().find(|layer| !usable(layer)) {
        Some(layer) => invalid("image", format!("layer {} is no directory on this host", layer.display())),
        None => Ok(()),
    }
}

fn wanted_record(request: &MachineRequest, image: ImageLayers) -> MachineRecord {
    MachineRecord {
        version: STATE_VERSION,
        key: request.key.clone(),
        zone: request.zone.clone(),
        address: request.address,
        image: image.digest,
        layers: image.layers,
        cpu_millis_max: request.cpu_millis_max,
        memory_bytes_max: request.memory_bytes_max,
        power: Power::On,
    }
}

fn write_metadata(dir: &Path, metadata: &Metadata) -> Result<(), LocalError> {
    files::write_json(&dir.join(bundle::METADATA_FILE), metadata)
}
