//! The sq program: found or installed, and checked before anything relies on it.

use std::{
    fs,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    install::{self, InstallError},
    process::{Exit, Process, StopSignal},
};
use crate::desired::SqSource;

pub use super::install::CargoSearch;

/// A program that has said which version of sq it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqBinary {
    /// Absolute path.
    pub path: PathBuf,
    /// What `sq version` printed, such as `0.6.0`.
    pub version: String,
}

/// Why there is no sq to run; each text names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// `version` is no exact version.
    #[error("[sq] version = {0:?} is not an exact version; write one such as \"0.6.0\"")]
    BadVersion(String),
    /// `[sq] binary` cannot be used.
    #[error("{}: {why}; set [sq] binary to an sq program, or [sq] version to have one installed", path.display())]
    Unusable {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Installing failed.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// How long `sq version` may take: it needs 2 ms, a loaded machine 100 times that.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives the sq that `source` names. A version that is missing, or does not run (cut short by a power failure), is
/// installed into `<state_dir>/sq/<version>` first, which takes about half a minute and needs cargo, a C compiler and
/// the network; `progress` hears a line at a time, the first a sentence, the rest indented. `state_dir` must exist.
pub async fn ensure(source: &SqSource, state_dir: &Path, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<SqBinary, BinaryError> {
    ensure_with(source, state_dir, &CargoSearch::from_environment(), progress).await
}

/// [`ensure`], with where to look for cargo passed in.
pub async fn ensure_with(
    source: &SqSource,
    state_dir: &Path,
    search: &CargoSearch,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<SqBinary, BinaryError> {
    match source {
        SqSource::Binary(path) => {
            let path = std::path::absolute(path).map_err(|error| BinaryError::Unusable { path: path.clone(), why: error.to_string() })?;
            check(&path).await.map_err(|why| BinaryError::Unusable { path, why })
        }
        SqSource::Version(version) => {
            if !is_exact_version(version) {
                return Err(BinaryError::BadVersion(version.clone()));
            }
            let state_dir = std::path::absolute(state_dir).map_err(|error| InstallError::io("resolving", state_dir, error))?;
            let path = install::binary_path(&state_dir, version);
            if let Some(binary) = installed(&path, version).await {
                return Ok(binary);
            }
            let _lock = install::lock(&state_dir, progress).await?;
            // Whoever held the lock may have installed it.
            if let Some(binary) = installed(&path, version).await {
                return Ok(binary);
            }
            install::install(&state_dir, version, search, progress).await?;
            let binary = check(&path).await.map_err(|why| BinaryError::Unusable { path, why })?;
            progress(&format!("sq {} is installed", binary.version));
            Ok(binary)
        }
    }
}

/// Whether this version is there already, and runs.
pub async fn is_installed(version: &str, state_dir: &Path) -> bool {
    is_exact_version(version) && installed(&install::binary_path(state_dir, version), version).await.is_some()
}

async fn installed(path: &Path, version: &str) -> Option<SqBinary> {
    check(path).await.ok().filter(|binary| binary.version == version)
}

/// Only what cargo takes for one exact version; also keeps the value a plain directory name.
fn is_exact_version(text: &str) -> bool {
    let allowed = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 64 && allowed && core.split('.').count() == 3 && core.split('.').all(is_number)
}

/// Runs `sq version` and reads the answer, or says what is wrong with the program.
///
/// sq prints it without a daemon or a file, but makes `.sq/` in its working directory: hence a directory of its own,
/// thrown away after.
async fn check(path: &Path) -> Result<SqBinary, String> {
    let found = fs::metadata(path).map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("not a file".into());
    }
    let scratch = Scratch::new().map_err(|error| format!("a temporary directory for `sq version`: {error}"))?;
    let mut command = Command::new(path);
    command.arg("version").current_dir(&scratch.0).env_clear().process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let stdout = child.stdout.take();
    let process = Process::from_child(child).map_err(|error| error.to_string())?;
    let Ok(exit) = tokio::time::timeout(CHECK_TIMEOUT, process.exited()).await else {
        // It can only fail if the process has ended after all.
        let _ = process.signal(StopSignal::Kill);
        process.exited().await;
        return Err(format!("`version` did not end within {} s", CHECK_TIMEOUT.as_secs()));
    };
    if exit != Exit::Code(0) {
        return Err(format!("`version` failed: {exit}"));
    }
    read_version(stdout)
        .ok_or_else(|| "it does not answer `version` as sq does".into())
        .map(|version| SqBinary { path: path.into(), version })
}

/// The process has ended, so this reads what the pipe holds and cannot wait, unless a child of its own lives on.
fn read_version(stdout: Option<impl Read + std::os::fd::AsFd>) -> Option<String> {
    let mut stdout = stdout?;
    rustix::io::ioctl_fionbio(&stdout, true).ok()?;
    let mut bytes = [0; 128];
    let length = stdout.read(&mut bytes).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?.trim();
    is_exact_version(text).then(|| text.to_owned())
}

/// A temporary directory that is removed with its contents.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = std::env::temp_dir().join(format!("sq-agent-check-{:016x}", u64::from_ne_bytes(random)));
        std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover of some bytes in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake, *};

    async fn why_not(path: PathBuf) -> String {
        ensure(&SqSource::Binary(path), Path::new("/nowhere"), &|_| ()).await.unwrap_err().to_string()
    }

    #[test]
    fn only_an_exact_version_is_one() {
        for good in ["0.6.0", "10.20.30", "1.0.0-rc.1", "1.0.0+build"] {
            assert!(is_exact_version(good), "{good}");
        }
        for bad in ["", "0.6", "^0.6.0", "*", "../0.6.0", "0.6.0/x", "0..0", "v0.6.0", "latest", "1.2.3.4"] {
            assert!(!is_exact_version(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_program_that_answers_with_a_version_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = fake::program(dir.path(), "sq", "[ \"$1\" = version ] && mkdir .sq && echo 1.2.3");
        let binary = ensure(&SqSource::Binary(path.clone()), Path::new("/nowhere"), &|_| ()).await.unwrap();
        assert_eq!(binary, SqBinary { path, version: "1.2.3".into() });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "sq's .sq directory went elsewhere");
    }

    #[tokio::test]
    async fn a_program_that_is_not_sq_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let text = why_not(fake::program(dir.path(), "sq", "echo hello")).await;
        assert!(text.contains("as sq does") && text.contains("[sq] binary"), "{text}");
        assert!(why_not(fake::program(dir.path(), "sq", "exit 3")).await.contains("exit 3"));
        assert!(why_not(dir.path().into()).await.contains("not a file"));
        assert!(why_not("/no/such/sq".into()).await.contains("/no/such/sq"));
    }

    /// Stands for cargo: counts its runs in `count` and builds a program that says 1.2.3.
    fn fake_cargo(dir: &Path) -> CargoSearch {
        let built = "mkdir -p $9/bin && printf '#!/bin/sh\\necho 1.2.3\\n' > $9/bin/sq && chmod 755 $9/bin/sq";
        fake::program(dir, "cargo", &format!("echo run >> {}/count; {built}", dir.display()));
        CargoSearch { path: Some(format!("{}:/usr/bin:/bin", dir.display()).into()), cargo_home: None }
    }

    #[tokio::test]
    async fn two_agents_that_need_the_same_version_install_it_once() {
        let (state, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let search = fake_cargo(tools.path());
        let source = SqSource::Version("1.2.3".into());
        let both = tokio::join!(ensure_with(&source, state.path(), &search, &|_| ()), ensure_with(&source, state.path(), &search, &|_| ()));
        let (a, b) = (both.0.unwrap(), both.1.unwrap());
        assert_eq!((a.version.as_str(), &a), ("1.2.3", &b));
        assert_eq!(fs::read_to_string(tools.path().join("count")).unwrap(), "run\n");
    }

    #[tokio::test]
    async fn what_a_killed_installation_or_a_power_failure_left_is_replaced() {
        let (state, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sq = state.path().join("sq");
        fs::create_dir_all(sq.join(".1.2.3.partial/bin")).unwrap();
        fs::create_dir_all(sq.join("1.2.3/bin")).unwrap();
        fs::write(sq.join("1.2.3/bin/sq"), "").unwrap();
        let found = ensure_with(&SqSource::Version("1.2.3".into()), state.path(), &fake_cargo(tools.path()), &|_| ()).await.unwrap();
        assert_eq!(found.path, sq.join("1.2.3/bin/sq"));
        assert!(!sq.join(".1.2.3.partial").exists());
    }

    #[tokio::test]
    async fn without_cargo_a_missing_version_says_how_to_get_one() {
        let state = tempfile::tempdir().unwrap();
        let result = ensure_with(&SqSource::Version("1.2.3".into()), state.path(), &CargoSearch::default(), &|_| ()).await;
        let text = result.unwrap_err().to_string();
        assert!(text.contains("https://rustup.rs") && text.contains("[sq] binary"), "{text}");
    }

    #[tokio::test]
    async fn a_version_that_would_leave_the_state_directory_is_refused() {
        let error = ensure(&SqSource::Version("../../x".into()), Path::new("/nowhere"), &|_| ()).await.unwrap_err();
        assert!(matches!(error, BinaryError::BadVersion(_)), "{error}");
    }
}
