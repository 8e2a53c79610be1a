//! Arguments and dispatch; everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sq_agent::cli::main()
}
