//! `sq-agent aside`: becomes a program that is in nobody's way.

use std::{ffi::OsString, io, process::ExitCode};

use crate::backup::aside;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The process that waits for it; without that one it does not run
    #[arg(long)]
    parent: i32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let Some((program, arguments)) = args.command.split_first() else { return ExitCode::from(aside::NOT_RUN) };
    let error = aside::become_program(args.parent, program, arguments);
    anstream::eprintln!("{}: {error}", program.to_string_lossy());
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { aside::NOT_FOUND } else { aside::NOT_RUN })
}
