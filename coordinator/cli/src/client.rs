//! The HTTPS client: one pinned CA, one token, HTTP/1.1.
//!
//! A request that broke before its answer came is sent once more: reads change nothing, and changes carry an
//! `Idempotency-Key` or `If-Match`, or say how something shall be, so the second one finds what the first one did.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use keelson_api::problem::ProblemView;
use keelson_api::types::ListView;
use keelson_api::{Code, Problem};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::context::Context;
use crate::failure::Failure;

/// How long a connection with its handshakes may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin: longer than the longest wait of the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(100);
/// Largest answer, in bytes: a page of 500 clusters with all their machines' health.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Most pages of one list: 500,000 items.
const PAGES_MAX: usize = 1_000;

/// A client of one coordinator.
pub(crate) struct Client {
    context: Context,
    host: String,
    port: u16,
    tls: TlsConnector,
    kept: Option<SendRequest<Full<Bytes>>>,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<Bytes>,
}

impl Call {
    /// Reads `path` (below `/v1/`). Segments that a user typed go through [`segment`].
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// Asks for something new or for an act.
    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    /// Changes something.
    pub(crate) fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path)
    }

    /// Makes something, or makes it like this.
    pub(crate) fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    /// Removes something.
    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), headers: Vec::new(), body: None }
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        self.body = Some(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
        self
    }

    fn request(&self, context: &Context, authority: &str) -> Result<Request<Full<Bytes>>, Failure> {
        let query = serde_urlencoded::to_string(&self.query).unwrap_or_default();
        let question = if query.is_empty() { "" } else { "?" };
        let invalid = |_| Failure::usage("the request cannot be built from what was typed");
        let token = format!("Bearer {}", context.token.expose_secret());
        let mut token = HeaderValue::from_str(&token).map_err(|_| {
            Failure::new(
                Code::ContextInvalid,
                "the token in the context file has characters that no token has",
            )
        })?;
        token.set_sensitive(true);
        let mut builder = Request::builder()
            .method(&self.method)
            .uri(format!("/v1/{}{question}{query}", self.path))
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("keelson/", env!("CARGO_PKG_VERSION")))
            .header(header::AUTHORIZATION, token);
        for (name, value) in &self.headers {
            builder = builder.header(*name, value);
        }
        if self.body.is_some() {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        builder.body(Full::new(self.body.clone().unwrap_or_default())).map_err(invalid)
    }
}

/// A segment of a path that a user typed.
pub(crate) fn segment(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            safe.push(char::from(byte));
        } else {
            safe.push_str(&format!("%{byte:02X}"));
        }
    }
    // `.` and `..` would be taken away by whatever stands between.
    if safe.bytes().all(|byte| byte == b'.') { safe.replace('.', "%2E") } else { safe }
}

impl Client {
    /// A client of the context's coordinator. Connects only when it is used.
    pub(crate) fn new(context: Context) -> Result<Self, Failure> {
        let invalid = |why: &str| -> Failure {
            let what = format!("the context {} cannot be used", context.path.display());
            Problem::new(Code::ContextInvalid, what).because(why).into()
        };
        let uri: Uri = context.server.parse().map_err(|_| invalid("server is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(invalid("server must begin with https://: the token is never sent in the clear"));
        }
        let host = uri.host().ok_or_else(|| invalid("server names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(context.ca_certificate.as_bytes()) {
            let certificate = certificate.map_err(|_| invalid("caCertificate is not PEM"))?;
            roots.add(certificate).map_err(|_| invalid("caCertificate holds no CA certificate"))?;
        }
        if roots.is_empty() {
            return Err(invalid("caCertificate holds no certificate"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut tls = builder
            .map_err(|_| invalid("TLS cannot be set up"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let port = uri.port_u16().unwrap_or(443);
        Ok(Self { host, port, tls: TlsConnector::from(Arc::new(tls)), context, kept: None })
    }

    /// Whom it asks, for prompts and messages.
    pub(crate) fn server(&self) -> &str {
        &self.context.server
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Failure {
        let what = format!("the coordinator at {} does not answer", self.context.server);
        Problem::new(Code::Unreachable, what).because(why).into()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let name = ServerName::try_from(self.host.clone()).map_err(|error| self.unreachable(error))?;
        let connect = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
            let stream = stream.map_err(|error| self.unreachable(error))?;
            // Requests are small and somebody waits for each.
            let _ = stream.set_nodelay(true);
            let stream = self.tls.connect(name, stream).await.map_err(|error| self.tls_failure(&error))?;
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(error))
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
        let timed_out = || self.unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()));
        let (sender, connection) = connected.map_err(|_| timed_out())??;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn tls_failure(&self, error: &std::io::Error) -> Failure {
        let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match rustls {
            Some(rustls @ rustls::Error::InvalidCertificate(_)) => {
                let what = format!("the certificate of {} is not trusted", self.context.server);
                Problem::new(Code::TlsNotTrusted, what).because(rustls).into()
            }
            _ => self.unreachable(error),
        }
    }

    /// Sends a call and gives back the answer's head when it is a success.
    pub(crate) async fn send(&mut self, call: &Call) -> Result<Response<Incoming>, Failure> {
        let response = match self.send_once(call).await {
            Err(failure) if failure.code() == Some(Code::Unreachable) => self.send_once(call).await?,
            other => other?,
        };
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response).await?;
        match serde_json::from_slice::<ProblemView>(&body) {
            Ok(problem) => Err(Failure::from_api(problem)),
            Err(_) => Err(self.unexpected(format!("status {status} without a problem document"))),
        }
    }

    async fn send_once(&mut self, call: &Call) -> Result<Response<Incoming>, Failure> {
        let request = call.request(&self.context, &format!("{}:{}", self.host, self.port))?;
        let mut usable = None;
        if let Some(mut kept) = self.kept.take() {
            usable = kept.ready().await.is_ok().then_some(kept);
        }
        let mut sender = match usable {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.unreachable(error)),
            Err(_) => return Err(self.unreachable("the connection stands, but no answer comes")),
        };
        self.kept = Some(sender);
        Ok(response)
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.unreachable(error))
    }

    fn unexpected(&self, why: String) -> Failure {
        let what = format!("the answer of {} cannot be understood", self.context.server);
        Problem::new(Code::UnexpectedAnswer, what).because(why).into()
    }

    /// Sends a call and reads the answer's document.
    pub(crate) async fn document<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, Failure> {
        let response = self.send(call).await?;
        let body = self.collect(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.unexpected(error.to_string()))
    }

    /// Reads a list to its end.
    pub(crate) async fn all<T: DeserializeOwned>(&mut self, call: &Call) -> Result<ListView<T>, Failure> {
        let size = Some(keelson_api::types::PAGE_SIZE_MAX);
        let mut list: ListView<T> = self.document(&call.clone().query("page_size", size)).await?;
        for _ in 0..PAGES_MAX {
            let Some(token) = list.next_page_token.take() else { break };
            let next = call.clone().query("page_size", size).query("page_token", Some(token));
            let page: ListView<T> = self.document(&next).await?;
            list.items.extend(page.items);
            list.next_page_token = page.next_page_token;
        }
        Ok(list)
    }
}

/// A key for one request: 128 random bits.
pub(crate) fn idempotency_key() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_types_stays_one_segment() {
        for (typed, sent) in [
            ("demo", "demo"),
            ("a/b", "a%2Fb"),
            ("..", "%2E%2E"),
            ("a b?c", "a%20b%3Fc"),
            ("op-1:wait", "op-1%3Await"),
        ] {
            assert_eq!(segment(typed), sent);
        }
    }
}
