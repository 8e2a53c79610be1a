//! `sq-agent import FILE`: an sq gateway's file becomes a tenants.toml, and what is left to do is listed.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;

use crate::import::{Gateway, Imported, Options, convert};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent import sq-gateway.toml --data-root /data --out tenants.toml\n\nThe new file goes to --out, or to standard output; what is left to do, to standard error.\nStop the old gateway and its sq processes before you move data: two sq on one file lose text."
)]
pub(super) struct Args {
    /// The gateway's file: TOML or JSON
    file: PathBuf,
    /// Write the new tenants.toml here; a file that exists is left alone
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The new host's state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sq")]
    state_dir: PathBuf,
    /// Where the data of tenants lie, each in a directory of its name, if the file does not say where
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// List commands that copy the data, instead of moving them
    #[arg(long)]
    copy: bool,
    /// Print JSON: the text of the new file, the moves, what was left out
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let gateway = Gateway::parse(&text).with_context(|| args.file.display().to_string())?;
    let options = Options { state_dir: args.state_dir.clone(), data_root: args.data_root.clone() };
    let imported = convert(gateway, &options);
    if let Some(out) = &args.out {
        // Who has which digest is nobody's business.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o640).open(out);
        made.and_then(|mut file| file.write_all(imported.tenants_toml.as_bytes()))
            .with_context(|| format!("cannot write {}", out.display()))?;
    }
    if args.json {
        anstream::println!("{}", serde_json::to_string(&imported)?);
    } else {
        if args.out.is_none() {
            anstream::print!("{}", imported.tenants_toml);
        }
        tell(args, &imported);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is left to do for a person.
fn tell(args: &Args, imported: &Imported) {
    anstream::eprintln!("{} tenants", imported.tenants);
    for left in &imported.left_out {
        anstream::eprintln!("\n{} ({}): {}\n  {}", left.what, left.items.len(), left.remedy, left.items.join("\n  "));
    }
    if !imported.moves.is_empty() {
        anstream::eprintln!("\nTheir data: stop the old gateway and its sq processes, then run\n");
        for moved in &imported.moves {
            anstream::eprintln!("{}", moved.command(args.copy));
        }
    }
}
