//! `keelson`, the command line of Keelson.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before there is anything else: a shell waits for every key that a person presses.
    if keelson_cli::complete() {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(async {
                let mut session = keelson_cli::Session::of_process();
                let code = keelson_cli::run(std::env::args_os().collect(), &mut session).await;
                session.passed_on.unwrap_or(code.number())
            });
            // A thread may still sit in a read of standard input, which nothing can end.
            runtime.shutdown_background();
            code
        }
        Err(_) => keelson_cli::ExitCode::Failed.number(),
    };
    ExitCode::from(code)
}
