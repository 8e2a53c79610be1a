//! `sq-agent schema`: the JSON Schema of tenants.toml, for editors.

use std::process::ExitCode;

use crate::desired;

/// Prints the JSON Schema of tenants.toml, for editors.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sq-agent schema > tenants.schema.json
  and as the first line of tenants.toml: #:schema ./tenants.schema.json")]
pub(super) struct Args {}

/// Prints the schema.
pub(super) fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    anstream::println!("{:#}", desired::schema());
    Ok(ExitCode::SUCCESS)
}
