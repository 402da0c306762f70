//! The two-tier application that the demo cluster runs: a frontend that asks a backend, both over HTTP/1.1 on port 8080.
//! Every answer names the pod and the node that gave it, so that one request shows which machines took part.
//!
//! ```text
//! keelson-demo backend     GET /  -> {"tier":"backend","node":...,"pod":...,"counter":n}
//! keelson-demo frontend    GET /  -> {"tier":"frontend","node":...,"pod":...,"backend":{...}}, 502 when it is away
//! both                     GET /healthz -> ok
//! ```
//!
//! Environment: `TIER` (when no argument is given), `NODE_NAME`, `POD_NAME`, `BACKEND_URL`, `LISTEN` (for tests).

mod http;

use std::env;
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use http::{Answer, Request};

/// Where it listens unless `LISTEN` says otherwise.
const LISTEN_DEFAULT: &str = "[::]:8080";
/// Where it listens when the machine has no IPv6.
const LISTEN_WITHOUT_IPV6: &str = "0.0.0.0:8080";
/// Connections served at a time. More are closed at once, so that memory stays bounded.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of stack of a connection's thread. It parses a small request, but resolving a name takes some tens of KiB in libc.
const STACK_BYTES: usize = 512 * 1024;

/// Which of the two programs this is.
enum Tier {
    /// Counts requests.
    Backend { counter: AtomicU64 },
    /// Asks the backend at this host and port.
    Frontend { backend: String },
}

/// What every request needs.
struct App {
    tier: Tier,
    node: String,
    pod: String,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log(&format!("keelson-demo: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let tier = env::args().nth(1).unwrap_or_else(|| variable("TIER"));
    let tier = parse_tier(&tier, &variable("BACKEND_URL"))?;
    let app = Arc::new(App { tier, node: variable("NODE_NAME"), pod: variable("POD_NAME") });
    end_at_sigterm()?;
    let listener = listen(env::var("LISTEN").ok().as_deref())?;
    let address = listener.local_addr().map_err(|error| format!("no local address: {error}"))?;
    log(&format!("{} listening on {address}", app.tier_name()));
    serve(&app, &listener);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a container's log is its standard error")]
fn log(line: &str) {
    eprintln!("{line}");
}

fn parse_tier(tier: &str, backend_url: &str) -> Result<Tier, String> {
    match tier {
        "backend" => Ok(Tier::Backend { counter: AtomicU64::new(0) }),
        "frontend" => Ok(Tier::Frontend { backend: http::authority(backend_url)? }),
        other => Err(format!("{other:?} is no tier; use: keelson-demo backend|frontend")),
    }
}

/// As process 1 of a container the default action of a signal does not apply, so a thread waits for it.
fn end_at_sigterm() -> Result<(), String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Blocked here, before any other thread is made, so that all of them have it blocked.
    signals.thread_block().map_err(|error| format!("signals cannot be blocked: {error}"))?;
    let wait = move || {
        let _ = signals.wait();
        std::process::exit(0);
    };
    thread::Builder::new().spawn(wait).map(drop).map_err(|error| format!("no thread: {error}"))
}

fn listen(address: Option<&str>) -> Result<TcpListener, String> {
    let bind = |address: &str| TcpListener::bind(address).map_err(|error| format!("{address}: {error}"));
    match address {
        Some(address) => bind(address),
        None => bind(LISTEN_DEFAULT).or_else(|_| bind(LISTEN_WITHOUT_IPV6)),
    }
}

fn serve(app: &Arc<App>, listener: &TcpListener) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (app, count) = (Arc::clone(app), Arc::clone(&open));
        let work = move || {
            app.connection(stream);
            count.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().stack_size(STACK_BYTES).spawn(work).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl App {
    fn connection(&self, stream: TcpStream) {
        let Ok(mut connection) = http::Connection::new(stream) else { return };
        while let Some(request) = connection.next_request() {
            let answer = match &request {
                Ok(request) => self.answer(request),
                Err(refused) => refused.clone(),
            };
            let goes_on = request.is_ok_and(|request| request.keep_alive);
            if connection.send(&answer, goes_on).is_err() || !goes_on {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/healthz") => Answer::text(200, "ok\n", request),
            ("GET" | "HEAD", "/") => {
                let (status, value) = self.page();
                Answer::json(status, &value, request)
            }
            ("GET" | "HEAD", path) => {
                Answer::json(404, &json!({"error": format!("nothing is at {path}")}), request)
            }
            (method, _) => Answer::json(405, &json!({"error": format!("{method} is not allowed")}), request),
        }
    }

    fn page(&self) -> (u16, Value) {
        match &self.tier {
            Tier::Backend { counter } => {
                let counter = counter.fetch_add(1, Ordering::Relaxed) + 1;
                (200, json!({"tier": "backend", "node": self.node, "pod": self.pod, "counter": counter}))
            }
            Tier::Frontend { backend } => match http::get_json(backend) {
                Ok(answer) => {
                    (200, json!({"tier": "frontend", "node": self.node, "pod": self.pod, "backend": answer}))
                }
                Err(reason) => {
                    let error = format!("the backend {backend} does not answer: {reason}");
                    (502, json!({"tier": "frontend", "node": self.node, "pod": self.pod, "error": error}))
                }
            },
        }
    }

    fn tier_name(&self) -> &'static str {
        match self.tier {
            Tier::Backend { .. } => "backend",
            Tier::Frontend { .. } => "frontend",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::SocketAddr;

    use super::*;

    fn start(tier: Tier) -> SocketAddr {
        let app = Arc::new(App { tier, node: "n1".to_owned(), pod: "p1".to_owned() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&app, &listener));
        address
    }

    fn talk(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(address: SocketAddr, path: &str) -> (u16, Value) {
        let answer =
            talk(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    #[test]
    fn both_tiers_answer_and_name_themselves() {
        let backend = start(parse_tier("backend", "").unwrap());
        let frontend = start(parse_tier("frontend", &format!("http://{backend}/")).unwrap());
        assert_eq!(get(backend, "/").1["counter"], 1);
        let (status, page) = get(frontend, "/");
        assert_eq!((status, &page["tier"], &page["node"]), (200, &json!("frontend"), &json!("n1")));
        assert_eq!(page["backend"], json!({"tier": "backend", "node": "n1", "pod": "p1", "counter": 2}));
        assert_eq!(get(frontend, "/healthz").0, 200);
        assert_eq!(get(frontend, "/x").0, 404);
    }

    #[test]
    fn an_absent_backend_is_a_bad_gateway_and_the_frontend_stays_healthy() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let frontend = start(parse_tier("frontend", &format!("http://{gone}")).unwrap());
        let (status, page) = get(frontend, "/");
        assert_eq!(status, 502);
        assert!(
            page["error"].as_str().unwrap().starts_with(&format!("the backend {gone} does not answer: "))
        );
        assert_eq!(get(frontend, "/healthz").0, 200);
    }

    #[test]
    fn bad_requests_are_refused() {
        let backend = start(parse_tier("backend", "").unwrap());
        let long_head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
        for (request, status) in [
            ("nonsense\r\n\r\n", "400"),
            ("GET / HTTP/2.0\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "405"),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "413"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "413"),
            (long_head.as_str(), "431"),
        ] {
            let answer = talk(backend, request.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.40}: {answer}");
        }
    }

    #[test]
    fn one_connection_serves_several_requests() {
        let backend = start(parse_tier("backend", "").unwrap());
        let twice = "GET /healthz HTTP/1.1\r\n\r\nHEAD /healthz HTTP/1.1\r\nConnection: close\r\n\r\n";
        let answer = talk(backend, twice.as_bytes());
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2);
        assert_eq!(answer.matches("ok\n").count(), 1);
    }

    #[test]
    fn wrong_settings_are_named() {
        for (tier, url, message) in [
            ("", "", "\"\" is no tier; use: keelson-demo backend|frontend"),
            ("frontend", "", "BACKEND_URL is not set; it is like http://backend:8080"),
            ("frontend", "https://b", "BACKEND_URL \"https://b\" does not begin with http://"),
        ] {
            assert_eq!(parse_tier(tier, url).err().unwrap(), message);
        }
        assert_eq!(http::authority("http://backend.demo.svc/x").unwrap(), "backend.demo.svc:80");
        assert_eq!(http::authority("http://[::1]").unwrap(), "[::1]:80");
    }
}
