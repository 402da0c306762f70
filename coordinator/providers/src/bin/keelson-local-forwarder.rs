//! The local provider's forwarder as a program of its own: `keelson-local-forwarder local-forwarder --state-dir DIR`.
//!
//! The coordinator carries the same function as a hidden subcommand; this one serves tests and other tools that use
//! the provider without a coordinator.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use keelson_providers::local::forwarder;

#[allow(clippy::print_stderr, reason = "a program's own messages")]
fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [verb, option, dir] if verb == "local-forwarder" && option == "--state-dir" => {
            match forwarder::run(Path::new(dir)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("the forwarder ended: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            eprintln!("usage: keelson-local-forwarder local-forwarder --state-dir DIR");
            ExitCode::from(2)
        }
    }
}
