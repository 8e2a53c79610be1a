//! Why restic did not do what it was asked for, with what to do about it. Pure: from its exit code and what it said.

use std::{path::PathBuf, time::Duration};

use super::aside;

/// What went wrong. No text here holds a secret: what restic said is shown without the values of the environment file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResticError {
    /// It is not installed.
    #[error("{program} is not there: `apt-get install restic`, or name it by [backup] restic", program = .0.display())]
    Missing(PathBuf),
    /// A secret file cannot be used.
    #[error("{path}: {why}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The repository is another one's, or the file is.
    #[error("the password is wrong for this repository: put the right one into the file that [backup] password_file names")]
    WrongPassword,
    /// There is none, where one is expected.
    #[error("there is no repository at {0}")]
    NoRepository(String),
    /// It was there before.
    #[error(
        "the repository at {0} is gone: it held backups before. Bring it back (is the disk mounted, is the address right?), or begin anew with `sq-agent backup --init`"
    )]
    Gone(String),
    /// Somebody else works on it.
    #[error("the repository is locked: {0}. If nothing works on it any more, run `restic unlock`")]
    Locked(String),
    /// Full.
    #[error("no room is left ({0}): make some, or keep fewer backups by [backup] keep_daily, keep_weekly, keep_monthly")]
    NoRoom(String),
    /// The network, or the other side.
    #[error("the repository cannot be reached ({0}): tried again by itself")]
    Unreachable(String),
    /// This user may not.
    #[error("not permitted ({0}): the agent's user must own the repository")]
    Forbidden(String),
    /// Under systemd that is everything but the state directory.
    #[error("the repository lies where this process cannot write ({0}): under systemd, add `ReadWritePaths=` by `systemctl edit sq-agent`")]
    ReadOnly(String),
    /// It read less than all.
    #[error("restic could not read all of the stage ({0})")]
    Partial(String),
    /// It was ended.
    #[error("restic had not finished after {} s and was ended", .0.as_secs())]
    TooLong(Duration),
    /// The agent ends or hands over.
    #[error("broken off, since the agent ended")]
    BrokenOff,
    /// Anything else.
    #[error("restic {command}: {said}")]
    Other {
        /// The command.
        command: String,
        /// Its last words.
        said: String,
    },
}

/// Longest part of restic's words that is shown, characters.
const LONGEST: usize = 300;

/// What the end of `restic COMMAND` with this exit `code` (none: killed) and these last `words` means. `secrets` are shown to nobody.
pub(super) fn of_exit(
    command: &str,
    program: &std::path::Path,
    repository: &str,
    code: Option<i32>,
    words: &str,
    secrets: &[String],
) -> ResticError {
    let said = || gist(words, secrets);
    let lower = words.to_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    match code {
        Some(code) if code == i32::from(aside::NOT_FOUND) => ResticError::Missing(program.into()),
        Some(code) if code == i32::from(aside::NOT_RUN) => ResticError::Other { command: command.into(), said: said() },
        // Since restic 0.17 some causes have codes of their own; before, only words.
        Some(12) => ResticError::WrongPassword,
        Some(10) => ResticError::NoRepository(repository.into()),
        Some(11) => ResticError::Locked(said()),
        Some(3) if command == "backup" => ResticError::Partial(said()),
        _ if any(&["wrong password or no key found"]) => ResticError::WrongPassword,
        _ if any(&["no space left on device", "disk quota exceeded", "not enough space"]) => ResticError::NoRoom(said()),
        _ if any(&["already locked", "unable to create lock"]) && !any(&["permission denied", "read-only file system"]) => {
            ResticError::Locked(said())
        }
        // Before the question whether there is a repository: restic asks that one at every failure.
        _ if any(&UNREACHABLE) => ResticError::Unreachable(said()),
        _ if any(&["read-only file system"]) => ResticError::ReadOnly(said()),
        _ if any(&["permission denied", "access denied", "forbidden"]) => ResticError::Forbidden(said()),
        _ if any(&["config: no such file or directory", "specified key does not exist", "<config/> does not exist"])
            || (any(&["is there a repository at the following location"]) && any(&["not exist", "404", "no such"])) =>
        {
            ResticError::NoRepository(repository.into())
        }
        _ => ResticError::Other { command: command.into(), said: said() },
    }
}

/// As Go's network code, ssh and HTTP servers word it.
const UNREACHABLE: [&str; 13] = [
    "connection refused",
    "connection reset",
    "connection timed out",
    "no such host",
    "could not resolve",
    "network is unreachable",
    "no route to host",
    "i/o timeout",
    "tls handshake timeout",
    "temporary failure in name resolution",
    "bad gateway",
    "service unavailable",
    "unable to start the sftp session",
];

/// The line that says most: the one that restic calls fatal, with one of ssh's before it, else the last.
fn gist(words: &str, secrets: &[String]) -> String {
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let fatal = lines.iter().position(|line| line.starts_with("Fatal:"));
    let ssh = lines.iter().find(|line| line.starts_with("subprocess ssh:"));
    let lock = lines.iter().find(|line| line.contains("already locked"));
    let chosen = ssh.or(lock).or_else(|| lines.get(fatal?)).or(lines.last()).copied().unwrap_or("it said nothing");
    let mut shown = chosen.trim_start_matches("Fatal:").trim().to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
        shown = shown.replace(secret.as_str(), "[redacted]");
    }
    shown.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What restic 0.14 really said.
    fn says(words: &str) -> ResticError {
        of_exit("snapshots", "restic".as_ref(), "/r", Some(1), words, &["hunter2".into()])
    }

    #[test]
    fn each_cause_is_told_from_the_others() {
        let none = "Fatal: unable to open config file: stat /r/config: no such file or directory\nIs there a repository at the following location?\n/r\n";
        assert_eq!(says(none), ResticError::NoRepository("/r".into()));
        assert_eq!(says("Fatal: wrong password or no key found\n"), ResticError::WrongPassword);
        let refused = "Fatal: unable to open config file: client.Head: Head \"http://127.0.0.1:1/config\": dial tcp 127.0.0.1:1: connect: connection refused\nIs there a repository at the following location?\nrest:http://127.0.0.1:1/\n";
        assert!(matches!(says(refused), ResticError::Unreachable(_)));
        let ssh = "subprocess ssh: ssh: Could not resolve hostname nohost.invalid: Name or service not known\nFatal: unable to open repository at sftp:nohost.invalid:/x: unable to start the sftp session, error: EOF\n";
        assert!(matches!(says(ssh), ResticError::Unreachable(said) if said.contains("Could not resolve hostname")));
        assert!(matches!(
            says("Fatal: unable to open repository at /r: ReadDir: open /r/keys: permission denied\n"),
            ResticError::Forbidden(_)
        ));
        let locked = "unable to create lock in backend: repository is already locked exclusively by PID 12 on vault by root (UID 0, GID 0)\nlock was created at 2026-11-24 18:39:31 (611.704997ms ago)\nstorage ID 2bd01b3c\nthe `unlock` command can be used to remove stale locks\n";
        assert!(matches!(says(locked), ResticError::Locked(said) if said.contains("PID 12")));
        assert!(matches!(says("Fatal: unable to save snapshot: write /r/x: no space left on device"), ResticError::NoRoom(_)));
        assert!(matches!(says("Fatal: create repository at /r failed: mkdir /r: read-only file system"), ResticError::ReadOnly(_)));
    }

    #[test]
    fn codes_go_before_words() {
        let of = |code| of_exit("backup", "restic".as_ref(), "/r", Some(code), "", &[]);
        assert_eq!((of(12), of(10)), (ResticError::WrongPassword, ResticError::NoRepository("/r".into())));
        assert!(matches!((of(3), of(11)), (ResticError::Partial(_), ResticError::Locked(_))));
        assert!(of(127).to_string().contains("apt-get install restic"));
    }

    #[test]
    fn no_secret_is_shown() {
        assert_eq!(says("Fatal: odd: key hunter2 is not known").to_string(), "restic snapshots: odd: key [redacted] is not known");
    }
}
