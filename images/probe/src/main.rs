//! The program in the pods of `keelson cluster check`: a small server, and the questions that the check asks from inside
//! a pod. Each question prints its answer, or says on standard error why there is none.
//!
//! ```text
//! keelson-probe serve              answers every request on port 8080 with the pod's name
//! keelson-probe echo TEXT          prints TEXT
//! keelson-probe resolve NAME       the addresses of a name
//! keelson-probe get URL            the answer of a server (http://)
//! keelson-probe api PATH           the answer of the API server, asked as the pod's service account
//! keelson-probe read PATH          a file
//! keelson-probe write PATH TEXT    writes a file, for `read`
//! ```

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::Write;
use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tiny_http::Server;
use ureq::config::ConfigBuilder;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body};

/// Where it listens.
const LISTEN: &str = "0.0.0.0:8080";
/// Longest wait for an answer.
const GET_MAX: Duration = Duration::from_secs(5);
/// Longest answer that is printed.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// What Kubernetes gives every pod to reach the API server.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match words.as_slice() {
        ["serve"] => return serve(),
        ["echo", text] => Ok((*text).to_owned()),
        ["resolve", name] => resolve(name),
        ["get", url] => get(url),
        ["api", path] => api(path),
        ["read", path] => fs::read_to_string(path).map_err(|error| format!("{path}: {error}")),
        ["write", path, text] => {
            fs::write(path, text).map(|()| String::new()).map_err(|error| format!("{path}: {error}"))
        }
        _ => Err(format!("keelson-probe does not know what to do with `{}`", words.join(" "))),
    };
    match answer {
        Ok(text) => {
            // Whoever asked may be gone.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until Kubernetes ends the pod.
fn serve() -> ExitCode {
    let pod = env::var("HOSTNAME").unwrap_or_default();
    // Blocked before any thread is made, so that only `wait` below gets them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let server = signals
        .thread_block()
        .map_err(|error| error.to_string())
        .and_then(|()| Server::http(LISTEN).map_err(|error| format!("cannot listen on {LISTEN}: {error}")));
    let server = match server {
        Ok(server) => Arc::new(server),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "{why}");
            return ExitCode::FAILURE;
        }
    };
    // The check looks for this line in the pod's log.
    let _ = writeln!(std::io::stdout(), "{pod} serves on {LISTEN}");
    let answering = Arc::clone(&server);
    thread::spawn(move || {
        for request in answering.incoming_requests() {
            // A client that left is no concern.
            let _ = request.respond(tiny_http::Response::from_string(format!("{pod}\n")));
        }
    });
    let _ = signals.wait();
    ExitCode::SUCCESS
}

fn resolve(name: &str) -> Result<String, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| format!("{name}: {error}"))?;
    let addresses: BTreeSet<String> = found.map(|address| address.ip().to_string()).collect();
    Ok(addresses.into_iter().collect::<Vec<_>>().join(" "))
}

fn get(url: &str) -> Result<String, String> {
    answer(url, agent().build().new_agent().get(url).call().map_err(|error| why(url, &error))?)
}

/// Asks the API server where Kubernetes tells every pod to find it: by address, so that DNS has no part in it.
fn api(path: &str) -> Result<String, String> {
    let read = |name: &str| {
        let path = format!("{ACCOUNT}/{name}");
        fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    };
    let variable = |name: &str| env::var(name).map_err(|_| format!("{name} is not set"));
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("https://{host}:{}{path}", variable("KUBERNETES_SERVICE_PORT")?);
    let authority =
        Certificate::from_pem(read("ca.crt")?.as_bytes()).map_err(|error| format!("ca.crt: {error}"))?;
    let roots = RootCerts::new_with_certs(&[authority]);
    let tls = TlsConfig::builder().root_certs(roots).build();
    let request = agent().tls_config(tls).build().new_agent().get(&url);
    let request = request.header("authorization", format!("Bearer {}", read("token")?.trim()));
    answer(&url, request.call().map_err(|error| why(&url, &error))?)
}

fn why(url: &str, error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("{url}: no answer within {} s", GET_MAX.as_secs()),
        other => format!("{url}: {other}"),
    }
}

fn agent() -> ConfigBuilder<AgentScope> {
    Agent::config_builder().timeout_global(Some(GET_MAX)).proxy(None)
}

fn answer(url: &str, answer: Response<Body>) -> Result<String, String> {
    let text = answer.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    text.map_err(|error| format!("{url}: {error}"))
}
