//! The state directory: one lock, one store, the keys, and what clients need to find the API.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use keelson_model::Authority;
use keelson_pki::{SealingKey, new_api_authority};
use keelson_protocol::{InstallId, SecretBytes};
use keelson_transport::LinkCa;
use nix::fcntl::{Flock, FlockArg};
use ring::rand::SecureRandom;

use crate::clock::wall_now;

/// Life of the link CA. Its rotation comes long before its end.
const LINK_CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// An opened state directory. The lock is held as long as this value lives.
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
    pub(crate) install: InstallId,
    pub(crate) link_ca: LinkCa,
    pub(crate) api_authority: Authority,
    pub(crate) token_key: SecretBytes,
    pub(crate) admin_token: String,
}

impl StateDir {
    /// Opens the directory, or makes it with fresh keys.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path.join("keys"))
            .with_context(|| format!("could not make the state directory {}", path.display()))?;
        std::fs::set_permissions(path.join("keys"), std::fs::Permissions::from_mode(0o700))?;
        let lock = lock(&path.join("coordinator.lock"))?;
        let keys = path.join("keys");
        let install = read_or_make(&keys.join("install"), || Ok(random_hex(4)?.into_bytes()))?;
        let install = InstallId::new(text(install)?.trim()).context("the install id is damaged")?;
        let link_ca = link_ca(&keys, &install)?;
        let api_authority = api_authority(&keys, &install)?;
        let token_key = SecretBytes::new(read_or_make(&keys.join("enrolment.key"), || random_bytes(32))?);
        let admin_token =
            text(read_or_make(&keys.join("admin.token"), || Ok(random_hex(32)?.into_bytes()))?)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
            install,
            link_ca,
            api_authority,
            token_key,
            admin_token,
        })
    }

    /// The key that secrets in the store are sealed with.
    pub(crate) fn sealing_key(&self) -> Result<SealingKey> {
        let make = || Ok(SealingKey::generate()?.expose_secret().to_vec());
        let bytes = read_or_make(&self.path.join("keys/sealing.key"), make)?;
        Ok(SealingKey::new(&SecretBytes::new(bytes))?)
    }

    /// The SQLite file.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.path.join("keelson.db")
    }

    /// The port that the API had before, so that clients find it again.
    pub(crate) fn api_port(&self) -> Option<u16> {
        std::fs::read_to_string(self.path.join("api.port")).ok()?.trim().parse().ok()
    }

    /// Writes what a client needs, readable by its owner only: address, CA and token.
    pub(crate) fn write_context(&self, port: u16) -> Result<()> {
        write_atomic(&self.path.join("api.port"), port.to_string().as_bytes(), 0o600)?;
        let context = serde_json::json!({
            "server": format!("https://127.0.0.1:{port}"),
            "caCertificate": self.api_authority.certificate,
            "token": self.admin_token,
        });
        let text = serde_json::to_string_pretty(&context)? + "\n";
        write_atomic(&self.path.join("context.json"), text.as_bytes(), 0o600)
    }

    /// Who vouches for the API's certificates.
    pub(crate) fn api_authority(&self) -> &Authority {
        &self.api_authority
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("could not open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another coordinator uses this state directory ({} is locked); stop it first, or choose another with --state-dir",
            path.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

fn link_ca(keys: &Path, install: &InstallId) -> Result<LinkCa> {
    let (certificate, key) = (keys.join("link-ca.crt"), keys.join("link-ca.key"));
    if !certificate.exists() {
        let ca = LinkCa::generate(&format!("keelson {install} link"), wall_now(), LINK_CA_LIFE)?;
        let (certificate_pem, key_pem) = ca.to_pem();
        write_atomic(&key, key_pem.expose_secret(), 0o600)?;
        write_atomic(&certificate, certificate_pem.as_bytes(), 0o600)?;
    }
    let key = SecretBytes::new(read(&key)?);
    Ok(LinkCa::from_pem(&text(read(&certificate)?)?, &key)?)
}

fn api_authority(keys: &Path, install: &InstallId) -> Result<Authority> {
    let (certificate, key) = (keys.join("api-ca.crt"), keys.join("api-ca.key"));
    if !certificate.exists() {
        let authority = new_api_authority(install.as_str(), wall_now())?;
        write_atomic(&key, authority.key.expose_secret(), 0o600)?;
        write_atomic(&certificate, authority.certificate.as_bytes(), 0o600)?;
    }
    Ok(Authority { certificate: text(read(&certificate)?)?, key: SecretBytes::new(read(&key)?) })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context("a file of the state directory holds no text; restore a backup")
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    if path.exists() {
        return read(path);
    }
    let content = make()?;
    write_atomic(path, &content, 0o600)?;
    Ok(content)
}

/// Writes a file so that it holds either what it held before or all of `content`, also after a crash.
fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

fn random_bytes(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0_u8; count];
    let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow::anyhow!("the operating system gave no random bytes"))?;
    Ok(bytes)
}

fn random_hex(bytes: usize) -> Result<String> {
    Ok(hex::encode(random_bytes(bytes)?))
}
