//! The "datacenter": one network namespace with one bridge, and a virtual cable to each machine that is on. Both ends
//! of every cable live in namespaces of ours; the host never sees an interface.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::error::LocalError;
use super::files;
use super::netns;
use super::paths::{MachinePaths, NETNS, Paths};
use super::record::MachineRecord;

/// The bridge of the LAN. It carries the coordinator's address.
pub(crate) const BRIDGE: &str = "br0";

/// Largest packet on the LAN, in bytes: Ethernet's, so that what works here works on other infrastructures.
const MTU_BYTES: u16 = 1500;

/// The network of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    base: Ipv4Addr,
    prefix: u8,
}

impl Network {
    /// `None` unless there is room for the coordinator and machines.
    pub(crate) fn new(base: Ipv4Addr, prefix: u8) -> Option<Self> {
        let host_bits = 32_u32.checked_sub(u32::from(prefix))?;
        let roomy = (5..=24).contains(&host_bits);
        let aligned = roomy && base.to_bits().trailing_zeros() >= host_bits;
        aligned.then_some(Self { base, prefix })
    }

    /// Where the coordinator listens: the first address.
    pub(crate) fn coordinator(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 1)
    }

    /// The first address of machines; those below are kept for services of the LAN.
    pub(crate) fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 10)
    }

    /// Whether a machine may have this address.
    pub(crate) fn allows(self, address: Ipv4Addr) -> bool {
        let broadcast = self.base.to_bits() | (u32::MAX >> self.prefix);
        (self.first().to_bits()..broadcast).contains(&address.to_bits())
    }
}

/// The MAC address of whoever has `address`. The same address always has the same one, so that neighbours need not learn it
/// again after a reboot.
pub(crate) fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    // 02 is the bit for locally administered addresses (IEEE 802).
    format!("02:4b:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Makes the LAN unless it is there.
pub(crate) fn ensure(paths: &Paths, network: Network, until: Instant) -> Result<(), LocalError> {
    if netns::exists(&paths.lan()) {
        return Ok(());
    }
    let draft = paths.lan_draft();
    netns::create(&draft)?;
    let (address, prefix) = (network.coordinator(), network.prefix);
    // With an address of its own: else the bridge has that of one of its ports, another one each time that machine's cable is
    // pulled, and until they notice nobody reaches the coordinator any more.
    let mac = mac(address);
    let script = format!(
        "link set lo up\n\
         link add {BRIDGE} mtu {MTU_BYTES} address {mac} type bridge stp_state 0 forward_delay 0\n\
         addr add {address}/{prefix} dev {BRIDGE}\n\
         link set {BRIDGE} up\n",
    );
    netns::inside(&draft, || {
        // A new namespace copies the host's forwarding; this one has nowhere to forward to and must not try.
        let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
        fs::write(forward, "0").map_err(LocalError::file("write", forward))?;
        ip(paths.root(), &script, until)
    })?;
    netns::publish(&draft, &paths.lan())?;
    netns::remove(&draft)
}

/// Gives up the LAN. Its namespace ends with the last process or socket in it.
pub(crate) fn remove(paths: &Paths) -> Result<(), LocalError> {
    netns::remove(&paths.lan_draft())?;
    netns::remove(&paths.lan())
}

/// Gives a machine a fresh network namespace with one cable to the LAN, configured.
pub(crate) fn plug(
    paths: &Paths,
    network: Network,
    machine: &MachinePaths,
    record: &MachineRecord,
    until: Instant,
) -> Result<(), LocalError> {
    netns::create(&machine.netns())?;
    let (port, mac) = (record.port(), mac(record.address));
    let cable = format!(
        "link add name {port} mtu {MTU_BYTES} type veth peer name eth0 mtu {MTU_BYTES} address {mac} netns ./{NETNS}\n\
         link set {port} master {BRIDGE} alias {} up\n",
        record.id(),
    );
    netns::inside(&paths.lan(), || ip(machine.dir(), &cable, until))?;
    let inside = format!(
        "link set lo up\n\
         addr add {}/{} broadcast + dev eth0\n\
         link set eth0 up\n\
         route add default via {}\n",
        record.address,
        network.prefix,
        network.coordinator(),
    );
    netns::inside(&machine.netns(), || ip(machine.dir(), &inside, until))
}

/// Pulls a machine's cable and gives up its namespace; that there is none is success.
pub(crate) fn unplug(
    paths: &Paths,
    machine: &MachinePaths,
    record: &MachineRecord,
    until: Instant,
) -> Result<(), LocalError> {
    let port = record.port();
    if netns::exists(&paths.lan()) {
        // Deleted by name and not left to the end of the machine's namespace, which the kernel may put off.
        netns::inside(&paths.lan(), || match netns::interfaces()?.contains(&port) {
            true => ip(machine.dir(), &format!("link del {port}\n"), until),
            false => Ok(()),
        })?;
    }
    netns::remove(&machine.netns())
}

/// Runs a batch of `ip` commands in the calling thread's namespace.
fn ip(dir: &Path, script: &str, until: Instant) -> Result<(), LocalError> {
    files::run("ip -batch", Command::new("ip").args(["-batch", "-"]).current_dir(dir), Some(script), until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_mac_address() {
        assert_eq!(mac(Ipv4Addr::new(10, 210, 0, 17)), "02:4b:0a:d2:00:11");
    }

    #[test]
    fn networks_must_be_aligned_and_roomy() {
        let network = Network::new(Ipv4Addr::new(10, 210, 0, 0), 16).unwrap();
        assert_eq!(network.coordinator(), Ipv4Addr::new(10, 210, 0, 1));
        for (address, allowed) in [
            ([10, 210, 0, 1], false),
            ([10, 210, 0, 9], false),
            ([10, 210, 0, 10], true),
            ([10, 210, 255, 254], true),
            ([10, 210, 255, 255], false),
            ([10, 211, 0, 10], false),
        ] {
            assert_eq!(network.allows(Ipv4Addr::from(address)), allowed, "{address:?}");
        }
        for (base, prefix) in
            [([10, 210, 0, 1], 16), ([10, 210, 0, 0], 30), ([10, 0, 0, 0], 7), ([0, 0, 0, 0], 33)]
        {
            assert_eq!(Network::new(Ipv4Addr::from(base), prefix), None, "{base:?}/{prefix}");
        }
    }
}
