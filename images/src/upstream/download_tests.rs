//! The download path against a real HTTPS server on loopback, with a certificate of its own authority.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::progress::Silent;
use crate::upstream::recipe::RecipeError;

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Serves the file, and ranges of it.
    Whole,
    /// Serves the file, and cuts the connection after so many bytes of each answer.
    CutAfter(usize),
    /// As `CutAfter` for the first answer; ignores ranges.
    CutOnceIgnoringRanges(usize),
    /// Answers with this status.
    Status(u16),
    /// Answers with 503 this often, then serves the file.
    BusyFirst(usize),
    /// Sends without saying how much.
    WithoutLength,
}

struct Server {
    address: String,
    authority: RootCerts,
    /// The `Range` header of each request, empty when it had none.
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(behaviour: Behaviour, content: &'static [u8]) -> Server {
        let mut names = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        names.is_ca = rcgen::IsCa::NoCa;
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = names.signed_by(&key, &issuer).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://localhost:{}/file.bin", listener.local_addr().unwrap().port());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ranges);
        thread::spawn(move || serve(&listener, &Arc::new(config), behaviour, content, &seen));
        let authority = certificates(ca_certificate.pem().as_bytes()).unwrap();
        Server { address, authority, ranges }
    }

    fn downloader(&self) -> Downloader {
        Downloader::new(self.authority.clone(), Duration::ZERO)
    }
}

fn serve(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    behaviour: Behaviour,
    content: &[u8],
    ranges: &Mutex<Vec<String>>,
) {
    for stream in listener.incoming() {
        let connection = ServerConnection::new(Arc::clone(config)).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
        let mut range = String::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap_or(0) <= 2 {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("range: ") {
                range = value.trim().to_owned();
            }
        }
        let number = {
            let mut ranges = ranges.lock().unwrap();
            ranges.push(range.clone());
            ranges.len()
        };
        let tls = stream.get_mut();
        let _ = tls.write_all(&answer(behaviour, content, &range, number));
        let _ = tls.flush();
        tls.conn.send_close_notify();
        let _ = tls.flush();
    }
}

/// The bytes of the `number`th answer, cut where the behaviour says so.
fn answer(behaviour: Behaviour, content: &[u8], range: &str, number: usize) -> Vec<u8> {
    let plain =
        |status: u16| format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let start = range.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse().ok());
    let (start, cut) = match behaviour {
        Behaviour::Status(status) => return plain(status).into_bytes(),
        Behaviour::BusyFirst(times) if number <= times => return plain(503).into_bytes(),
        Behaviour::WithoutLength => {
            return [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", content].concat();
        }
        Behaviour::CutOnceIgnoringRanges(bytes) => (None, if number == 1 { bytes } else { usize::MAX }),
        Behaviour::CutAfter(bytes) => (start, bytes),
        Behaviour::Whole | Behaviour::BusyFirst(_) => (start, usize::MAX),
    };
    let length = content.len();
    let head = match start {
        Some(start) if start >= length => return plain(416).into_bytes(),
        Some(start) => format!("HTTP/1.1 206 P\r\nContent-Range: bytes {start}-{}/{length}\r\n", length - 1),
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    let body = &content[start.unwrap_or(0)..];
    let head = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), &body[..body.len().min(cut)]].concat()
}

/// Large enough for several reads, different everywhere.
fn content() -> &'static [u8] {
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    bytes.leak()
}

const MAX: u64 = 1_000_000;

/// Fetches `content` from a server of this behaviour, with `before` already in the partial file.
fn fetch(behaviour: Behaviour, before: &[u8]) -> (Result<Vec<u8>, DownloadError>, Vec<String>, bool) {
    let content = content();
    let server = Server::start(behaviour, content);
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("part");
    if !before.is_empty() {
        fs::write(&part, before).unwrap();
    }
    let result = server.downloader().fetch(&server.address, Digest::of(content), MAX, &part, &mut Silent);
    let ranges = server.ranges.lock().unwrap().clone();
    (result.map(|()| fs::read(&part).unwrap()), ranges, part.exists())
}

#[test]
fn a_good_transfer() {
    let (result, ranges, _) = fetch(Behaviour::Whole, b"");
    assert_eq!(result.unwrap(), content());
    assert_eq!(ranges, [""]);
}

#[test]
fn a_transfer_without_a_length() {
    assert_eq!(fetch(Behaviour::WithoutLength, b"").0.unwrap(), content());
}

#[test]
fn a_cut_off_transfer_goes_on_where_it_was() {
    let (result, ranges, _) = fetch(Behaviour::CutAfter(150_000), b"");
    assert_eq!(result.unwrap(), content());
    assert_eq!(ranges, ["", "bytes=150000-", "bytes=300000-"]);
}

#[test]
fn what_an_earlier_run_left_is_used() {
    let (result, ranges, _) = fetch(Behaviour::Whole, &content()[..1000]);
    assert_eq!(result.unwrap(), content());
    assert_eq!(ranges, ["bytes=1000-"]);
}

#[test]
fn what_an_earlier_run_finished_is_not_fetched_again() {
    let (result, ranges, _) = fetch(Behaviour::Whole, content());
    assert_eq!(result.unwrap(), content());
    assert_eq!(ranges, ["bytes=400000-"]);
}

#[test]
fn a_remainder_of_another_file_is_dropped() {
    for other in [&[7_u8; 1000][..], &[7; 500_000]] {
        let (result, ranges, _) = fetch(Behaviour::Whole, other);
        assert_eq!(result.unwrap(), content());
        assert_eq!(ranges.last().unwrap(), "");
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (result, ranges, _) = fetch(Behaviour::CutOnceIgnoringRanges(150_000), b"");
    assert_eq!(result.unwrap(), content());
    assert_eq!(ranges, ["", "bytes=150000-"]);
}

#[test]
fn a_busy_server_is_asked_again_but_not_for_ever() {
    assert_eq!(fetch(Behaviour::BusyFirst(3), b"").0.unwrap(), content());
    let (result, ranges, _) = fetch(Behaviour::BusyFirst(100), b"");
    assert!(matches!(result, Err(DownloadError::GivenUp { attempts: FRUITLESS_ATTEMPTS_MAX, .. })));
    assert_eq!(ranges.len(), 5);
}

#[test]
fn final_answers_are_final() {
    let (result, ranges, _) = fetch(Behaviour::Status(404), b"");
    assert!(matches!(result, Err(DownloadError::NotFound { .. })));
    assert_eq!(ranges.len(), 1);
    let (result, ranges, _) = fetch(Behaviour::Status(403), b"");
    assert!(matches!(result, Err(DownloadError::Status { status: 403, .. })));
    assert_eq!(ranges.len(), 1);
}

#[test]
fn a_wrong_digest_is_discarded() {
    let server = Server::start(Behaviour::Whole, content());
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("part");
    let expected = Digest::of(b"something else");
    let error = server.downloader().fetch(&server.address, expected, MAX, &part, &mut Silent).unwrap_err();
    assert!(matches!(error, DownloadError::WrongDigest { actual, .. } if actual == Digest::of(content())));
    assert!(!part.exists());
}

#[test]
fn a_file_that_is_too_large_is_discarded() {
    for behaviour in [Behaviour::Whole, Behaviour::WithoutLength] {
        let server = Server::start(behaviour, content());
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("part");
        let digest = Digest::of(content());
        let error =
            server.downloader().fetch(&server.address, digest, 300_000, &part, &mut Silent).unwrap_err();
        assert!(matches!(error, DownloadError::TooLarge { bytes_max: 300_000, .. }));
        assert!(!part.exists());
    }
}

#[test]
fn a_server_of_another_authority_is_not_trusted() {
    let (server, other) = (Server::start(Behaviour::Whole, content()), Server::start(Behaviour::Whole, b""));
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("part");
    let digest = Digest::of(content());
    let error = other.downloader().fetch(&server.address, digest, MAX, &part, &mut Silent).unwrap_err();
    let DownloadError::GivenUp { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, TransferError::Http(_)), "{source}");
    assert!(!part.exists());
}

#[test]
fn plain_http_is_refused() {
    let server = Server::start(Behaviour::Whole, content());
    let plain = server.address.replace("https:", "http:");
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("part");
    let digest = Digest::of(content());
    assert!(server.downloader().fetch(&plain, digest, MAX, &part, &mut Silent).is_err());
    assert!(!part.exists());
}

#[test]
fn published_digests() {
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    let lines = format!("{one}  other.bin\n{two} *file.bin\n");
    for (text, expected) in [
        (format!("{two}\n"), Some(two)),
        (lines.clone(), Some(two)),
        (format!("{one}  ./dist/file.bin\n"), Some(one)),
        (format!("{one}  other.bin\n"), None),
        (format!("{one}\n{two}\n"), None),
        (String::new(), None),
    ] {
        assert_eq!(find_sum(&text, "file.bin"), expected, "{text}");
    }
    let server = Server::start(Behaviour::Whole, lines.leak().as_bytes());
    let digest = server.downloader().published_digest(&server.address, &server.address).unwrap();
    assert_eq!(digest, two);
}

fn recipe(dir: &Path, url: &str, digest: &str) -> Result<Recipe, RecipeError> {
    let recipe = dir.join("runc").join("1.0.0");
    fs::create_dir_all(&recipe).unwrap();
    let build = r#"{"cgo": false, "tags": [], "set": [], "binaries": [{"binary": "runc", "package": "p"}]}"#;
    let download = format!(
        r#"{{"schema": 1, "files": [{{"url": "{url}", "sums_url": "{url}", "sha256": {digest},
            "bytes_max": {MAX}, "programs": {{"runc": null}}}}]}}"#
    );
    for (name, content) in
        [("build.json", build), ("download.json", &download), ("go.mod", ""), ("go.sum", "")]
    {
        fs::write(recipe.join(name), content).unwrap();
    }
    Recipe::read(dir, "runc", "1.0.0")
}

#[test]
fn a_recipe_becomes_programs_and_only_when_pinned() {
    let server = Server::start(Behaviour::Whole, content());
    let dir = tempfile::tempdir().unwrap();
    let (cache, bin) = (CacheDir::at(&dir.path().join("cache")).unwrap(), dir.path().join("bin"));
    fs::create_dir(&bin).unwrap();

    let unpinned = recipe(dir.path(), &server.address, "null").unwrap();
    let error = fetch_programs(&server.downloader(), &cache, &unpinned, &bin, &mut Silent).unwrap_err();
    assert!(matches!(error, DownloadError::NotPinned { .. }));
    assert!(error.to_string().contains("cargo xtask image pin --release"), "{error}");
    assert!(server.ranges.lock().unwrap().is_empty(), "nothing was asked for");

    let digest = format!("\"{}\"", Digest::of(content()));
    let pinned = recipe(dir.path(), &server.address, &digest).unwrap();
    fetch_programs(&server.downloader(), &cache, &pinned, &bin, &mut Silent).unwrap();
    assert_eq!(fs::read(bin.join("runc")).unwrap(), content());
    assert_eq!(fs::metadata(bin.join("runc")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
    assert_eq!(fs::read_dir(cache.root().join("downloads")).unwrap().count(), 0);
}
