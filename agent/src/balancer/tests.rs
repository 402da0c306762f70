//! Real sockets on loopback, real TLS for the checks.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::*;

/// From the end of a server's health to a new connection elsewhere.
const OVER_WITHIN: Duration = Duration::from_secs(2);
/// Nothing here takes as long: what is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says its name at once, and how much it heard once the client has said all it has.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await.unwrap();
                let mut asked = Vec::new();
                stream.read_to_end(&mut asked).await.unwrap();
                stream.write_all(format!(":{}", asked.len()).as_bytes()).await.unwrap();
            });
        }
    });
    address
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn connections_go_round_past_dead_servers_and_half_close_passes() {
    let (a, dead, b) = (server("a").await, free_address().await, server("b").await);
    let listen = free_address().await;
    let mut balancer = Balancer::new(Arc::default());
    balancer.apply(Some(BalancerSpec { listen, backends: vec![a, dead, b], check: None })).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(ask(listen).await);
    }
    assert!(answers.iter().all(|answer| answer == "a:5" || answer == "b:5"), "{answers:?}");
    assert!(answers.contains(&"a:5".to_owned()) && answers.contains(&"b:5".to_owned()));
}

#[tokio::test]
async fn a_new_list_of_servers_touches_no_connection_that_stands() {
    let (a, b) = (server("a").await, server("b").await);
    let listen = free_address().await;
    let mut balancer = Balancer::new(Arc::default());
    balancer.apply(Some(BalancerSpec { listen, backends: vec![a], check: None })).await.unwrap();
    let mut standing = TcpStream::connect(listen).await.unwrap();
    let mut name = [0; 1];
    standing.read_exact(&mut name).await.unwrap();
    standing.write_all(b"first").await.unwrap();
    balancer.apply(Some(BalancerSpec { listen, backends: vec![b], check: None })).await.unwrap();
    assert_eq!(ask(listen).await, "b:5");
    balancer.apply(None).await.unwrap();
    assert!(TcpStream::connect(listen).await.is_err());
    standing.write_all(b" and second").await.unwrap();
    standing.shutdown().await.unwrap();
    let mut answer = String::new();
    standing.read_to_string(&mut answer).await.unwrap();
    assert_eq!((name, answer.as_str()), (*b"a", ":16"));
}

/// How an API server behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Ready,
    /// It shuts down: it says so, and serves all the same.
    Draining,
    /// Its kernel takes connections, and nobody answers.
    Frozen,
}

/// A server that answers checks over TLS, and says its name to whoever speaks plainly, at the same address.
struct ApiServer {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
}

impl ApiServer {
    async fn new(name: u8, ca: &Issuer<'static, KeyPair>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Ready);
        let (tls, modes) = (tls(ca), mode.subscribe());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, name, tls.clone(), modes.clone()));
            }
        });
        Self { address, mode }
    }
}

async fn serve(stream: TcpStream, name: u8, tls: TlsAcceptor, mut modes: watch::Receiver<Mode>) {
    let mut first = [0; 1];
    if stream.peek(&mut first).await.is_err() || modes.wait_for(|mode| *mode != Mode::Frozen).await.is_err() {
        return;
    }
    // A TLS connection begins with a handshake record, whose type is 22 (RFC 8446, section 5.1).
    if first != [22] {
        return answer(stream, modes, |_| vec![name]).await;
    }
    let Ok(stream) = tls.accept(stream).await else { return };
    answer(stream, modes, |mode| {
        let status = if mode == Mode::Ready { "200 OK" } else { "503 Service Unavailable" };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    })
    .await;
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut modes: watch::Receiver<Mode>,
    answer: impl Fn(Mode) -> Vec<u8>,
) {
    let mut question = [0; 4096];
    while stream.read(&mut question).await.is_ok_and(|count| count > 0) {
        let Ok(mode) = modes.wait_for(|mode| *mode != Mode::Frozen).await.map(|mode| *mode) else { return };
        if stream.write_all(&answer(mode)).await.is_err() {
            return;
        }
    }
}

fn make_ca(path: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

fn tls(ca: &Issuer<'static, KeyPair>) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["kubernetes".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        );
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

async fn say(stream: &mut TcpStream) -> io::Result<u8> {
    stream.write_all(b"?").await?;
    stream.read_u8().await
}

async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, looking).await.expect("it happens in the end")
}

/// A balancer in front of two checked servers, `a` and `b`.
struct Setting {
    balancer: Balancer,
    listen: SocketAddr,
    a: ApiServer,
    _b: ApiServer,
    _root: tempfile::TempDir,
}

impl Setting {
    async fn new(trusted: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let ca = make_ca(&root.path().join("ca.crt"));
        make_ca(&root.path().join("other.crt"));
        let (a, b) = (ApiServer::new(b'a', &ca).await, ApiServer::new(b'b', &ca).await);
        let listen = free_address().await;
        let check = BalancerCheck {
            path: "/readyz".to_owned(),
            server_name: "kubernetes".to_owned(),
            ca_path: root.path().join(trusted).to_str().unwrap().to_owned(),
        };
        let mut balancer = Balancer::new(Arc::default());
        let backends = vec![a.address, b.address];
        balancer.apply(Some(BalancerSpec { listen, backends, check: Some(check) })).await.unwrap();
        Self { balancer, listen, a, _b: b, _root: root }
    }

    async fn standing_at(&self, name: u8) -> TcpStream {
        eventually(async || {
            let mut stream = TcpStream::connect(self.listen).await.unwrap();
            (say(&mut stream).await.ok() == Some(name)).then_some(stream)
        })
        .await
    }

    async fn knows_dead(&self, count: usize) {
        let servers = &self.balancer.running.as_ref().unwrap().servers;
        eventually(async || (servers.unhealthy().len() == count).then_some(())).await;
    }
}

/// A connection that stands at `a` is reset in time after `a` came to this, and all others go to `b` then.
async fn check_left(mode: Mode) {
    let setting = Setting::new("ca.crt").await;
    let (mut at_a, mut at_b) = (setting.standing_at(b'a').await, setting.standing_at(b'b').await);
    let begun = Instant::now();
    setting.a.mode.send_replace(mode);
    let end = timeout(PATIENCE, at_a.read_u8()).await.unwrap().unwrap_err();
    let ended = begun.elapsed();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(setting.listen).await.unwrap();
        assert_eq!(say(&mut stream).await.unwrap(), b'b');
    }
    let over = begun.elapsed();
    println!("{mode:?}: ended after {} ms, over after {} ms", ended.as_millis(), over.as_millis());
    assert!(over < OVER_WITHIN, "{mode:?}: {over:?}");
    assert_eq!(say(&mut at_b).await.unwrap(), b'b');
    setting.a.mode.send_replace(Mode::Ready);
    setting.standing_at(b'a').await;
}

#[tokio::test]
async fn connections_leave_a_frozen_server_in_time() {
    check_left(Mode::Frozen).await;
}

#[tokio::test]
async fn connections_leave_a_server_that_drains_before_it_ends() {
    check_left(Mode::Draining).await;
}

#[tokio::test]
async fn a_check_that_is_wrong_for_all_servers_changes_nothing() {
    let setting = Setting::new("other.crt").await;
    let mut standing = [setting.standing_at(b'a').await, setting.standing_at(b'b').await];
    setting.knows_dead(2).await;
    for (stream, name) in standing.iter_mut().zip(*b"ab") {
        assert_eq!(say(stream).await.unwrap(), name);
        setting.standing_at(name).await;
    }
}
