//! The coordinator's own certificates: that of the link and that of the API, each made anew after half of its life.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use keelson_model::material::Authority;
use keelson_pki::{API_LEAF_LIFE, api_certificate};
use keelson_protocol::WallTime;
use keelson_transport::{LEAF_LIFE, LinkCa, LinkServer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::clock::wall_now;
use crate::state_dir::StateDir;

/// How often the wall clock is looked at: a host that was suspended wakes up days later.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What the API's server answers handshakes with.
pub(crate) type Tls = Arc<rustls::ServerConfig>;

/// Keeps both certificates young.
pub(crate) struct Renewal {
    link: Aged,
    link_ca: LinkCa,
    server: Arc<LinkServer>,
    api: Aged,
    api_authority: Authority,
    tls: watch::Sender<Tls>,
}

impl Renewal {
    /// Takes over a link server with a fresh certificate, and makes the API's first one.
    pub(crate) fn start(state: &StateDir, server: Arc<LinkServer>) -> Result<(Self, watch::Receiver<Tls>)> {
        let now = wall_now();
        let api_authority = state.api_authority().clone();
        let (tls, receiver) = watch::channel(api_tls(&api_authority, now)?);
        let link = Aged { issued: now, life: LEAF_LIFE };
        let api = Aged { issued: now, life: API_LEAF_LIFE };
        Ok((Self { link, link_ca: copy_of(&state.link_ca)?, server, api, api_authority, tls }, receiver))
    }

    /// Renews what is due, for ever.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = wall_now();
            if self.link.is_due(now) {
                match self.link_ca.issue_server(now, LEAF_LIFE) {
                    Ok(identity) => {
                        self.server.replace_identity(identity);
                        self.link.issued = now;
                    }
                    Err(error) => tracing::error!(%error, "the link's certificate was not renewed"),
                }
            }
            if self.api.is_due(now) {
                match api_tls(&self.api_authority, now) {
                    Ok(tls) => {
                        self.tls.send_replace(tls);
                        self.api.issued = now;
                    }
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "the API's certificate was not renewed")
                    }
                }
            }
        }
    }
}

/// How old a certificate is.
struct Aged {
    issued: WallTime,
    life: Duration,
}

impl Aged {
    /// After half of its life, and when the clock was set back to before it holds.
    fn is_due(&self, now: WallTime) -> bool {
        now.since(self.issued) >= self.life / 2 || now < self.issued
    }
}

fn api_tls(authority: &Authority, now: WallTime) -> Result<Tls> {
    let (certificate, key) = api_certificate(authority, now)?;
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(key.expose_secret())?;
    Ok(keelson_api::serve::server_config(vec![certificate], key)?)
}

/// Another copy of the link's CA.
pub(crate) fn copy_of(ca: &LinkCa) -> Result<LinkCa> {
    let (certificate, key) = ca.to_pem();
    Ok(LinkCa::from_pem(&certificate, &key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_by_the_wall_clock() {
        let issued = WallTime(1_700_000_000_000);
        let aged = Aged { issued, life: LEAF_LIFE };
        assert!(!aged.is_due(issued.plus(LEAF_LIFE / 3)));
        assert!(aged.is_due(issued.plus(LEAF_LIFE / 2)));
        assert!(aged.is_due(issued.plus(10 * LEAF_LIFE)), "a host that was suspended");
        assert!(aged.is_due(WallTime(issued.0 - 1_000)), "a clock that was set back");
    }
}
