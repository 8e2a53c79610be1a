//! Installing an exact version of sq with cargo, so that nothing half-done is ever used.

use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokio::sync::mpsc;

use super::process::{Exit, Process, StopSignal};

/// Why sq could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No cargo.
    #[error("cargo was not found, and it is needed to install sq; get it from https://rustup.rs, or set `[sq] binary` to an sq program")]
    NoCargo,
    /// No network.
    #[error("sq could not be downloaded from crates.io: {0}; check the network (or HTTPS_PROXY), or set `[sq] binary` to an sq program")]
    NoNetwork(String),
    /// No such version.
    #[error("crates.io has no sq {0}; see https://crates.io/crates/sq/versions and correct `[sq] version`")]
    NoSuchVersion(String),
    /// No C compiler or linker.
    #[error("building sq needs a C linker: {0}; install gcc (Debian: `apt install build-essential`)")]
    NoLinker(String),
    /// No room.
    #[error("no space left while building sq; about 500 MB are needed for some time in {}", .0.display())]
    NoSpace(PathBuf),
    /// The build failed.
    #[error("building sq {version} failed ({exit}); cargo's last lines:\n{lines}")]
    Failed {
        /// The version.
        version: String,
        /// How cargo ended.
        exit: Exit,
        /// The end of its output.
        lines: String,
    },
    /// A file operation failed.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl InstallError {
    pub(super) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::File { what, path: path.into(), error }
    }
}

/// Where to look for cargo.
#[derive(Debug, Clone, Default)]
pub struct CargoSearch {
    /// PATH.
    pub path: Option<OsString>,
    /// CARGO_HOME, else `~/.cargo`: rustup puts cargo into its `bin`, which the PATH of a service seldom holds.
    pub cargo_home: Option<PathBuf>,
}

impl CargoSearch {
    /// What this process was started with.
    pub fn from_environment() -> Self {
        let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
        Self { path: env::var_os("PATH"), cargo_home: env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home) }
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let from_path = self.path.iter().flat_map(env::split_paths).filter(|dir| dir.is_absolute());
        from_path.chain(self.cargo_home.iter().map(|home| home.join("bin")))
    }

    /// The cargo that an install would use.
    pub fn cargo(&self) -> Option<PathBuf> {
        self.directories().map(|dir| dir.join("cargo")).find(|path| path.is_file())
    }
}

/// `<state_dir>/sq/<version>/bin/sq`.
pub(super) fn binary_path(state_dir: &Path, version: &str) -> PathBuf {
    state_dir.join("sq").join(version).join("bin/sq")
}

/// Lets one process install at a time; held until dropped.
pub(super) async fn lock(state_dir: &Path, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<File, InstallError> {
    let dir = state_dir.join("sq");
    let path = dir.join(".install.lock");
    fs::create_dir_all(&dir).map_err(|error| InstallError::io("making", &dir, error))?;
    let fail = |error| InstallError::io("locking", &path, error);
    let file = File::create(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => progress("waiting for another process that installs sq …"),
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    let waited = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    waited.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(fail)
}

/// Builds into `.VERSION.partial` and renames it into place: a kill at any point leaves the version either missing or
/// whole. The caller holds [`lock`]. Dropped half-way, it ends cargo.
pub(super) async fn install(
    state_dir: &Path,
    version: &str,
    search: &CargoSearch,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), InstallError> {
    let cargo = search.cargo().ok_or(InstallError::NoCargo)?;
    let (target, partial) = (state_dir.join("sq").join(version), state_dir.join("sq").join(format!(".{version}.partial")));
    remove_dir(&partial)?;
    progress(&format!("installing sq {version} with cargo (about half a minute) …"));
    let (exit, lines) = run_cargo(cargo_install(&cargo, version, &partial, search), progress)
        .await
        .map_err(|error| InstallError::io("running", &cargo, error))?;
    if exit != Exit::Code(0) {
        remove_dir(&partial)?;
        return Err(explain(version, exit, &lines, &partial));
    }
    remove_dir(&partial.join("target"))?;
    // On disk before its name is: a power failure must not leave an empty program under it.
    let built = partial.join("bin/sq");
    File::open(&built).and_then(|file| file.sync_all()).map_err(|error| InstallError::io("syncing", &built, error))?;
    remove_dir(&target)?;
    fs::rename(&partial, &target).map_err(|error| InstallError::io("moving into place", &target, error))
}

/// The command, free of the settings of whatever build this process may run under (`cargo run`, a test, clippy).
fn cargo_install(cargo: &Path, version: &str, root: &Path, search: &CargoSearch) -> Command {
    let mut command = Command::new(cargo);
    command.args(["install", "sq", "--version"]).arg(format!("={version}")).args(["--locked", "--color", "never", "--root"]).arg(root);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_foreign_build_setting) {
            command.env_remove(name);
        }
    }
    // Beside the result and not in /tmp, which may be small and in memory.
    command.env("CARGO_TARGET_DIR", root.join("target"));
    if let Ok(path) = env::join_paths(search.directories()) {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Variables that would change how or where sq is built. Proxies, mirrors, CARGO_HOME and the number of jobs stay.
fn is_foreign_build_setting(name: &str) -> bool {
    const EXACT: [&str; 9] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_INSTALL_ROOT",
        "CARGO_MAKEFLAGS",
        "MAKEFLAGS",
        "LD_LIBRARY_PATH",
    ];
    let settings = ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"].iter().any(|prefix| name.starts_with(prefix));
    EXACT.contains(&name) || settings && name != "CARGO_BUILD_JOBS"
}

/// Ends cargo when the installation is given up (Ctrl-C): it would otherwise build on for nobody.
struct EndOnDrop(Process);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        // Harmless where it has ended already, and nothing can be done where it fails.
        let _ = self.0.signal(StopSignal::Term);
    }
}

/// Runs cargo, forwards what it compiles, and returns how it ended with its last lines.
async fn run_cargo(mut command: Command, progress: &(dyn Fn(&str) + Send + Sync)) -> io::Result<(Exit, VecDeque<String>)> {
    const KEPT_LINES: usize = 60;
    let mut child = command.spawn()?;
    let stderr = child.stderr.take();
    let cargo = EndOnDrop(Process::from_child(child)?);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || {
        let lines = stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines()).map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    let mut kept = VecDeque::with_capacity(KEPT_LINES);
    while let Some(line) = receiver.recv().await {
        if let Some(step) = progress_line(&line) {
            progress(&format!("  {step}"));
        }
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    Ok((cargo.0.exited().await, kept))
}

/// The lines of cargo that say how far it is.
fn progress_line(line: &str) -> Option<&str> {
    let line = line.trim_start();
    ["Updating", "Downloading", "Downloaded", "Compiling", "Blocking"].iter().any(|verb| line.starts_with(verb)).then_some(line)
}

/// Turns cargo's words into what the person should do. The phrases are those of cargo 1.70–1.95.
fn explain(version: &str, exit: Exit, lines: &VecDeque<String>, room: &Path) -> InstallError {
    let first = |phrases: &[&str]| {
        let hit = |line: &&String| phrases.iter().any(|phrase| line.contains(phrase));
        lines.iter().find(hit).map(|line| line.trim().trim_start_matches("error: ").trim_start_matches("warning: ").to_owned())
    };
    if first(&["No space left on device"]).is_some() {
        return InstallError::NoSpace(room.into());
    }
    if first(&["could not find `sq` in registry"]).is_some() {
        return InstallError::NoSuchVersion(version.into());
    }
    const NETWORK: [&str; 8] = [
        "Could not resolve host",
        "Couldn't resolve host",
        "Could not connect to server",
        "Failed to connect to",
        "Could not resolve proxy",
        "Timeout was reached",
        "SSL connect error",
        "you may have the --offline flag",
    ];
    if let Some(line) =
        first(&NETWORK).or_else(|| first(&["spurious network error", "failed to download", "download of config.json failed"]))
    {
        return InstallError::NoNetwork(line);
    }
    if let Some(line) = first(&["linker `cc` not found", "linker `gcc` not found", "linker `clang` not found"]) {
        return InstallError::NoLinker(line);
    }
    let skip = lines.len().saturating_sub(20);
    let lines = lines.iter().skip(skip).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
    InstallError::Failed { version: version.into(), exit, lines }
}

fn remove_dir(path: &Path) -> Result<(), InstallError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(InstallError::io("removing", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{super::fake, *};

    fn explained(stderr: &str) -> String {
        let lines = stderr.lines().map(str::to_owned).collect();
        explain("0.6.0", Exit::Code(101), &lines, Path::new("/state/sq")).to_string()
    }

    /// A directory with a program in the place of cargo.
    fn fake_cargo(script: &str) -> (tempfile::TempDir, CargoSearch) {
        let dir = tempfile::tempdir().unwrap();
        fake::program(dir.path(), "cargo", script);
        let search = CargoSearch { path: Some(format!("{}:/usr/bin:/bin", dir.path().display()).into()), cargo_home: None };
        (dir, search)
    }

    #[test]
    fn each_failure_of_cargo_names_its_remedy() {
        let no_network = "    Updating crates.io index\nwarning: spurious network error (3 tries remaining): [6] Could not resolve host: index.crates.io\nerror: download of config.json failed\n";
        assert!(explained(no_network).contains("check the network"));
        let no_version = "error: could not find `sq` in registry `crates-io` with version `=9.9.9`\n";
        assert!(explained(no_version).contains("no sq 0.6.0"));
        assert!(explained("error: linker `cc` not found\n").contains("install gcc"));
        assert!(explained("error: could not write: No space left on device (os error 28)").contains("500 MB"));
        let broken = explained("   Compiling libc v0.2.1\nerror[E0308]: mismatched types\n");
        assert!(broken.contains("E0308") && broken.contains("exit 101"), "{broken}");
    }

    #[test]
    fn settings_of_the_build_around_us_do_not_reach_sq() {
        for name in ["RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_PROFILE_RELEASE_LTO", "RUSTC_WORKSPACE_WRAPPER"] {
            assert!(is_foreign_build_setting(name), "{name}");
        }
        for name in ["PATH", "HOME", "CARGO_HOME", "HTTPS_PROXY", "CARGO_BUILD_JOBS", "CARGO_REGISTRIES_X_INDEX", "RUSTUP_TOOLCHAIN"] {
            assert!(!is_foreign_build_setting(name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_build_appears_whole_with_its_progress_told() {
        let state = tempfile::tempdir().unwrap();
        let (_dir, search) = fake_cargo(
            "[ \"$*\" = \"install sq --version =1.2.3 --locked --color never --root $9\" ] || exit 9\n\
             mkdir -p $CARGO_TARGET_DIR $9/bin; echo program > $9/bin/sq; echo '   Compiling libc v1' >&2; [ -z \"$RUSTFLAGS\" ]",
        );
        let told = Mutex::new(Vec::new());
        let result = install(state.path(), "1.2.3", &search, &|line| told.lock().unwrap().push(line.to_owned())).await;
        result.unwrap();
        assert_eq!(fs::read_to_string(binary_path(state.path(), "1.2.3")).unwrap(), "program\n");
        assert!(!state.path().join("sq/1.2.3/target").exists() && !state.path().join("sq/.1.2.3.partial").exists());
        let told = told.into_inner().unwrap();
        assert!(told[0].contains("installing sq 1.2.3") && told[1] == "  Compiling libc v1", "{told:?}");
    }

    #[tokio::test]
    async fn a_failed_build_leaves_nothing_behind() {
        let state = tempfile::tempdir().unwrap();
        let (_dir, search) = fake_cargo("mkdir -p $9/bin; echo half > $9/bin/sq; echo 'error: boom' >&2; exit 101");
        let error = install(state.path(), "1.2.3", &search, &|_| ()).await.unwrap_err();
        assert!(matches!(&error, InstallError::Failed { lines, .. } if lines.contains("boom")), "{error}");
        assert_eq!(fs::read_dir(state.path().join("sq")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn giving_up_half_way_ends_cargo() {
        let state = tempfile::tempdir().unwrap();
        let (_dir, search) = fake_cargo("echo \"Compiling $$\" >&2; exec tail -f /dev/null");
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let progress = move |line: &str| drop(sender.send(line.trim().to_owned()));
        let started = {
            let installing = install(state.path(), "1.2.3", &search, &progress);
            tokio::pin!(installing);
            loop {
                tokio::select! {
                    _ = &mut installing => panic!("it ended by itself"),
                    line = receiver.recv() => if let Some(pid) = line.unwrap().strip_prefix("Compiling ") { break pid.parse::<u32>().unwrap() },
                }
            }
        };
        // Our own child, unreaped by then: TERM makes it a zombie.
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        while super::super::procfs::stat(started).is_ok_and(|stat| !stat.is_dead()) {
            assert!(tokio::time::Instant::now() < deadline, "cargo runs on");
            tokio::task::yield_now().await;
        }
    }
}
