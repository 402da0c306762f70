//! Fetching official files over HTTPS: checked against their pinned digest, resumed when cut off, bounded in size.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::archive::{self, ArchiveError};
use super::recipe::{OfficialFile, Recipe};
use crate::cache::CacheDir;
use crate::digest::Digest;
use crate::files::{self, At, FileError};
use crate::progress::{Progress, ProgressEvent};

/// The certificate bundle of Debian and most others. Used when there, as it is what the operator trusts.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Time to reach a server. Longer means that it is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time from request to the head of the answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one transfer before it is cut and resumed, so that a silent peer cannot hold a build for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(600);
/// Attempts in a row that bring nothing new before giving up.
const FRUITLESS_ATTEMPTS_MAX: u32 = 5;
/// Attempts in all, so that a server that gives one byte each time does not win.
const ATTEMPTS_MAX: u32 = 100;
/// The wait before the second attempt; doubles with each fruitless one.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// Redirects followed; release hosts use one or two.
const REDIRECTS_MAX: u32 = 5;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 128 * 1024;
/// A note on progress for each so many bytes.
const NOTE_EVERY_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of a file of digests. The largest official one has a few KB.
const SUMS_BYTES_MAX: u64 = 256 * 1024;

/// A transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The digest of a file is not pinned, so nothing could be checked.
    #[error(
        "the digest of {url} is not pinned, and nothing is downloaded unchecked; pin it once with `cargo xtask image pin --release RELEASE`, look at the change and commit it; or install Go 1.26 and use `--source build`"
    )]
    NotPinned {
        /// Address of the file.
        url: String,
    },
    /// The server has no such file.
    #[error(
        "{url} does not exist there (404); the release may have been withdrawn or its address changed: correct download.json of the recipe"
    )]
    NotFound {
        /// Address of the file.
        url: String,
    },
    /// The server refuses.
    #[error("{url} answered {status}; retry later, or check the proxy (HTTPS_PROXY)")]
    Status {
        /// Address of the file.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The content is not what was pinned.
    #[error(
        "{url} has digest {actual}, pinned is {expected}; it was discarded. Either the transfer goes through something that changes it, or the file was replaced at its source: find out before pinning again"
    )]
    WrongDigest {
        /// Address of the file.
        url: String,
        /// As pinned.
        expected: Digest,
        /// As received.
        actual: Digest,
    },
    /// More bytes than the recipe allows.
    #[error("{url} is larger than the {bytes_max} bytes that its recipe allows; it was discarded")]
    TooLarge {
        /// Address of the file.
        url: String,
        /// The limit.
        bytes_max: u64,
    },
    /// The transfer kept failing.
    #[error(
        "{url} could not be fetched in {attempts} attempts; what arrived is kept, the next run goes on from there"
    )]
    GivenUp {
        /// Address of the file.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// What went wrong last.
        source: Box<TransferError>,
    },
    /// The archive is not as expected.
    #[error("{url} cannot be unpacked")]
    Archive {
        /// Address of the file.
        url: String,
        /// Why.
        source: ArchiveError,
    },
    /// No digest for the file in what its publisher says.
    #[error("{sums_url} has no digest for {url}")]
    NoSum {
        /// Address of the file.
        url: String,
        /// Address of the digests.
        sums_url: String,
    },
    /// The certificate bundle of the system is damaged.
    #[error(
        "the certificates in {SYSTEM_BUNDLE} cannot be read; `update-ca-certificates --fresh` makes it again"
    )]
    Certificates(#[source] ureq::Error),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// One attempt of a transfer failed in a way that may pass.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No answer, or none that can be trusted.
    #[error(transparent)]
    Http(#[from] ureq::Error),
    /// The server says to come back.
    #[error("the server answered {0}")]
    Busy(u16),
    /// The connection ended early.
    #[error("the transfer was cut off after {0} bytes")]
    CutOff(u64, #[source] Option<io::Error>),
}

impl DownloadError {
    /// Whether the file system had no room left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            DownloadError::File(error) => error.is_disk_full(),
            DownloadError::Archive { source, .. } => source.is_disk_full(),
            _ => false,
        }
    }
}

/// Fetches files over HTTPS.
#[derive(Debug)]
pub(crate) struct Downloader {
    agent: Agent,
    backoff: Duration,
}

impl Downloader {
    /// Trusts what the system trusts.
    pub(crate) fn with_system_roots() -> Result<Downloader, DownloadError> {
        let roots = match fs::read(SYSTEM_BUNDLE) {
            Ok(bundle) => certificates(&bundle).map_err(DownloadError::Certificates)?,
            Err(_) => RootCerts::WebPki,
        };
        Ok(Downloader::new(roots, BACKOFF))
    }

    pub(crate) fn new(roots: RootCerts, backoff: Duration) -> Downloader {
        let agent = Agent::config_builder()
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(REDIRECTS_MAX)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .user_agent(concat!("keelson-images/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into();
        Downloader { agent, backoff }
    }

    /// Fetches `url` into `part`, going on from what is there, until its digest is `expected`.
    pub(crate) fn fetch(
        &self,
        url: &str,
        expected: Digest,
        bytes_max: u64,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), DownloadError> {
        // A remainder of an earlier run may be of another file; then everything is fetched once more.
        let mut resumed = length(part)? > 0;
        self.fetch_whole(url, bytes_max, part, progress)?;
        loop {
            let actual = Digest::of_file(part).at("read", part)?;
            if actual == expected {
                return Ok(());
            }
            files::remove_all(part)?;
            if !resumed {
                return Err(DownloadError::WrongDigest { url: url.to_owned(), expected, actual });
            }
            resumed = false;
            self.fetch_whole(url, bytes_max, part, progress)?;
        }
    }

    /// Repeats transfers until the server says that the file is complete.
    fn fetch_whole(
        &self,
        url: &str,
        bytes_max: u64,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), DownloadError> {
        let (mut fruitless, mut attempts) = (0, 0);
        loop {
            let before = length(part)?;
            attempts += 1;
            let source = match self.attempt(url, bytes_max, part, progress)? {
                Ok(()) => return Ok(()),
                Err(source) => source,
            };
            fruitless = if length(part)? > before { 0 } else { fruitless + 1 };
            if fruitless == FRUITLESS_ATTEMPTS_MAX || attempts == ATTEMPTS_MAX {
                return Err(DownloadError::GivenUp {
                    url: url.to_owned(),
                    attempts,
                    source: Box::new(source),
                });
            }
            progress.event(ProgressEvent::Note { text: format!("{url}: {source}; trying again") });
            std::thread::sleep((self.backoff * 2_u32.pow(fruitless)).min(BACKOFF_MAX));
        }
    }

    /// One request. The outer error is final, the inner one may pass.
    fn attempt(
        &self,
        url: &str,
        bytes_max: u64,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Result<(), TransferError>, DownloadError> {
        let have = length(part)?;
        let mut request = self.agent.get(url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Err(error.into())),
        };
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(have) => have,
            // Nothing follows what is here: either it is complete, which the digest shows, or it is of another file.
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(Ok(())),
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                return Err(DownloadError::NotFound { url: url.to_owned() });
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Err(TransferError::Busy(status.as_u16())));
            }
            status => return Err(DownloadError::Status { url: url.to_owned(), status: status.as_u16() }),
        };
        let whole = announced_length(&response).map(|rest| start + rest);
        let too_large = || DownloadError::TooLarge { url: url.to_owned(), bytes_max };
        if whole.is_some_and(|whole| whole > bytes_max) {
            files::remove_all(part)?;
            return Err(too_large());
        }
        let mut file = File::options().create(true).append(true).open(part).at("open", part)?;
        file.set_len(start).at("shorten", part)?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0_u8; CHUNK_BYTES];
        let mut have = start;
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) if whole.is_some_and(|whole| have < whole) => {
                    return Ok(Err(TransferError::CutOff(have, None)));
                }
                Ok(0) => return Ok(Ok(())),
                Ok(read) => read,
                Err(error) => return Ok(Err(TransferError::CutOff(have, Some(error)))),
            };
            if have + read as u64 > bytes_max {
                files::remove_all(part)?;
                return Err(too_large());
            }
            file.write_all(&buffer[..read]).at("write", part)?;
            note(progress, url, have, have + read as u64);
            have += read as u64;
        }
    }

    /// The digest that the publisher of `url` says at `sums_url`.
    pub(crate) fn published_digest(&self, url: &str, sums_url: &str) -> Result<Digest, DownloadError> {
        let part = fetch_text(self, sums_url)?;
        let name = url.rsplit('/').next().unwrap_or(url);
        find_sum(&part, name)
            .ok_or_else(|| DownloadError::NoSum { url: url.to_owned(), sums_url: sums_url.to_owned() })
    }
}

fn fetch_text(downloader: &Downloader, url: &str) -> Result<String, DownloadError> {
    let given_up = |error: ureq::Error| DownloadError::GivenUp {
        url: url.to_owned(),
        attempts: 1,
        source: Box::new(error.into()),
    };
    let mut response = downloader.agent.get(url).call().map_err(given_up)?;
    match response.status() {
        StatusCode::OK => {
            let body = response.body_mut().with_config().limit(SUMS_BYTES_MAX);
            body.read_to_string().map_err(given_up)
        }
        StatusCode::NOT_FOUND => Err(DownloadError::NotFound { url: url.to_owned() }),
        status => Err(DownloadError::Status { url: url.to_owned(), status: status.as_u16() }),
    }
}

/// Finds the digest of `name` among lines of `digest  name`, or the digest that stands alone.
fn find_sum(text: &str, name: &str) -> Option<Digest> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let named = lines.clone().find_map(|line| {
        let (digest, rest) = line.split_once(char::is_whitespace)?;
        let listed = rest.trim().trim_start_matches('*').rsplit('/').next();
        (listed == Some(name)).then(|| digest.parse().ok()).flatten()
    });
    named.or_else(|| match (lines.next(), lines.next()) {
        (Some(only), None) => only.trim().parse().ok(),
        _ => None,
    })
}

fn certificates(bundle: &[u8]) -> Result<RootCerts, ureq::Error> {
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(bundle) {
        if let PemItem::Certificate(certificate) = item? {
            roots.push(certificate);
        }
    }
    Ok(RootCerts::from(roots))
}

fn length(path: &Path) -> Result<u64, FileError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(source) => Err(FileError { action: "read", path: path.to_owned(), source }),
    }
}

/// The first byte of a partial answer: `Content-Range: bytes 100-199/200` gives 100.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn announced_length(response: &Response<Body>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn note(progress: &mut dyn Progress, url: &str, before: u64, now: u64) {
    if before / NOTE_EVERY_BYTES != now / NOTE_EVERY_BYTES {
        let name = url.rsplit('/').next().unwrap_or(url);
        progress.event(ProgressEvent::Note { text: format!("{name}: {} MiB", now / (1024 * 1024)) });
    }
}

/// Fetches all files of a recipe and puts its programs into `bin`.
pub(crate) fn fetch_programs(
    downloader: &Downloader,
    cache: &CacheDir,
    recipe: &Recipe,
    bin: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DownloadError> {
    // All or nothing: a recipe that is pinned in part is refused before the first byte.
    check_pinned(recipe)?;
    for file in &recipe.download.files {
        let (url, digest) = pinned(recipe, file)?;
        let part = cache.partial_download(&digest);
        let _lock = cache.lock(&format!("download-{digest}"), &mut || ())?;
        downloader.fetch(&url, digest, file.bytes_max, &part, progress)?;
        place(&url, file, &part, bin)?;
        files::remove_all(&part)?;
    }
    Ok(())
}

/// Checks that every file of a recipe has its digest.
pub(crate) fn check_pinned(recipe: &Recipe) -> Result<(), DownloadError> {
    recipe.download.files.iter().try_for_each(|file| pinned(recipe, file).map(drop))
}

fn pinned(recipe: &Recipe, file: &OfficialFile) -> Result<(String, Digest), DownloadError> {
    let url = recipe.expand(&file.url);
    match file.sha256 {
        Some(digest) => Ok((url, digest)),
        None => Err(DownloadError::NotPinned { url }),
    }
}

/// Puts the programs of a fetched file into `bin`.
fn place(url: &str, file: &OfficialFile, fetched: &Path, bin: &Path) -> Result<(), DownloadError> {
    for (program, member) in &file.programs {
        if member.is_none() {
            let to = bin.join(program);
            fs::copy(fetched, &to).at("write", &to)?;
        }
    }
    let members: Vec<_> =
        file.programs.iter().filter_map(|(p, m)| Some((m.as_deref()?, p.as_str()))).collect();
    if !members.is_empty() {
        archive::unpack(fetched, &members, bin)
            .map_err(|source| DownloadError::Archive { url: url.to_owned(), source })?;
    }
    for program in file.programs.keys() {
        let path = bin.join(program);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("set the mode of", &path)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
