//! The real `git`, in a bare repository that nobody else uses. Secrets go by file and by environment, never by a command line.

mod commit;

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub(super) use commit::Committer;
pub(crate) use commit::Draft;
use serde::{Deserialize, Serialize};

use crate::{
    child::{self, Cancel, NotRun, Ran},
    desired::{GitOps, MAX_FILE},
    file::{FileError, failed, remove_tree},
};

/// A fetch that takes longer hangs.
const FETCH: Duration = Duration::from_secs(60);
/// A question to the own repository.
const QUESTION: Duration = Duration::from_secs(20);
/// Where the head of the branch is kept.
const HEAD: &str = "refs/sq-agent/head";

/// Why git could not do it. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("{0} is not there: install git (`apt-get install git`), or name it with `git` under [gitops]")]
    Missing(PathBuf),
    #[error("git {command} took longer than {} s: is {url} reachable?", .patience.as_secs())]
    TooLong { command: String, url: String, patience: Duration },
    #[error("broken off")]
    BrokenOff,
    #[error("git {command}: {said}{remedy}")]
    Said { command: String, said: String, remedy: &'static str },
    #[error(
        "the agent may not write beside {}: {error}; move it to a directory that the agent may write, such as its state directory, and put a link to it in its place",
        file.display()
    )]
    NotWritable { file: PathBuf, error: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing is wrong with git: it is the commit that cannot be applied.
    #[error("{0}")]
    Unfit(String),
}

impl GitError {
    /// Where git said no to a question about a commit, the commit is at fault, as `why` words it. A git that gave no answer says nothing of it.
    fn unfit(self, why: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Said { .. } => Self::Unfit(why(self.to_string())),
            other => other,
        }
    }
}

/// A commit, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its full id.
    pub id: String,
    /// The first line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// When it was made, RFC 3339.
    pub at: String,
}

impl Commit {
    /// As people call it.
    pub fn short(&self) -> &str {
        self.id.get(..10).unwrap_or(&self.id)
    }
}

/// One repository, and the remote one that it follows.
pub(super) struct Git {
    program: PathBuf,
    url: String,
    directory: PathBuf,
    environment: Vec<(OsString, OsString)>,
    /// What must not be shown.
    secret: Option<String>,
    cancel: Cancel,
}

impl Git {
    /// For `source`, with the repository `name` in `place`, which is made.
    pub(super) fn new(source: &GitOps, place: &Path, name: &str, cancel: Cancel) -> Result<Self, GitError> {
        let home = place.join("home");
        fs::create_dir_all(&home).map_err(failed("making", &home))?;
        let token = source.token_file.as_ref().map(|file| fs::read_to_string(file).map_err(failed("reading", file))).transpose()?;
        let token = token.map(|token| token.trim().to_owned());
        let mut config = settings(source.verify.as_deref());
        config.extend(token.as_ref().map(|token| ("http.extraHeader", format!("Authorization: Basic {}", basic(token)))));
        let mut environment: Vec<(OsString, OsString)> = child::passed_on().collect();
        // Instead of the agent's: git finds no settings and no credentials there. (ssh asks the user database for its home, and so still
        // has the keys of the agent's user where no `ssh_key_file` is named.)
        environment.extend([("HOME", home.as_os_str()), ("GIT_CONFIG_GLOBAL", "/dev/null".as_ref())].map(|(k, v)| (k.into(), v.into())));
        environment.extend(
            [
                ("GIT_CONFIG_NOSYSTEM", "1"),
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh"),
                ("LC_ALL", "C"),
            ]
            .map(|(key, value)| (key.into(), value.into())),
        );
        environment.push(("GIT_SSH_COMMAND".into(), ssh(source, place).into()));
        let keyring = source.verify.as_ref().filter(|path| path.is_dir()).cloned();
        environment.push(("GNUPGHOME".into(), keyring.unwrap_or_else(|| home.join("no-keys")).into()));
        environment.push(("GIT_CONFIG_COUNT".into(), config.len().to_string().into()));
        for (number, (key, value)) in config.into_iter().enumerate() {
            environment.push((format!("GIT_CONFIG_KEY_{number}").into(), key.into()));
            environment.push((format!("GIT_CONFIG_VALUE_{number}").into(), value.into()));
        }
        let git =
            Self { program: source.git.clone(), url: source.url.clone(), directory: place.join(name), environment, secret: token, cancel };
        git.make()?;
        Ok(git)
    }

    /// Makes the repository where there is none.
    fn make(&self) -> Result<(), GitError> {
        if !self.directory.join("HEAD").exists() {
            remove_tree(&self.directory)?;
            let directory = self.directory.to_string_lossy();
            // The directory named by --git-dir would have to exist.
            self.run_in(&["init", "--quiet", "--bare", &directory], &[], QUESTION)?;
        }
        Ok(())
    }

    /// Brings the head of `branch` here; returns its commit. What a killed git left behind is cleared away once.
    pub(super) fn fetch(&self, branch: &str) -> Result<Commit, GitError> {
        let fetched = self.fetch_once(branch);
        let fetched = match fetched {
            Err(GitError::Said { said, .. }) if said.contains(".lock'") || !self.is_whole() => {
                tracing::warn!(said, "the copy of the repository is broken; it is fetched anew");
                remove_tree(&self.directory)?;
                self.make()?;
                self.fetch_once(branch)
            }
            fetched => fetched,
        };
        fetched?;
        self.about(HEAD)
    }

    fn fetch_once(&self, branch: &str) -> Result<(), GitError> {
        let refspec = format!("+refs/heads/{branch}:{HEAD}");
        self.run(&["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--", &self.url, &refspec], FETCH)
            .map(drop)
    }

    fn is_whole(&self) -> bool {
        self.run(&["fsck", "--connectivity-only", "--no-dangling", "--no-progress"], FETCH).is_ok()
    }

    /// Who made `commit`, and what for.
    fn about(&self, commit: &str) -> Result<Commit, GitError> {
        let line = self.run(&["show", "--no-patch", "--format=%H%x00%s%x00%an%x00%cI", commit], QUESTION)?;
        let text = String::from_utf8_lossy(&line);
        let mut parts = text.trim_end().split('\0').map(plain);
        let mut part = || parts.next().unwrap_or_default();
        Ok(Commit { id: part(), subject: part(), author: part(), at: part() })
    }

    /// Whether `newer` was made on top of `older`. A commit that is not there (the branch was rewritten, the copy is new) is nobody's ancestor.
    pub(super) fn is_ancestor(&self, older: &str, newer: &str) -> Result<bool, GitError> {
        match self.run(&["merge-base", "--is-ancestor", older, newer], QUESTION) {
            Ok(_) => Ok(true),
            Err(GitError::Said { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fails unless one of `keys`, those that git was set up with, signed `commit`.
    pub(super) fn verify(&self, commit: &str, keys: &Path) -> Result<(), GitError> {
        self.run(&["verify-commit", commit], QUESTION)
            .map(drop)
            .map_err(|error| error.unfit(|said| format!("no key of {} signed it ({said}): sign it, or add its key there", keys.display())))
    }

    /// The file at `path` in `commit`.
    pub(super) fn file(&self, commit: &str, path: &str) -> Result<Vec<u8>, GitError> {
        let object = format!("{commit}:{path}");
        let none = |_| format!("it has no file {path}: is `path` under [gitops] right?");
        let size = self.run(&["cat-file", "-s", &object], QUESTION).map_err(|error| error.unfit(none))?;
        let size = String::from_utf8_lossy(&size).trim().parse::<u64>().unwrap_or(u64::MAX);
        if size > MAX_FILE {
            return Err(GitError::Unfit(format!("{path} has {size} bytes, more than {MAX_FILE}: split the tenants over several hosts")));
        }
        // A directory, or a link to a file elsewhere, is no blob of text.
        self.run(&["cat-file", "blob", &object], QUESTION).map_err(|error| error.unfit(|said| said))
    }

    /// Whether what stands in the file at `path` stands in some commit too.
    pub(super) fn has(&self, path: &Path) -> Result<bool, GitError> {
        let path = std::path::absolute(path).map_err(failed("finding", path))?;
        let id = self.run(&["hash-object", "--no-filters", "--", &path.to_string_lossy()], QUESTION)?;
        match self.run(&["cat-file", "-e", String::from_utf8_lossy(&id).trim()], QUESTION) {
            Ok(_) => Ok(true),
            Err(GitError::Said { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn run(&self, arguments: &[&str], patience: Duration) -> Result<Vec<u8>, GitError> {
        self.run_with(arguments, &[], patience)
    }

    fn run_with(&self, arguments: &[&str], more: &[(&str, OsString)], patience: Duration) -> Result<Vec<u8>, GitError> {
        let directory = format!("--git-dir={}", self.directory.display());
        let all: Vec<&str> = [directory.as_str()].into_iter().chain(arguments.iter().copied()).collect();
        self.run_in(&all, more, patience)
    }

    fn run_in(&self, arguments: &[&str], more: &[(&str, OsString)], patience: Duration) -> Result<Vec<u8>, GitError> {
        let command = || command(arguments).to_owned();
        let mut program = Command::new(&self.program);
        program.args(arguments).env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        program.envs(more.iter().map(|(key, value)| (key, value))).current_dir("/");
        match child::run(&mut program, patience, &self.cancel) {
            Ok(Ran { status, out, .. }) if status.success() => Ok(out),
            Ok(Ran { said, .. }) => Err(self.said(command(), &said)),
            Err(NotRun::Cancelled) => Err(GitError::BrokenOff),
            Err(NotRun::TooLong) => Err(GitError::TooLong { command: command(), url: self.url.clone(), patience }),
            Err(NotRun::Failed(error)) if error.kind() == io::ErrorKind::NotFound => Err(GitError::Missing(self.program.clone())),
            Err(NotRun::Failed(error)) => Err(GitError::Said { command: command(), said: error.to_string(), remedy: "" }),
        }
    }

    fn said(&self, command: String, said: &str) -> GitError {
        let remedy = match remedy(said) {
            // A server that takes no token asks as if it had seen none.
            NO_TOKEN if self.secret.is_some() => BAD_TOKEN,
            remedy => remedy,
        };
        GitError::Said { command, remedy, said: shown(said, self.secret.as_deref()) }
    }
}

/// What git said as people are shown it: without the frame that ssh draws around a warning, and without `secret`.
fn shown(said: &str, secret: Option<&str>) -> String {
    let mut text = said.lines().filter(|line| !line.starts_with('@')).collect::<Vec<_>>().join(" ");
    if let Some(secret) = secret {
        text = text.replace(secret, "[redacted]").replace(&basic(secret), "[redacted]");
    }
    plain(text.trim())
}

/// The command of git among its arguments.
fn command<'a>(arguments: &[&'a str]) -> &'a str {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "-c" => _ = words.next(),
            word if word.starts_with('-') => {}
            word => return word,
        }
    }
    ""
}

/// One line without control characters, of a length that a log bears.
fn plain(text: &str) -> String {
    const LONGEST: usize = 500;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    line.trim().to_owned()
}

/// Settings of every command.
fn settings(verify: Option<&Path>) -> Vec<(&'static str, String)> {
    let mut settings: Vec<(&'static str, String)> = [
        ("core.hooksPath", "/dev/null"),
        // What comes from outside is whole.
        ("transfer.fsckObjects", "true"),
        // The token is for the host that tenants.toml names.
        ("http.followRedirects", "false"),
        // Nothing goes on beside the command.
        ("gc.autoDetach", "false"),
        ("maintenance.autoDetach", "false"),
        // A repository in a directory may be another user's; only objects are read from it.
        ("safe.directory", "*"),
    ]
    .map(|(key, value)| (key, value.to_owned()))
    .into();
    if let Some(signers) = verify.filter(|path| !path.is_dir()) {
        settings.push(("gpg.ssh.allowedSignersFile", signers.to_string_lossy().into_owned()));
    }
    settings
}

/// The ssh that git runs, as its shell reads it.
fn ssh(source: &GitOps, place: &Path) -> String {
    let quoted = |path: &Path| child::quoted(&path.to_string_lossy());
    let (hosts, checking) = match &source.known_hosts_file {
        Some(file) => (quoted(file), "yes"),
        None => (quoted(&place.join("known_hosts")), "accept-new"),
    };
    let key = source.ssh_key_file.as_deref().map_or(String::new(), |key| format!(" -o IdentitiesOnly=yes -i {}", quoted(key)));
    format!("ssh -o BatchMode=yes -o ConnectTimeout=20 -o StrictHostKeyChecking={checking} -o UserKnownHostsFile={hosts}{key}")
}

/// A token as the forges take it: the password of a user of any name.
fn basic(token: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(format!("x-access-token:{token}"))
}

const NO_TOKEN: &str = ": the repository is not public: name a `token_file` under [gitops]";
const BAD_TOKEN: &str = ": `token_file` under [gitops] needs a token that may read the repository";

/// What to do about what git says.
fn remedy(said: &str) -> &'static str {
    const KNOWN: [(&str, &str); 11] = [
        ("couldn't find remote ref", ": is `branch` under [gitops] right, and is there a commit on it?"),
        ("Permission denied (publickey", ": give the repository the public half of `ssh_key_file` as a deploy key"),
        (
            "Host key verification failed",
            ": the server has another key than `known_hosts_file` says (where none is named, gitops/known_hosts in the state directory): if it is to be believed, put its new key there",
        ),
        ("Authentication failed", BAD_TOKEN),
        ("could not read Username", NO_TOKEN),
        ("No space left on device", ": the disk of the state directory is full"),
        ("Could not resolve host", ": the network or its name server is out of reach; tried again"),
        ("unable to access", ": is the server reachable?"),
        ("does not appear to be a git repository", ": is `url` under [gitops] right?"),
        ("not allowed", ": of protocols only https, ssh, git, http and files may be used"),
        ("Could not read from remote repository", ": is `url` under [gitops] right, and the server reachable?"),
    ];
    KNOWN.iter().find(|(part, _)| said.contains(part)).map_or("", |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ssh says of a server that shows another key, shortened at the places that do not matter.
    const IMPOSTOR: &str = "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
        @    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n\
        @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
        IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r\n\
        Someone could be eavesdropping on you right now (man-in-the-middle attack)!\r\n\
        It is also possible that a host key has just been changed.\r\n\
        The fingerprint for the ED25519 key sent by the remote host is\nSHA256:WVEDaH689nvxw2ZPMLcKCcehbVQSF8neOYoNs27LUm8.\r\n\
        Please contact your system administrator.\r\n\
        Add correct host key in /var/lib/sq/gitops/known_hosts to get rid of this message.\r\n\
        Offending ED25519 key in /var/lib/sq/gitops/known_hosts:1\r\n\
        Host key for [127.0.0.1]:12345 has changed and you have requested strict checking.\r\n\
        Host key verification failed.\r\n\
        fatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.\n";

    #[test]
    fn a_remedy_is_found_however_long_git_speaks_and_what_is_shown_is_short() {
        assert!(IMPOSTOR.len() > 700 && remedy(IMPOSTOR).contains("`known_hosts_file`"), "{}", remedy(IMPOSTOR));
        let shown = shown(IMPOSTOR, None);
        assert!(shown.starts_with("IT IS POSSIBLE") && shown.contains("SHA256:WVED") && shown.len() <= 500, "{shown}");
        assert!(!shown.contains(['@', '\r', '\n']), "{shown}");
    }

    #[test]
    fn a_token_is_shown_in_no_form_also_where_the_text_is_cut() {
        let token = "glpat-4f9d1c7be2a05836";
        for padding in [0, 480, 490, 600] {
            let said = format!("{}{token} and {}", "x".repeat(padding), basic(token));
            let shown = shown(&said, Some(token));
            assert!(!shown.contains("glpat") && !shown.contains(&basic(token)[..12]), "{padding}: {shown}");
        }
    }

    #[test]
    fn every_known_complaint_has_a_remedy_and_an_unknown_one_none() {
        for (said, part) in [
            ("fatal: couldn't find remote ref refs/heads/next", "`branch`"),
            ("git@host: Permission denied (publickey).\r\nfatal: Could not read from remote repository.", "deploy key"),
            ("fatal: could not read Username for 'https://x': terminal prompts disabled", "`token_file`"),
            ("error: file write error: No space left on device", "is full"),
            ("fatal: unable to access 'https://x/': Could not resolve host: x", "name server"),
            ("fatal: '/srv/none' does not appear to be a git repository\nfatal: Could not read from remote repository.", "`url`"),
            ("ssh: connect to host x port 22: Connection refused\r\nfatal: Could not read from remote repository.", "reachable"),
            ("fatal: transport 'ext' not allowed", "only https"),
        ] {
            assert!(remedy(said).contains(part), "{said}: {}", remedy(said));
        }
        assert_eq!(remedy("fatal: bad object"), "");
    }
}
