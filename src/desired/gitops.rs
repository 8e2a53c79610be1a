//! `[gitops]`: where the desired state comes from, where that is a git repository.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[gitops]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitOps {
    /// `url`, as git takes it.
    pub url: String,
    /// `branch`.
    pub branch: String,
    /// `path` of the desired state in the repository.
    pub path: String,
    /// `interval`: seconds from one look to the next.
    pub interval: u64,
    /// `ssh_key_file`: the deploy key.
    pub ssh_key_file: Option<PathBuf>,
    /// `known_hosts_file`: the keys of ssh servers; where left out, the first one seen is kept.
    pub known_hosts_file: Option<PathBuf>,
    /// `token_file`: for https.
    pub token_file: Option<PathBuf>,
    /// `verify`: an allowed_signers file (ssh) or a GnuPG home; only commits that one of its keys signed are applied.
    pub verify: Option<PathBuf>,
    /// `webhook_secret_file`: what a forge signs its webhooks with; where left out, none is taken.
    #[serde(default)]
    pub webhook_secret_file: Option<PathBuf>,
    /// `signing_key_file`: an ssh key by which the agent signs the commits that it makes.
    #[serde(default)]
    pub signing_key_file: Option<PathBuf>,
    /// `git`: the program.
    pub git: PathBuf,
}

impl GitOps {
    /// `branch`, where the file says nothing.
    pub const BRANCH: &str = "main";
    /// `path`, where the file says nothing.
    pub const PATH: &str = "tenants.toml";
    /// `interval`, where the file says nothing, seconds.
    pub const INTERVAL: u64 = 60;
    /// `git`, where the file says nothing.
    pub const GIT: &str = "git";
}

/// Why `text` cannot be the name of a branch; git-check-ref-format(1), without what only a person who means harm would write.
pub(super) fn bad_branch(text: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/+@".contains(c);
    let odd = text.starts_with(['-', '/', '.']) || text.ends_with(['/', '.']) || text.ends_with(".lock");
    let pairs = ["..", "//", "/.", "@{"].iter().any(|pair| text.contains(pair));
    (text.is_empty() || !text.chars().all(plain) || odd || pairs).then_some("must be the name of a branch, such as \"main\"")
}

/// Why `text` cannot be a file's path in a repository.
pub(super) fn bad_path(text: &str) -> Option<&'static str> {
    let whole = !text.is_empty() && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    (!whole || text.chars().any(char::is_control))
        .then_some("must be a file's path from the top of the repository, such as \"hosts/one/tenants.toml\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_and_paths_are_such_as_git_has_them() {
        for good in ["main", "hosts/one", "release-1.2"] {
            assert_eq!(bad_branch(good), None, "{good}");
        }
        for bad in ["", "-x", "/a", "a/", "a..b", "a b", "a//b", "x.lock", "a@{1}", "a:b", "a*"] {
            assert!(bad_branch(bad).is_some(), "{bad}");
        }
        for (path, good) in [("tenants.toml", true), ("a b/t.toml", true), ("", false), ("/t", false), ("a/../t", false), ("a//t", false)] {
            assert_eq!(bad_path(path).is_none(), good, "{path}");
        }
    }
}
