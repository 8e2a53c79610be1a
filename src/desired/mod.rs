//! tenants.toml: schema, validation, tiers, watching.
//!
//! `text -> DeTable (toml) -> Fields (every key checked against the table in keys.rs) -> Desired (settings, tenants)`.
//! Each step adds to one list of findings, so that a person sees all problems of a file at once.
#![forbid(unsafe_code)]

mod debounce;
mod fields;
mod files;
mod front;
mod gitops;
mod keys;
mod kind;
mod last_good;
mod load;
mod model;
mod problem;
mod schema;
mod settings;
mod syntax;
mod tenants;
mod watch;

use std::path::Path;

pub use debounce::{Debounce, LONGEST, QUIET};
pub use gitops::GitOps;
pub(crate) use kind::{parse_digest, parse_moment, parse_size, size_text};
pub use last_good::{SaveError, last_good_path, load_last_good, save_last_good};
pub use load::{MAX_FILE, load, load_candidate, load_with_text, load_without_files};
pub use model::*;
pub use problem::{Place, Problem, Rejected, Related};
pub use schema::{reference_markdown, schema};
pub use settings::hash;
pub(crate) use tenants::FREE;
pub use tenants::{MAX_API_KEYS, MAX_LIMIT_SETS, MAX_TENANTS};
use toml::de::DeTable;
pub use watch::{Watch, WatchError, fingerprint};

use self::{
    files::NamedFile,
    problem::{Finding, Source},
};

/// Reads the desired state from `text`, the content of `file`. Nothing on the host is looked at: relative paths are
/// joined with the directory of `file` as it is written.
pub fn parse(text: &str, file: &Path) -> Result<Desired, Rejected> {
    parse_named(text, file, file).map(|(desired, _)| desired)
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
pub(crate) mod testing {
    use super::{Limits, Tenant, TenantId};

    /// A tenant that nothing is said of but its name.
    pub(crate) fn tenant(id: TenantId) -> Tenant {
        Tenant { id, tier: "free".into(), limits: Limits::BASE, suspended: false, api_keys: vec![], tokens_valid_after: 0, port: None }
    }
}

#[cfg(test)]
mod tests;
