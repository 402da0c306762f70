//! The machine's link identity on disk: `chain.pem`, `key.pem`, `ca.pem`, and while a new one is on its way
//! `key.next.pem`. Beside them lies where the `coordinators` are.
//!
//! A key is on disk before anybody is asked to certify it, and the chain is replaced before the key is: whatever moment
//! the machine dies at, either pair is complete, or the chain belongs to `key.next.pem`. A machine that lost its pair
//! would have to be enrolled again by a person.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use keelson_agent_core::Validity;
use keelson_host::{
    Durability, HostError, chain_from_pem, chain_to_pem, key_from_pem, key_to_pem, matches_key,
    write_atomically,
};
use keelson_protocol::{Incarnation, MachineId, SecretBytes, WallTime};
use keelson_transport::{Identity, KeyRequest, PeerIdentity};

use crate::metadata::COORDINATORS_MAX;

const CHAIN_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o600;
/// The file with the addresses of the coordinators, one in a line.
const COORDINATORS: &str = "coordinators";

/// What the agent needs to open a session.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) identity: Identity,
    pub(crate) ca_der: Vec<u8>,
    pub(crate) validity: Validity,
}

/// Why a chain cannot be used as this machine's identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityFileError {
    #[error("the certificate that came cannot be used: {why}")]
    Unusable { why: String },
    #[error("the link identity could not be written")]
    Write(#[source] HostError),
}

/// The folder of the identity.
#[derive(Debug, Clone)]
pub(crate) struct IdentityFiles {
    folder: PathBuf,
}

impl IdentityFiles {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The identity, when there is one for this machine that is valid at `now`; else why there is none.
    pub(crate) fn load(
        &self,
        machine: &MachineId,
        incarnation: Incarnation,
        now: WallTime,
    ) -> Result<Held, &'static str> {
        let chain = fs::read_to_string(self.path("chain.pem")).map_err(|_| "there is no link certificate")?;
        let chain = chain_from_pem(&chain).map_err(|_| "the link certificate is damaged")?;
        let ca = fs::read_to_string(self.path("ca.pem")).map_err(|_| "there is no CA certificate")?;
        let ca = chain_from_pem(&ca).map_err(|_| "the CA certificate is damaged")?;
        let key = self.key_of(&chain[0]).ok_or("the link certificate has no key")?;
        let peer =
            PeerIdentity::from_certificate(&chain[0]).map_err(|_| "the link certificate names no machine")?;
        if (&peer.machine, peer.incarnation) != (machine, incarnation) {
            return Err("the link certificate is for another machine");
        }
        if peer.not_after <= now {
            return Err("the link certificate has expired");
        }
        let validity = Validity { not_before: peer.not_before, not_after: peer.not_after };
        let ca_der = ca.into_iter().next().ok_or("there is no CA certificate")?;
        Ok(Held { identity: Identity { chain, key }, ca_der, validity })
    }

    /// The key of a certificate: the old one, or the one that was on its way when the agent died.
    fn key_of(&self, leaf: &[u8]) -> Option<SecretBytes> {
        let read = |name: &str| {
            let pem = SecretBytes::new(fs::read(self.path(name)).ok()?);
            key_from_pem(&pem).ok().filter(|key| matches_key(leaf, key))
        };
        read("key.pem").or_else(|| {
            let key = read("key.next.pem")?;
            // Finished now; when it fails, the next start finds the same.
            let _ = fs::rename(self.path("key.next.pem"), self.path("key.pem"));
            Some(key)
        })
    }

    /// The key to enrol with: the one that the machine has, however old its certificate is, because by that the
    /// coordinator knows it; else the one for which a certificate was asked when the agent died, or a new one. On disk when
    /// this returns.
    pub(crate) fn enrolment_key(
        &self,
        machine: &MachineId,
        incarnation: Incarnation,
    ) -> Result<KeyRequest, IdentityFileError> {
        let unusable = |error| IdentityFileError::Unusable { why: keelson_protocol::errors::chain(&error) };
        if let Some(key) = self.own_key(machine, incarnation) {
            return keelson_transport::key_request_of(&key).map_err(unusable);
        }
        if let Some(request) = self.read_pending() {
            return Ok(request);
        }
        let request = keelson_transport::make_key_request().map_err(unusable)?;
        self.write_secret("key.next.pem", &key_to_pem(&request.key))?;
        self.write("key.next.csr", KEY_MODE, &request.signing_request)?;
        Ok(request)
    }

    /// The key of this machine's certificate, expired or not; where that cannot be read, the key alone.
    fn own_key(&self, machine: &MachineId, incarnation: Incarnation) -> Option<SecretBytes> {
        let chain = fs::read_to_string(self.path("chain.pem")).ok();
        let leaf = chain.and_then(|chain| chain_from_pem(&chain).ok()?.into_iter().next());
        let Some((leaf, peer)) = leaf.and_then(|leaf| {
            let peer = PeerIdentity::from_certificate(&leaf).ok()?;
            Some((leaf, peer))
        }) else {
            return key_from_pem(&SecretBytes::new(fs::read(self.path("key.pem")).ok()?)).ok();
        };
        let own = (&peer.machine, peer.incarnation) == (machine, incarnation);
        own.then(|| self.key_of(&leaf))?
    }

    fn read_pending(&self) -> Option<KeyRequest> {
        let key = SecretBytes::new(fs::read(self.path("key.next.pem")).ok()?);
        let key = key_from_pem(&key).ok()?;
        let signing_request = fs::read(self.path("key.next.csr")).ok().filter(|bytes| !bytes.is_empty())?;
        Some(KeyRequest { key, signing_request })
    }

    /// Writes a certificate with its key, and the CA when it is the first.
    pub(crate) fn install(
        &self,
        identity: &Identity,
        ca_der: Option<&[u8]>,
        machine: &MachineId,
        incarnation: Incarnation,
    ) -> Result<Validity, IdentityFileError> {
        let validity = check(identity, machine, incarnation)?;
        // One that was half installed may have its only key there.
        self.finish_pending();
        self.write_secret("key.next.pem", &key_to_pem(&identity.key))?;
        if let Some(ca_der) = ca_der {
            self.write("ca.pem", CHAIN_MODE, chain_to_pem(&[ca_der.to_vec()]).as_bytes())?;
        }
        self.write("chain.pem", CHAIN_MODE, chain_to_pem(&identity.chain).as_bytes())?;
        // What takes no room cannot fail for want of it.
        let renamed = fs::rename(self.path("key.next.pem"), self.path("key.pem"));
        renamed.map_err(|error| IdentityFileError::Unusable {
            why: format!("its key could not be put in its place: {error}"),
        })?;
        let _ = fs::remove_file(self.path("key.next.csr"));
        Ok(validity)
    }

    /// Keeps where the coordinators are, for a time in which the infrastructure does not tell.
    pub(crate) fn keep_coordinators(&self, coordinators: &[SocketAddr]) -> Result<(), IdentityFileError> {
        if self.coordinators() == coordinators {
            return Ok(());
        }
        let lines: String = coordinators.iter().map(|address| format!("{address}\n")).collect();
        self.write(COORDINATORS, CHAIN_MODE, lines.as_bytes())
    }

    /// Where the coordinators were when that was kept last; empty when it never was.
    pub(crate) fn coordinators(&self) -> Vec<SocketAddr> {
        let text = fs::read_to_string(self.path(COORDINATORS)).unwrap_or_default();
        text.lines().take(COORDINATORS_MAX).filter_map(|line| line.parse().ok()).collect()
    }

    /// Puts the key in its place whose certificate is there already.
    fn finish_pending(&self) {
        let chain = fs::read_to_string(self.path("chain.pem")).ok();
        if let Some(leaf) = chain.and_then(|chain| chain_from_pem(&chain).ok()?.into_iter().next()) {
            self.key_of(&leaf);
        }
    }

    fn write_secret(&self, name: &str, content: &SecretBytes) -> Result<(), IdentityFileError> {
        self.write(name, KEY_MODE, content.expose_secret())
    }

    fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), IdentityFileError> {
        let path: &Path = &self.path(name);
        write_atomically(path, mode, content, Durability::OnDisk).map_err(IdentityFileError::Write)
    }
}

/// Whether a certificate is that of this machine, with its key; when it is, for how long.
///
/// # Errors
/// [`IdentityFileError::Unusable`] says why not.
pub(crate) fn check(
    identity: &Identity,
    machine: &MachineId,
    incarnation: Incarnation,
) -> Result<Validity, IdentityFileError> {
    let unusable = |why: String| IdentityFileError::Unusable { why };
    let leaf = identity.chain.first().ok_or_else(|| unusable("the chain is empty".to_owned()))?;
    let peer = PeerIdentity::from_certificate(leaf).map_err(|error| unusable(error.to_string()))?;
    if (&peer.machine, peer.incarnation) != (machine, incarnation) {
        return Err(unusable(format!("it is for {} {}", peer.machine, peer.incarnation)));
    }
    if !matches_key(leaf, &identity.key) {
        return Err(unusable("it is for another key".to_owned()));
    }
    Ok(Validity { not_before: peer.not_before, not_after: peer.not_after })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keelson_transport::LinkCa;

    use super::*;

    const NOW: WallTime = WallTime(1_700_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    struct Fixture {
        _root: tempfile::TempDir,
        files: IdentityFiles,
        ca: LinkCa,
        machine: MachineId,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let files = IdentityFiles::new(root.path().join("link"));
        let ca = LinkCa::generate("test", NOW, 100 * HOUR).unwrap();
        Fixture { _root: root, files, ca, machine: MachineId::new("demo-worker-1").unwrap() }
    }

    impl Fixture {
        fn certify(&self, request: KeyRequest) -> Identity {
            let signed = self
                .ca
                .sign_machine(&request.signing_request, &self.machine, Incarnation(1), NOW, HOUR)
                .unwrap();
            Identity { chain: signed, key: request.key }
        }

        fn install(&self, identity: &Identity) {
            let ca = Some(self.ca.certificate_der());
            self.files.install(identity, ca, &self.machine, Incarnation(1)).unwrap();
        }

        fn load(&self) -> Result<Held, &'static str> {
            self.files.load(&self.machine, Incarnation(1), NOW)
        }
    }

    #[test]
    fn a_killed_enrolment_asks_again_with_the_same_key() {
        let fixture = fixture();
        assert_eq!(fixture.load().unwrap_err(), "there is no link certificate");
        let key =
            |incarnation| fixture.files.enrolment_key(&fixture.machine, Incarnation(incarnation)).unwrap();
        let (first, again) = (key(1), key(1));
        assert_eq!((&first.key, &first.signing_request), (&again.key, &again.signing_request));
        fixture.install(&fixture.certify(again));
        assert_eq!(fixture.load().unwrap().identity.key, first.key);
        assert_eq!(key(1).key, first.key, "by this it is known, also when its certificate has expired");
        assert_ne!(key(2).key, first.key, "another machine has another key");
        fs::write(fixture.files.path("chain.pem"), "damaged").unwrap();
        assert_eq!(key(1).key, first.key, "and when its certificate is damaged");
    }

    #[test]
    fn a_pair_is_complete_whenever_the_agent_dies_while_it_is_replaced() {
        let fixture = fixture();
        let old = fixture.certify(keelson_transport::make_key_request().unwrap());
        let new = fixture.certify(keelson_transport::make_key_request().unwrap());
        fixture.install(&old);
        // The new key is there, the new chain is not.
        fixture.files.write_secret("key.next.pem", &key_to_pem(&new.key)).unwrap();
        assert_eq!(fixture.load().unwrap().identity, old);
        // The new chain is there, the new key is not in its place.
        fixture.files.write("chain.pem", CHAIN_MODE, chain_to_pem(&new.chain).as_bytes()).unwrap();
        assert_eq!(fixture.load().unwrap().identity, new);
        assert_eq!(fixture.load().unwrap().identity, new, "and it stays so");
    }

    #[test]
    fn a_half_installed_pair_keeps_its_key_when_the_next_one_comes() {
        let fixture = fixture();
        let new = || fixture.certify(keelson_transport::make_key_request().unwrap());
        let (old, half, next) = (new(), new(), new());
        fixture.install(&old);
        fixture.files.write_secret("key.next.pem", &key_to_pem(&half.key)).unwrap();
        fixture.files.write("chain.pem", CHAIN_MODE, chain_to_pem(&half.chain).as_bytes()).unwrap();
        // The disk takes the key of the next one, and not its chain.
        let chain = fixture.files.path("chain.pem");
        let blocked = fixture.files.path("chain.pem.keelson-new");
        fs::create_dir_all(blocked.join("full")).unwrap();
        fixture.files.install(&next, None, &fixture.machine, Incarnation(1)).unwrap_err();
        assert!(chain.exists());
        assert_eq!(fixture.load().unwrap().identity, half);
        fs::remove_dir_all(&blocked).unwrap();
        fixture.install(&next);
        assert_eq!(fixture.load().unwrap().identity, next);
    }

    #[test]
    fn an_identity_of_others_or_of_the_past_is_not_used() {
        let fixture = fixture();
        let identity = fixture.certify(keelson_transport::make_key_request().unwrap());
        fixture.install(&identity);
        let load = |incarnation, now| fixture.files.load(&fixture.machine, Incarnation(incarnation), now);
        assert_eq!(load(2, NOW).unwrap_err(), "the link certificate is for another machine");
        assert_eq!(load(1, NOW.plus(2 * HOUR)).unwrap_err(), "the link certificate has expired");
        let stolen =
            Identity { chain: identity.chain, key: keelson_transport::make_key_request().unwrap().key };
        let refused = fixture.files.install(&stolen, None, &fixture.machine, Incarnation(1)).unwrap_err();
        assert!(refused.to_string().ends_with("it is for another key"));
    }
    #[test]
    fn the_coordinators_are_kept_for_a_time_without_metadata() {
        let fixture = fixture();
        assert_eq!(fixture.files.coordinators(), []);
        let addresses: Vec<SocketAddr> =
            ["10.0.0.1:7443", "[fd00::1]:7443"].map(|a| a.parse().unwrap()).into();
        fixture.files.keep_coordinators(&addresses).unwrap();
        assert_eq!(fixture.files.coordinators(), addresses);
    }
}
