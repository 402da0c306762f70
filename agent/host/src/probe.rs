//! Probes: questions to programs on this machine and on others.
//!
//! HTTP connections are kept open between two questions, because a TLS handshake costs a hundred times what a question
//! does; one that broke is made again at once, so that a server's restart is not mistaken for its death.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use keelson_protocol::config::{ClientFiles, Expect, ProbeSpec, ProbeTarget};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::{PROBE_FILES, blocking, tls};

/// Largest answer that is read, in bytes. A `Node` object with many images has some ten kilobytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// So much of an answer that is not the expected one goes into its error, in characters.
const QUOTE_MAX: usize = 200;
/// Most connections kept open: those of one machine's probes and of the checks of its balancer, and some room.
const KEPT_MAX: usize = 32;

type Sender = SendRequest<Empty<Bytes>>;

/// Asks probes and keeps their connections.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    kept: Mutex<BTreeMap<ProbeTarget, Kept>>,
}

#[derive(Debug)]
struct Kept {
    sender: Sender,
    stamps: tls::Stamps,
}

/// An HTTP question.
struct Question<'a> {
    address: SocketAddr,
    path: &'a str,
    tls: Option<Tls<'a>>,
}

struct Tls<'a> {
    server_name: &'a str,
    ca_path: &'a str,
    client: Option<&'a ClientFiles>,
}

impl Prober {
    pub(crate) async fn ask(&self, probe: &ProbeSpec) -> Result<(), String> {
        let within = Duration::from_millis(u64::from(probe.timeout_ms));
        match tokio::time::timeout(within, self.ask_without_limit(probe)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", probe.timeout_ms)),
        }
    }

    async fn ask_without_limit(&self, probe: &ProbeSpec) -> Result<(), String> {
        let question = match &probe.target {
            ProbeTarget::Tcp(address) => {
                return TcpStream::connect(address).await.map(drop).map_err(|error| io_text(&error));
            }
            ProbeTarget::Unix(path) => return speaks_http2(path).await,
            ProbeTarget::Http { address, path } => Question { address: *address, path, tls: None },
            ProbeTarget::Https { address, path, server_name, ca_path, client } => {
                let tls = Tls { server_name, ca_path, client: client.as_ref() };
                Question { address: *address, path, tls: Some(tls) }
            }
        };
        let (status, body) = self.get(&probe.target, &question).await?;
        judge(&probe.expect, status, &body)
    }

    async fn get(
        &self,
        target: &ProbeTarget,
        question: &Question<'_>,
    ) -> Result<(StatusCode, Bytes), String> {
        let stamps =
            question.tls.as_ref().map(|tls| tls::stamps(tls.ca_path, tls.client)).unwrap_or_default();
        // Out of the map while it is in use: what fails half-way is dropped and not used again.
        let kept = self.kept.lock().expect("no holder of this lock panics").remove(target);
        if let Some(mut kept) = kept.filter(|kept| kept.stamps == stamps && !kept.sender.is_closed())
            && let Ok(answer) = exchange(&mut kept.sender, question).await
        {
            self.keep(target, kept);
            return Ok(answer);
        }
        let mut sender = connect(question).await?;
        let answer = exchange(&mut sender, question).await?;
        self.keep(target, Kept { sender, stamps });
        Ok(answer)
    }

    fn keep(&self, target: &ProbeTarget, connection: Kept) {
        let mut kept = self.kept.lock().expect("no holder of this lock panics");
        kept.retain(|_, kept| !kept.sender.is_closed());
        if kept.len() < KEPT_MAX {
            kept.insert(target.clone(), connection);
        }
    }
}

async fn connect(question: &Question<'_>) -> Result<Sender, String> {
    let stream = TcpStream::connect(question.address).await.map_err(|error| io_text(&error))?;
    stream.set_nodelay(true).map_err(|error| io_text(&error))?;
    let Some(tls) = &question.tls else { return handshake(stream).await };
    let (ca_path, client) = (tls.ca_path.to_owned(), tls.client.cloned());
    let config = blocking(&PROBE_FILES, move || Ok(tls::client_config(&ca_path, client.as_ref()))).await;
    let config = config.map_err(|error| error.chain())??;
    let name = ServerName::try_from(tls.server_name.to_owned())
        .map_err(|_| format!("`{}` is no server name", tls.server_name))?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| io_text(&error))?;
    handshake(stream).await
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, String> {
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(16 * 1024)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(|error| format!("no HTTP connection: {error}"))?;
    // Ends when the sender is dropped or the peer closes; an error there is seen by the next question.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn exchange(sender: &mut Sender, question: &Question<'_>) -> Result<(StatusCode, Bytes), String> {
    sender.ready().await.map_err(|error| format!("the connection was closed: {error}"))?;
    let host =
        question.tls.as_ref().map_or_else(|| question.address.to_string(), |tls| tls.server_name.to_owned());
    let request = Request::get(question.path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json, text/plain")
        .header(header::USER_AGENT, "keelson-agent")
        .body(Empty::new())
        .map_err(|error| format!("`{}` is no path: {error}", question.path))?;
    let response = sender.send_request(request).await.map_err(|error| format!("no HTTP answer: {error}"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| format!("the answer broke off: {error}"))?;
    Ok((status, body.to_bytes()))
}

fn judge(expect: &Expect, status: StatusCode, body: &[u8]) -> Result<(), String> {
    if !status.is_success() {
        return Err(format!("status {}: {}", status.as_u16(), gist(body)));
    }
    match expect {
        Expect::Answer => Ok(()),
        Expect::NodeReady => node_ready(body),
    }
}

/// What a bad answer says, for a person who has one line: the message of a Kubernetes `Status` (v1), the checks of
/// `/readyz` that fail (<https://kubernetes.io/docs/reference/using-api/health-checks/>), or how the text begins.
fn gist(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let status = serde_json::from_slice::<Status>(body).ok().filter(|status| !status.message.is_empty());
    let failing: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    let gist = match status {
        Some(status) => status.message,
        None if failing.is_empty() => text.trim().to_owned(),
        None => {
            let names = failing.iter().map(|line| line.split_once(' ').map_or(*line, |(name, _)| name));
            format!("not yet {}", names.collect::<Vec<_>>().join(", "))
        }
    };
    gist.chars().take(QUOTE_MAX).filter(|letter| !letter.is_control()).collect()
}

/// The part of a Kubernetes `Status` (v1) that is read.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
}

/// The part of a Kubernetes `Node` (v1) that is read.
#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

fn node_ready(body: &[u8]) -> Result<(), String> {
    let node: Node = serde_json::from_slice(body).map_err(|_| "the answer is no Node object".to_owned())?;
    let ready = node.status.conditions.into_iter().find(|condition| condition.kind == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => Ok(()),
        Some(condition) => {
            let message: String = condition.message.chars().take(QUOTE_MAX).collect();
            Err(format!("the node is not ready: {message}"))
        }
        None => Err("the node has no condition Ready yet".to_owned()),
    }
}

/// Short words for what happens all the time.
/// What a client of HTTP/2 says first: its preface and an empty SETTINGS frame (RFC 9113, section 3.4).
const HTTP2_HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Length of a frame's head, which has the frame's type in its fourth byte.
const HTTP2_HEAD_BYTES: usize = 9;
const HTTP2_SETTINGS: u8 = 4;

/// Whether a server on a Unix socket says what a server of HTTP/2, such as one of gRPC, says first. That it can be connected to
/// proves nothing: the kernel takes connections for a program that hangs.
async fn speaks_http2(path: &str) -> Result<(), String> {
    let mut stream = UnixStream::connect(path).await.map_err(|error| io_text(&error))?;
    let mut head = [0; HTTP2_HEAD_BYTES];
    let asked = async {
        stream.write_all(HTTP2_HELLO).await?;
        stream.read_exact(&mut head).await
    };
    asked.await.map_err(|error| io_text(&error))?;
    match head[3] {
        HTTP2_SETTINGS => Ok(()),
        _ => Err("it does not speak HTTP/2".to_owned()),
    }
}

fn io_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::NotFound => "no such socket".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// The kernel takes connections for a program that hangs, up to its backlog.
    #[tokio::test]
    async fn a_server_that_only_listens_does_not_work() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket").display().to_string();
        let listener = UnixListener::bind(&path).unwrap();
        let target = ProbeTarget::Unix(path.clone());
        let probe = ProbeSpec { name: "socket".to_owned(), target, expect: Expect::Answer, timeout_ms: 300 };
        let prober = Prober::default();
        assert_eq!(prober.ask(&probe).await.unwrap_err(), "no answer within 300 ms");
        let says = |words: &'static [u8]| async {
            let (asked, ()) = tokio::join!(prober.ask(&probe), async {
                // The first connection is that of the question before.
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut hello = vec![0; HTTP2_HELLO.len()];
                    if stream.read_exact(&mut hello).await.is_ok() && stream.write_all(words).await.is_ok() {
                        assert_eq!(hello, HTTP2_HELLO);
                        return;
                    }
                }
            });
            asked
        };
        assert_eq!(says(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap_err(), "it does not speak HTTP/2");
        assert_eq!(says(&HTTP2_HELLO[24..]).await, Ok(()));
        drop(listener);
        assert_eq!(prober.ask(&probe).await.unwrap_err(), "connection refused");
    }

    #[test]
    fn a_bad_answer_is_told_in_a_line() {
        for (body, expected) in [
            (
                r#"{"kind":"Status","message":"forbidden: User \"x\" cannot get"}"#,
                "forbidden: User \"x\" cannot get",
            ),
            (
                "[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/rbac failed\n",
                "not yet etcd, poststarthook/rbac",
            ),
            ("{\"health\":\"false\"}\n", "{\"health\":\"false\"}"),
            ("", ""),
        ] {
            assert_eq!(gist(body.as_bytes()), expected);
        }
    }
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    /// An HTTP server that gives every request the same answer and counts its connections.
    async fn server(answer: &'static str, requests_per_connection: usize) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    for _ in 0..requests_per_connection {
                        let mut line = String::new();
                        while stream.read_line(&mut line).await.unwrap_or(0) > 2 {
                            line.clear();
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (address, connections)
    }

    fn probe(address: SocketAddr, expect: Expect) -> ProbeSpec {
        let target = ProbeTarget::Http { address, path: "/healthz".to_owned() };
        ProbeSpec { name: "it".to_owned(), target, expect, timeout_ms: 500 }
    }

    #[tokio::test]
    async fn connections_are_kept_and_made_again() {
        let (address, connections) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 3).await;
        let prober = Prober::default();
        for _ in 0..7 {
            assert_eq!(prober.ask(&probe(address, Expect::Answer)).await, Ok(()));
        }
        assert_eq!(connections.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn bad_answers_are_told_in_words() {
        let prober = Prober::default();
        let (address, _) = server("HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\netcd\nslow", 1).await;
        let answer = prober.ask(&probe(address, Expect::Answer)).await;
        assert_eq!(answer, Err("status 500: etcdslow".to_owned()));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(prober.ask(&probe(free, Expect::Answer)).await, Err("connection refused".to_owned()));
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answer = prober.ask(&probe(silent.local_addr().unwrap(), Expect::Answer)).await;
        assert_eq!(answer, Err("no answer within 500 ms".to_owned()));
    }

    #[test]
    fn nodes_are_judged() {
        let table = [
            (r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#, Ok(())),
            (
                r#"{"status":{"conditions":[{"type":"Ready","status":"False","message":"no CNI"}]}}"#,
                Err("the node is not ready: no CNI"),
            ),
            (r#"{"metadata":{}}"#, Err("the node has no condition Ready yet")),
            ("\"x\"", Err("the answer is no Node object")),
        ];
        for (body, expected) in table {
            assert_eq!(node_ready(body.as_bytes()), expected.map_err(str::to_owned), "{body}");
        }
    }
}
