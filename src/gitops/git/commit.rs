//! One more commit on top of another, made without a working tree, and pushed.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{FETCH, Git, GitError, QUESTION, plain};
use crate::file::failed;

/// A commit that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Draft {
    /// The text of the desired state.
    pub(crate) text: String,
    /// Name and mail address of its author.
    pub(crate) author: (String, String),
    /// Its message.
    pub(crate) message: String,
}

/// Who makes commits for others, and by which key.
#[derive(Debug, Clone)]
pub(in super::super) struct Committer<'a> {
    /// Name and mail address.
    pub(in super::super) identity: (String, String),
    /// A private key of ssh.
    pub(in super::super) signing_key: Option<&'a Path>,
}

/// What commits are made in: a tree without files, and the file that is replaced in it.
pub(in super::super) struct Bench<'a> {
    path: &'a str,
    mode: String,
    text: PathBuf,
    index: [(&'static str, OsString); 1],
}

impl Git {
    /// Where commits on top of `head` are made that replace the file at `path`.
    pub(in super::super) fn bench<'a>(&self, head: &str, path: &'a str) -> Result<Bench<'a>, GitError> {
        let (text, index) = (self.directory.join("sq-agent-text"), self.directory.join("sq-agent-index"));
        // Of a commit that was broken off.
        for left in [&index, &index.with_extension("lock")] {
            let _ = fs::remove_file(left);
        }
        let entry = self.ask(&["ls-tree", "--full-tree", "-z", head, "--", path], &[])?;
        let mode = entry.split(' ').next().filter(|mode| matches!(*mode, "100644" | "100755"));
        let mode = mode.ok_or_else(|| GitError::Unfit(format!("{path} is no file in it: is `path` under [gitops] right?")))?.to_owned();
        let index = [("GIT_INDEX_FILE", index.into_os_string())];
        self.ask(&["read-tree", head], &index)?;
        Ok(Bench { path, mode, text, index })
    }

    /// Makes a commit on top of `parent`, the head or the last one that was made. Returns its id; it is known here alone.
    pub(in super::super) fn commit(&self, bench: &Bench<'_>, parent: &str, draft: &Draft, by: &Committer<'_>) -> Result<String, GitError> {
        let Bench { path, mode, text, index } = bench;
        fs::write(text, &draft.text).map_err(failed("writing", text))?;
        let blob = self.ask(&["hash-object", "-w", "--no-filters", "--", &text.to_string_lossy()], &[])?;
        self.ask(&["update-index", "--cacheinfo", &format!("{mode},{blob},{path}")], index)?;
        let tree = self.ask(&["write-tree"], index)?;
        let plain_name = |name: &str| OsString::from(plain(name).replace(['<', '>'], ""));
        let who = [
            ("GIT_AUTHOR_NAME", plain_name(&draft.author.0)),
            ("GIT_AUTHOR_EMAIL", plain_name(&draft.author.1)),
            ("GIT_COMMITTER_NAME", plain_name(&by.identity.0)),
            ("GIT_COMMITTER_EMAIL", plain_name(&by.identity.1)),
        ];
        let key = by.signing_key.map(|key| format!("user.signingKey={}", key.display()));
        let mut arguments = key.as_deref().map_or(vec![], |key| vec!["-c", "gpg.format=ssh", "-c", key]);
        arguments.extend(["commit-tree", &tree, "-p", parent, "-m", &draft.message]);
        arguments.extend(key.as_ref().map(|_| "-S"));
        self.ask(&arguments, &who)
    }

    /// Makes `commit` the head of `branch`, if that is what it was made on.
    pub(in super::super) fn push(&self, commit: &str, branch: &str) -> Result<(), GitError> {
        let refspec = format!("{commit}:refs/heads/{branch}");
        self.run(&["push", "--quiet", "--", &self.url, &refspec], FETCH).map(drop).map_err(|error| match error {
            GitError::Said { command, said, remedy } => GitError::Said { remedy: remedy_of_push(&said).unwrap_or(remedy), command, said },
            other => other,
        })
    }

    /// What git answers, on one line, in an environment with `more` in it.
    fn ask(&self, arguments: &[&str], more: &[(&str, OsString)]) -> Result<String, GitError> {
        let out = self.run_with(arguments, more, QUESTION)?;
        Ok(String::from_utf8_lossy(&out).trim().to_owned())
    }
}

/// What to do where a server does not take a push.
fn remedy_of_push(said: &str) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 8] = [
        ("marked as read only", ": give the repository the public half of `ssh_key_file` as a deploy key that may write"),
        ("denied to deploy key", ": give the repository the public half of `ssh_key_file` as a deploy key that may write"),
        ("Write access to repository not granted", ": `token_file` under [gitops] needs a token that may write the repository's contents"),
        ("error: 403", ": `token_file` under [gitops] needs a token that may write the repository's contents"),
        ("rotected branch", ": let the agent's key push to the branch, or follow another branch"),
        ("hook declined", ": the server has a rule against it; let the agent's key push to the branch"),
        ("not allowed to push", ": give the agent's key the right to push to the branch"),
        ("service not enabled", ": the repository can be read alone this way; name one in `url` that may be pushed to"),
    ];
    KNOWN.iter().find(|(part, _)| said.contains(part)).map(|(_, remedy)| *remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_no_push_is_told_with_what_to_do() {
        for (said, part) in [
            ("ERROR: The key you are authenticating with has been marked as read only.", "deploy key that may write"),
            ("remote: Write access to repository not granted.", "token that may write"),
            ("remote: error: GH006: Protected branch update failed for refs/heads/main.", "push to the branch"),
            ("fatal: remote error: access denied or repository not exported: service not enabled: /r.git", "may be pushed to"),
        ] {
            assert!(remedy_of_push(said).unwrap().contains(part), "{said}");
        }
        assert_eq!(remedy_of_push("fetch first"), None);
    }
}
