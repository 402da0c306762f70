//! Puts the coordinator together and runs it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use keelson_api::AuthConfig;
use keelson_api::types::SecretText;
use keelson_coordinator_core::{CoordinatorCore, Settings};
use keelson_model::Plan;
use keelson_planner::Place;
use keelson_providers::Provider;
use keelson_providers::local::{LocalConfig, LocalProvider, forwarder, missing, preflight};
use keelson_store::Store;
use keelson_transport::{LEAF_LIFE, LinkCa, LinkServer, ServerConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::Serve;
use crate::catalog::{self, Catalog};
use crate::clock::{Clock, wall_now};
use crate::fleet::CoordinatorFleet;
use crate::providers::Infrastructure;
use crate::renewal::{Renewal, copy_of};
use crate::shell::{self, LINK_EVENTS_MAX, Parts};
use crate::state_dir::StateDir;

/// Runs the coordinator until it is told to stop.
pub(crate) fn run(arguments: &Serve) -> Result<()> {
    start_logging(arguments.log_json);
    forwarder::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(arguments));
    // A call of the provider may wait for a disk without end. Whatever it was doing outlives a kill, so nobody waits for it.
    runtime.shutdown_background();
    result
}

/// Tells everything on standard error, from level `info` on or as `KEELSON_LOG` says.
pub(crate) fn start_logging(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KEELSON_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if json { builder.json().init() } else { builder.with_ansi(false).init() }
}

async fn serve(arguments: &Serve) -> Result<()> {
    let began = std::time::Instant::now();
    if let Some(missing) = missing(&preflight(&arguments.state_dir)) {
        bail!(missing);
    }
    tracing::debug!(ms = began.elapsed().as_millis(), "the host has what machines need");
    let catalog = catalog::open(&arguments.images)?;
    let state = StateDir::open(&arguments.state_dir)?;
    let store = Store::open(&state.store_path(), state.sealing_key()?)?;
    let saved = store.load()?;
    let provider = open_provider(arguments, &state, &catalog).await?;
    let capabilities = provider.capabilities();
    let socket = provider.bind_link(arguments.link_port)?;
    let link_address = SocketAddr::from((capabilities.coordinator_address, arguments.link_port));

    let (events, link) = mpsc::channel(LINK_EVENTS_MAX);
    let server = start_link(socket, &state.link_ca, events)?;
    let clock = Clock::start();
    let settings = settings(&state, &catalog, &capabilities)?;
    let infrastructure = Infrastructure {
        provider,
        install: state.install.clone(),
        coordinators: vec![link_address],
        ca_fingerprint: state.link_ca.fingerprint(),
    };
    let listener = bind_api(arguments, &state).await?;
    let port = listener.local_addr()?.port();
    let (renewal, tls) = Renewal::start(&state, server.clone())?;
    let auth = AuthConfig::new().with_token("admin", &SecretText::new(state.admin_token.clone()))?;

    let core = CoordinatorCore::restore(settings, saved, clock.now());
    let link_ca = copy_of(&state.link_ca)?;
    let parts = Parts { core, store, clock, link_ca, infrastructure, link };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let wait = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
        // The sender lives as long as this function; an error means the same as a stop.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let (handle, main_loop) = shell::start(parts, wait(stopped.clone()));
    let fleet = Arc::new(CoordinatorFleet::new(handle, &state, &catalog, wall_now()));
    let router = keelson_api::router(fleet, auth);
    state.write_context(port)?;
    tracing::info!(install = %state.install, api = format!("https://127.0.0.1:{port}"), link = %link_address, "ready");

    let api = tokio::spawn(keelson_api::serve(listener, tls, router, wait(stopped)));
    let renewal = tokio::spawn(renewal.run());
    let result = tokio::select! {
        result = main_loop => result.context("the store failed; nothing that was answered is lost"),
        () = terminated() => Ok(()),
    };
    tracing::info!("stopping; machines and their workloads go on");
    let _ = stop.send(true);
    renewal.abort();
    server.shutdown().await;
    let _ = api.await;
    result
}

async fn open_provider(arguments: &Serve, state: &StateDir, catalog: &Catalog) -> Result<Arc<dyn Provider>> {
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let mut config = LocalConfig::new(
        state.install.clone(),
        arguments.state_dir.clone(),
        catalog.resolver.clone(),
        program,
    );
    config.var_tmpfs_bytes = arguments.fault_disk_bytes;
    let provider = LocalProvider::open(config).await.context("could not open the local provider")?;
    Ok(Arc::new(provider))
}

fn start_link(
    socket: std::net::UdpSocket,
    ca: &LinkCa,
    events: mpsc::Sender<keelson_transport::LinkEvent>,
) -> Result<Arc<LinkServer>> {
    let identity = ca.issue_server(wall_now(), LEAF_LIFE)?;
    let mut config = ServerConfig::new(identity, ca.certificate_der().to_vec());
    config.reset_key = Some(ca.reset_key());
    Ok(Arc::new(LinkServer::start(socket, config, events)?))
}

fn settings(
    state: &StateDir,
    catalog: &Catalog,
    capabilities: &keelson_providers::Capabilities,
) -> Result<Settings> {
    let (network, prefix): (Ipv4Addr, u8) = capabilities.network;
    Ok(Settings {
        install: state.install.clone(),
        place: Place {
            network: Ipv4Net::new(network, prefix).context("the provider's network is not valid")?,
            first_address: capabilities.first_address,
            zones: capabilities.zones.clone(),
        },
        plans: Plan::built_in(),
        releases: catalog.releases.clone(),
        token_key: state.token_key.clone(),
    })
}

async fn bind_api(arguments: &Serve, state: &StateDir) -> Result<TcpListener> {
    let asked = arguments.api_port;
    // The port of the last run, so that clients' contexts stay true; any other when it is taken meanwhile.
    let wanted = if asked == 0 { state.api_port().unwrap_or(0) } else { asked };
    match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await {
        Ok(listener) => Ok(listener),
        Err(error) if asked == 0 && error.kind() == std::io::ErrorKind::AddrInUse => {
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?)
        }
        Err(error) => Err(error).with_context(|| {
            format!("port {wanted} of the API cannot be used; choose another with --api-port, or 0 for any")
        }),
    }
}

async fn terminated() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
