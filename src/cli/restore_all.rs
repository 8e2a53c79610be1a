//! `sq-agent restore --all`.

use std::process::ExitCode;

use crate::{
    backup::restore_all::{Restored, Which, restore_all},
    desired::Desired,
};

/// Brings everybody's texts back: of `host`, where that is not this one or the only one, as they stood at `at`.
pub(super) fn run(host: Option<&str>, at: Option<&str>, desired: &Desired) -> anyhow::Result<ExitCode> {
    let which = Which { host, at };
    let restored = restore_all(desired, which, &|line| anstream::eprintln!("{line}"))?;
    print_all(&restored, desired);
    Ok(ExitCode::SUCCESS)
}

fn print_all(restored: &Restored, desired: &Desired) {
    let Restored { host, snapshot, when, tenants, not_named, tenants_file, token_secret } = restored;
    let state_dir = desired.state_dir.display();
    anstream::println!("the texts of {} tenants are back in {state_dir}: snapshot {snapshot} of {host}, taken {when}", tenants.len());
    if *token_secret {
        anstream::println!("the tokens of before stay good: {state_dir}/jwt.key is back");
    }
    if let Some(file) = tenants_file {
        anstream::println!("the tenants.toml of then: {}", file.display());
    }
    if !not_named.is_empty() {
        anstream::println!("{} of them are not in the tenants.toml in use, and so will not be served", not_named.len());
    }
    anstream::println!("`sq-agent run` serves them");
}
