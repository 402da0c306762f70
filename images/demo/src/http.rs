//! As much of HTTP/1.1 as the demo needs, with a limit on everything (RFC 9112).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::{Value, json};

/// Bytes of the head of a request or an answer.
const HEAD_BYTES_MAX: u64 = 8 * 1024;
/// Bytes of a backend's answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Bytes still read after a refusal, so that the refusal is not lost to a reset connection.
const DRAIN_BYTES_MAX: u64 = 256 * 1024;
/// Time an idle connection is kept, and a slow sender gets.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time to reach the backend: a Service without endpoints must not make the caller wait.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the backend's answer.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of the backend's name that are tried.
const ADDRESSES_MAX: usize = 3;

/// A request without a body.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) keep_alive: bool,
}

/// What is sent back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
    /// An answer to HEAD has the head only.
    head_only: bool,
}

impl Answer {
    pub(crate) fn text(status: u16, body: &str, request: &Request) -> Answer {
        let (body, head_only) = (body.to_owned(), request.method == "HEAD");
        Answer { status, content_type: "text/plain; charset=utf-8", body, head_only }
    }

    pub(crate) fn json(status: u16, value: &Value, request: &Request) -> Answer {
        Answer { head_only: request.method == "HEAD", ..Answer::refusal(status, value) }
    }

    fn refusal(status: u16, value: &Value) -> Answer {
        Answer { status, content_type: "application/json", body: format!("{value}\n"), head_only: false }
    }
}

/// One client.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Connection> {
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Connection { reader: BufReader::new(stream) })
    }

    /// The next request, or the refusal to send for one that is not acceptable. None at the end.
    pub(crate) fn next_request(&mut self) -> Option<Result<Request, Answer>> {
        let refuse = |status, error: &str| Some(Err(Answer::refusal(status, &json!({"error": error}))));
        let head = match read_head(&mut self.reader) {
            Ok(Some(head)) => head,
            Ok(None) => return None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return refuse(431, "the head of the request is too large");
            }
            Err(_) => return None,
        };
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return refuse(400, "the request line is malformed");
        };
        if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || !target.starts_with('/') {
            return refuse(400, "only HTTP/1.1 requests for a path are understood");
        }
        let mut keep_alive = version == "HTTP/1.1";
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("connection") {
                keep_alive &= !value.eq_ignore_ascii_case("close");
            }
            let has_body = name.eq_ignore_ascii_case("transfer-encoding")
                || name.eq_ignore_ascii_case("content-length") && value != "0";
            if has_body {
                return refuse(413, "requests have no body here");
            }
        }
        let path = target.split('?').next().unwrap_or_default().to_owned();
        Some(Ok(Request { method: method.to_owned(), path, keep_alive }))
    }

    pub(crate) fn send(&mut self, answer: &Answer, keep_alive: bool) -> io::Result<()> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            answer.status,
            reason(answer.status),
            answer.content_type,
            answer.body.len(),
        );
        if !answer.head_only {
            text.push_str(&answer.body);
        }
        self.reader.get_mut().write_all(text.as_bytes())?;
        if !keep_alive {
            // Closing with unread bytes would reset the connection before the client has the answer.
            self.reader.get_mut().shutdown(std::net::Shutdown::Write)?;
            io::copy(&mut self.reader.by_ref().take(DRAIN_BYTES_MAX), &mut io::sink())?;
        }
        Ok(())
    }
}

/// Reads up to the empty line. None when the peer closed between messages; `InvalidData` when the head is too large.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut limited = reader.take(HEAD_BYTES_MAX);
    let mut head = Vec::new();
    loop {
        let start = head.len();
        if limited.read_until(b'\n', &mut head)? == 0 || head.last() != Some(&b'\n') {
            let too_large = limited.limit() == 0;
            return if too_large { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
        }
        if matches!(&head[start..], b"\r\n" | b"\n") {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        _ => "Unknown",
    }
}

/// Host and port of a URL.
pub(crate) fn authority(url: &str) -> Result<String, String> {
    if url.is_empty() {
        return Err("BACKEND_URL is not set; it is like http://backend:8080".to_owned());
    }
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("BACKEND_URL {url:?} does not begin with http://"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let after_address = authority.rsplit(']').next().unwrap_or_default();
    Ok(if after_address.contains(':') { authority.to_owned() } else { format!("{authority}:80") })
}

/// Asks for `/` and returns the JSON of the answer. The name is resolved each time: pods come and go.
pub(crate) fn get_json(authority: &str) -> Result<Value, String> {
    let text = |error: io::Error| error.to_string();
    let addresses = authority.to_socket_addrs().map_err(text)?;
    let mut last = "its name has no address".to_owned();
    for address in addresses.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return exchange(stream, authority),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn exchange(mut stream: TcpStream, authority: &str) -> Result<Value, String> {
    let text = |error: io::Error| error.to_string();
    stream.set_read_timeout(Some(BACKEND_TIMEOUT)).map_err(text)?;
    stream.set_write_timeout(Some(BACKEND_TIMEOUT)).map_err(text)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(text)?;
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader).map_err(text)?.ok_or("it closed the connection")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(format!("it answered with status {status:?}"));
    }
    let mut body = Vec::new();
    reader.take(ANSWER_BYTES_MAX).read_to_end(&mut body).map_err(text)?;
    serde_json::from_slice(&body).map_err(|error| format!("its answer is no JSON: {error}"))
}
