//! The embedded infrastructure: this one Linux host, root, runc and nothing else.
//!
//! A machine is a runc container with systemd as init, its own pid, ipc, uts, mount, cgroup and network namespaces, the
//! node image's layers below a root file system that is thrown away at each power-on, and a plain directory as its
//! `/var` disk. The "datacenter" is one network namespace with one bridge. What is made lives inside namespaces of our
//! own, in `<state_dir>/local`, and in control groups below `keelson-<install>`: the host's interfaces, routes, rules
//! and settings are never touched, and removing all of it is exact ([`destroy`]).
//!
//! The host reaches machines through forwards on its loopback only. They are carried by a process of their own
//! ([`forwarder`]), so they outlive the coordinator, as machines do; while there is a provider, it brings the process back
//! within a second when it dies.
//!
//! Not here: `disk_bytes` of a machine is not enforced, because a directory has no size; [`LocalConfig::var_tmpfs_bytes`]
//! gives fault tests a disk that can be filled. The host's own disk is what runs out: then new machines are refused. Zones are labels: all of them are this host, and the fault bench
//! ([`faults`]) can cut them off from each other.

mod bundle;
mod cgroups;
mod checks;
mod destroy;
mod error;
pub mod faults;
mod files;
pub mod forwarder;
mod forwards;
mod lan;
mod mounts;
mod netns;
mod paths;
mod preflight;
mod record;
mod runc;
mod site;
mod watch;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_protocol::InstallId;

pub use bundle::{METADATA_DIR, METADATA_FILE};
pub use cgroups::CgroupVersion;
pub use destroy::{DestroyError, destroy, leftovers};
pub use error::LocalError;
pub use preflight::{Level, PreflightFinding, missing, preflight};

use crate::call::ImageResolver;
use crate::{Answer, Call, Capabilities, Fenced, Provider, ProviderError, ProviderFuture};
use record::{InstallRecord, STATE_VERSION};
use site::Site;
use watch::Watch;

/// How long opening may take. It makes one namespace and may start one process.
const OPEN_WAIT: Duration = Duration::from_secs(30);

/// How much longer than its deadline a call may work before its outcome is called unknown: most end by themselves with
/// a better error.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// See [`LocalConfig::free_bytes_min`]: a busy worker writes so much within its first hours.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;

/// Settings of an installation on this host.
#[derive(Clone)]
pub struct LocalConfig {
    /// The installation. Two installations on one host must have different ids and state directories.
    pub install: InstallId,
    /// Where state is kept, below `local/`.
    pub state_dir: PathBuf,
    /// The machines' network. It exists in namespaces only and may overlap with the host's.
    pub network: (Ipv4Addr, u8),
    /// Names of the fault domains.
    pub zones: Vec<String>,
    /// Finds the layers of an image.
    pub images: ImageResolver,
    /// The program that runs [`forwarder::run`] when called as `<program> local-forwarder --state-dir DIR`.
    pub program: PathBuf,
    /// For fault tests: gives each machine a `/var` of this size that can be filled without harm to the host. It lives
    /// in memory and does not survive a reboot of the host.
    pub var_tmpfs_bytes: Option<u64>,
    /// A new machine is refused while less than this is free on the host's disk, in bytes: those that are there need
    /// what is left.
    pub free_bytes_min: u64,
}

impl LocalConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(install: InstallId, state_dir: PathBuf, images: ImageResolver, program: PathBuf) -> Self {
        Self {
            install,
            state_dir,
            network: (Ipv4Addr::new(10, 210, 0, 0), 16),
            zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
            images,
            program,
            var_tmpfs_bytes: None,
            free_bytes_min: FREE_BYTES_MIN,
        }
    }
}

/// The local provider. Dropping it leaves everything running; [`LocalProvider::destroy`] removes everything.
pub struct LocalProvider {
    site: Arc<Site>,
    images: ImageResolver,
    program: PathBuf,
    /// Held for its end, which comes with this.
    _watch: Watch,
}

impl LocalProvider {
    /// Makes the installation or finds it again: its directories, its network and, when services are exposed, its
    /// forwarder. Machines are left as they are.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] when the state directory belongs to another installation, `Invalid` for settings
    /// that cannot be, else what the host refused.
    pub async fn open(config: LocalConfig) -> Result<Self, ProviderError> {
        let LocalConfig {
            install,
            state_dir,
            network,
            zones,
            images,
            program,
            var_tmpfs_bytes,
            free_bytes_min,
        } = config;
        if zones.is_empty() {
            return Err(ProviderError::Invalid {
                field: "zones",
                detail: "at least one is needed".to_owned(),
            });
        }
        let record = InstallRecord { version: STATE_VERSION, install, network, zones, var_tmpfs_bytes };
        let until = Instant::now() + OPEN_WAIT;
        let path = program.clone();
        let open = move || {
            let state_dir = std::path::absolute(&state_dir).map_err(LocalError::file("find", &state_dir))?;
            let site = Site::open(&state_dir, record, free_bytes_min, until)?;
            site.ensure_forwarder(&path, until)?;
            Ok(site)
        };
        let site = Arc::new(in_background(OPEN_WAIT, open).await?);
        let trash = Arc::clone(&site);
        // Beside everything else: there may be the disks of many machines.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = trash.empty_trash() {
                tracing::warn!(
                    error = keelson_protocol::errors::chain(&error),
                    "discarded files were not removed; tried again at the next start"
                );
            }
        });
        let watch = Watch::begin(Arc::clone(&site), program.clone())
            .map_err(LocalError::file("begin a thread for", &program))?;
        Ok(Self { site, images, program, _watch: watch })
    }

    /// Removes the installation from the host: machines with their disks, network, forwarder, control groups, files.
    ///
    /// # Errors
    /// [`DestroyError`] lists all that could not be removed.
    pub fn destroy(self) -> Result<(), DestroyError> {
        let state_dir = self.site.paths.state_dir().to_owned();
        drop(self);
        destroy(&state_dir)
    }
}

/// Runs blocking work; a call that is cut off goes on, and its outcome is unknown until somebody lists.
async fn in_background<T: Send + 'static>(
    wait: Duration,
    work: impl FnOnce() -> Result<T, LocalError> + Send + 'static,
) -> Result<T, ProviderError> {
    let task = tokio::task::spawn_blocking(work);
    match tokio::time::timeout(wait + ANSWER_GRACE, task).await {
        Ok(Ok(result)) => result.map_err(ProviderError::from),
        Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        Err(_) => Err(ProviderError::Unknown { detail: format!("no answer within {} ms", wait.as_millis()) }),
    }
}

impl Provider for LocalProvider {
    fn capabilities(&self) -> Capabilities {
        let install = &self.site.install;
        Capabilities {
            name: "local",
            zones: install.zones.clone(),
            network: install.network,
            first_address: self.site.network.first(),
            coordinator_address: self.site.network.coordinator(),
            expose: true,
            keeps_disk: true,
            machines_max: None,
        }
    }

    fn perform<'a>(&'a self, call: &'a Call, deadline: Duration) -> ProviderFuture<'a, Answer> {
        let (site, images, program) =
            (Arc::clone(&self.site), Arc::clone(&self.images), self.program.clone());
        let call = call.clone();
        let until = Instant::now() + deadline;
        Box::pin(in_background(deadline, move || carry_out(&site, &images, &program, call, until)))
    }

    fn bind_link(&self, port: u16) -> Result<UdpSocket, ProviderError> {
        let address = SocketAddr::from((self.site.network.coordinator(), port));
        let socket = netns::inside(&self.site.paths.lan(), || {
            UdpSocket::bind(address).map_err(|error| match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    let what = format!("UDP port {port} of the machines' network");
                    let holder = "another program, maybe an older coordinator; end it".to_owned();
                    LocalError::Refused(ProviderError::Conflict { what, holder })
                }
                _ => LocalError::file("bind the link to", address.to_string())(error),
            })
        })?;
        socket.set_nonblocking(true).map_err(LocalError::file("set up the link on", address.to_string()))?;
        Ok(socket)
    }
}

fn carry_out(
    site: &Site,
    images: &ImageResolver,
    program: &std::path::Path,
    call: Call,
    until: Instant,
) -> Result<Answer, LocalError> {
    Ok(match call {
        Call::CreateMachine(request) => {
            let image = images(&request.image)?;
            Answer::Machine(site.create(&request, image, until)?)
        }
        Call::Rebuild(request) => {
            let image = images(&request.image)?;
            Answer::Machine(site.rebuild(&request, image, until)?)
        }
        Call::ListMachines(install) if install == site.install.install => Answer::Machines(site.list()?),
        Call::ListMachines(_) => Answer::Machines(Vec::new()),
        Call::PowerOn(key) => Answer::Machine(site.power_on(&key, until)?),
        Call::PowerOff(key, how) => {
            site.power_off(&key, how, until)?;
            Answer::Done
        }
        Call::Reboot(key) => Answer::Machine(site.reboot(&key, until)?),
        Call::Console(key) => Answer::Console(site.console(&key, until)?),
        Call::DeleteMachine(key) => {
            site.delete(&key, until)?;
            Answer::Done
        }
        Call::Fence(key) => {
            site.fence(&key, until)?;
            Answer::Fenced(Fenced::proven(key))
        }
        Call::Expose(request) => Answer::Exposed(site.expose(&request, program, until)?),
        Call::ListExposed(install) => Answer::AllExposed(site.exposed(&install)?),
        Call::Unexpose(install, cluster) => {
            site.unexpose(&install, &cluster, program, until)?;
            Answer::Done
        }
    })
}
