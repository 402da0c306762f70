//! The context file: which coordinator, trusted by which CA, with which token.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keelson_api::types::SecretText;
use keelson_api::{Code, Problem};
use serde::Deserialize;

use crate::args::Global;
use crate::failure::Failure;
use crate::session::Session;

/// Largest context file, in bytes: a chain of CA certificates and a token.
const CONTEXT_BYTES_MAX: u64 = 256 * 1024;

/// A context file's content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Context {
    /// URL of the coordinator.
    pub(crate) server: String,
    /// The CA that signs its certificate (PEM).
    pub(crate) ca_certificate: String,
    /// The caller's token.
    pub(crate) token: SecretText,
    /// Where it was read.
    #[serde(skip)]
    pub(crate) path: PathBuf,
}

impl Context {
    /// Reads the context that flags and environment name.
    pub(crate) fn load(global: &Global, session: &Session) -> Result<Self, Failure> {
        let path = path(global, session)?;
        let mut context = read(&path)?;
        if let Some(server) = global.server.as_deref().or_else(|| session.variable("KEELSON_SERVER")) {
            server.clone_into(&mut context.server);
        }
        context.path = path;
        Ok(context)
    }
}

fn path(global: &Global, session: &Session) -> Result<PathBuf, Failure> {
    if let Some(path) = &global.context {
        return Ok(path.clone());
    }
    if let Some(path) = session.variable("KEELSON_CONTEXT") {
        return Ok(PathBuf::from(path));
    }
    let config = session.variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| session.home().map(|home| home.join(".config")));
    let missing =
        || Failure::new(Code::ContextMissing, "there is no home directory to look for a context file in");
    Ok(config.ok_or_else(missing)?.join("keelson/context.json"))
}

fn read(path: &Path) -> Result<Context, Failure> {
    let invalid = |why: String| -> Failure {
        let what = format!("the context file {} cannot be used", path.display());
        Problem::new(Code::ContextInvalid, what).because(why).into()
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("there is no context file at {}", path.display());
            return Err(Failure::new(Code::ContextMissing, what));
        }
        Err(error) => return Err(invalid(error.to_string())),
    };
    let mode = file.metadata().map_err(|error| invalid(error.to_string()))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(invalid(format!(
            "it holds a token and others may read it (mode {mode:o}); run: chmod 600 {}",
            path.display()
        )));
    }
    let mut text = String::new();
    file.take(CONTEXT_BYTES_MAX).read_to_string(&mut text).map_err(|error| invalid(error.to_string()))?;
    // YAML reads JSON too. The parser's message could quote the token, so only its place is told.
    serde_norway::from_str(&text).map_err(|error| {
        let place = error.location().map_or_else(String::new, |at| format!(" near line {}", at.line()));
        invalid(format!("it is not JSON or YAML with server, caCertificate and token{place}"))
    })
}
