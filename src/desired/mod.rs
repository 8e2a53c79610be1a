//! tenants.toml: schema, validation, tiers, watching.
//!
//! `text -> DeTable (toml) -> Fields (every key checked against the table in keys.rs) -> Desired (settings, tenants)`.
//! Each step adds to one list of findings, so that a person sees all problems of a file at once.
#![forbid(unsafe_code)]

mod debounce;
mod fields;
mod files;
mod keys;
mod kind;
mod last_good;
mod model;
mod problem;
mod schema;
mod settings;
mod syntax;
mod tenants;
mod watch;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

pub use debounce::{Debounce, LONGEST, QUIET};
pub(crate) use kind::size_text;
pub use last_good::{SaveError, last_good_path, load_last_good, save_last_good};
pub use model::*;
pub use problem::{Place, Problem, Rejected, Related};
pub use schema::{reference_markdown, schema};
pub use tenants::{MAX_API_KEYS, MAX_LIMIT_SETS, MAX_TENANTS};
use toml::de::DeTable;
pub use watch::{Watch, WatchError, fingerprint};

use self::{
    files::NamedFile,
    problem::{Finding, Source},
};

/// The largest tenants.toml that is read, bytes: 20,000 tenants with every key set take about 10 MiB.
pub const MAX_FILE: u64 = 16 << 20;

/// Reads the desired state from `text`, the content of `file`. Nothing on the host is looked at: relative paths are
/// joined with the directory of `file` as it is written.
pub fn parse(text: &str, file: &Path) -> Result<Desired, Rejected> {
    parse_named(text, file, file).map(|(desired, _)| desired)
}

/// Reads `file`, then checks what it says against this host: the secrets and certificates that it names must be there,
/// readable, and the secret ones readable by nobody else.
pub fn load(file: &Path) -> Result<Desired, Rejected> {
    let text = read(file)?;
    let (desired, named) = parse_named(&text, &absolute(file), file)?;
    let found = files::check(&named);
    if found.is_empty() { Ok(desired) } else { Err(rejected(&Source::new(&text), file, found)) }
}

/// Reads `file` without the checks of [`load`] that look at other files: for a desired state that is meant for another host.
pub fn load_without_files(file: &Path) -> Result<Desired, Rejected> {
    parse_named(&read(file)?, &absolute(file), file).map(|(desired, _)| desired)
}

/// `file` with the directory in which its name stands made canonical. The name itself may be a symlink and is left
/// alone: paths are relative to the place that the operator named, not to a target that a tool swaps beneath it.
fn absolute(file: &Path) -> PathBuf {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().or_else(|_| std::path::absolute(parent)).unwrap_or_else(|_| parent.into());
    file.file_name().map_or_else(|| parent.clone(), |name| parent.join(name))
}

/// The file's text, or why there is none.
fn read(file: &Path) -> Result<String, Rejected> {
    let reject = |message: &str, help: &str| Rejected::whole(file, message, help);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => reject("there is no such file", "create it, or name another with `--tenants FILE`"),
        io::ErrorKind::PermissionDenied => reject("this user may not read the file", "run `chmod u+r` on it, or run as its owner"),
        _ => Rejected::whole(file, format!("the file cannot be read: {error}"), "make it a readable file"),
    };
    let meta = fs::metadata(file).map_err(failed)?;
    match () {
        () if meta.is_dir() => return Err(reject("this is a directory", "name the file in it, such as `tenants.toml`")),
        () if !meta.is_file() => return Err(reject("this is not a regular file", "name a regular file")),
        () if meta.len() > MAX_FILE => return Err(reject("the file is larger than 16 MiB", "split the tenants over several hosts")),
        () => {}
    }
    let mut bytes = Vec::new();
    fs::File::open(file).and_then(|open| open.take(MAX_FILE).read_to_end(&mut bytes)).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        Rejected::whole(file, format!("line {line} is not UTF-8"), "save the file as UTF-8")
    })
}

/// As [`parse`], for `file` shown as `shown`; also the files that the desired state names.
fn parse_named(text: &str, file: &Path, shown: &Path) -> Result<(Desired, Vec<NamedFile>), Rejected> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let mut found = Vec::new();
    let root = fields::read_table(&keys::ROOT, table.get_ref(), 0..0, &mut found);
    let built = settings::build(&root, text, file.parent().unwrap_or(Path::new("")), &mut found);
    if syntax.is_empty() && found.is_empty() {
        return Ok(built);
    }
    let source = Source::new(text);
    let mut all = syntax::findings(&source, &syntax);
    let broken: Vec<usize> = all.iter().map(|finding| source.line_of(finding.span.start)).collect();
    // Beside a syntax error, a finding on its line or one that a skipped key or tier explains would only mislead.
    let stands = |finding: &Finding| broken.is_empty() || !finding.echo && !broken.contains(&source.line_of(finding.span.start));
    all.extend(found.into_iter().filter(stands));
    Err(rejected(&source, shown, all))
}

/// The refusal of `file` for what was `found`, in the order in which it stands.
fn rejected(source: &Source<'_>, file: &Path, mut found: Vec<Finding>) -> Rejected {
    found.sort_by_key(|finding| finding.span.start);
    Rejected { file: file.into(), problems: found.into_iter().map(|finding| source.problem(finding)).collect() }
}

#[cfg(test)]
mod tests;
