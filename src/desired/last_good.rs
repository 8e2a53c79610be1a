//! The last good tenants.toml, kept in the state directory: what a restarted agent holds on to while the file is bad.
//!
//! The copy lies in `<state_dir>`, but the state directory is named by the very file that is bad, or gone. It is
//! looked for, in this order:
//! 1. where the bad file says, read leniently (a slip elsewhere in it does not matter);
//! 2. where a pointer says. It is kept outside the state directory, under a name made from the file's path, and only
//!    where the state directory is not the default one: `$XDG_STATE_HOME`, root's `/var/lib` or `~/.local/state`,
//!    then `sq-agent/last-good/`;
//! 3. in the default state directory, `state` beside the file.
//!
//! A copy counts only if it names the state directory in which it was found, so that a half-written path that happens
//! to exist never brings up somebody else's tenants.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use super::{Desired, Rejected, load::absolute, parse_named};
use crate::{
    digest::{hex, sha256},
    file::write_whole,
};

/// A copy that could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("the last good tenants.toml could not be kept in {}: {source}; check its owner and the free space", path.display())]
pub struct SaveError {
    /// The copy.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// `<state_dir>/tenants.last-good.toml`.
pub fn last_good_path(state_dir: &Path) -> PathBuf {
    state_dir.join("tenants.last-good.toml")
}

/// Keeps `text`, the good content of `file`, for the next start: whole or not at all, mode 0600. `state_dir` is the one
/// that the text names ([`Desired::state_dir`]).
pub fn save_last_good(file: &Path, text: &str, state_dir: &Path) -> Result<(), SaveError> {
    save(file, text, state_dir, state_home().as_deref())
}

/// The last good content of `file` and what it means, or `None` if there never was one. Paths in it still start at the
/// directory of `file`. The files that it names are not checked: they were when it was saved.
pub fn load_last_good(file: &Path) -> Result<Option<(Desired, String)>, Rejected> {
    find(file, state_home().as_deref())
}

fn save(file: &Path, text: &str, state_dir: &Path, home: Option<&Path>) -> Result<(), SaveError> {
    let path = last_good_path(state_dir);
    let kept = fs::create_dir_all(state_dir).and_then(|()| write_whole(&path, text.as_bytes()));
    kept.map_err(|source| SaveError { path, source })?;
    // The pointer is a help in need, not a promise: where it cannot be kept (a read-only home), the copy still stands.
    if let Err(error) = point(file, state_dir, home) {
        tracing::debug!(%error, file = %file.display(), "no pointer to the state directory");
    }
    Ok(())
}

fn point(file: &Path, state_dir: &Path, home: Option<&Path>) -> io::Result<()> {
    let file = absolute(file);
    let Some(pointer) = home.map(|home| pointer_path(home, &file)) else { return Ok(()) };
    if state_dir == default_state_dir(&file) {
        // One from earlier would lead to a state directory that the file has left.
        return fs::remove_file(&pointer).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
    }
    fs::create_dir_all(pointer.parent().unwrap_or(Path::new("/")))?;
    write_whole(&pointer, state_dir.as_os_str().as_encoded_bytes())
}

fn find(file: &Path, home: Option<&Path>) -> Result<Option<(Desired, String)>, Rejected> {
    let place = absolute(file);
    let dir = place.parent().unwrap_or(Path::new("/"));
    let said = fs::read(file).ok().and_then(|bytes| lenient_state_dir(&String::from_utf8_lossy(&bytes)));
    let pointed = home.and_then(|home| fs::read(pointer_path(home, &place)).ok()).map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
    let candidates = [said.map(|said| dir.join(said).components().collect()), pointed, Some(default_state_dir(&place))];
    let mut refused = None;
    for state_dir in candidates.into_iter().flatten() {
        let copy = last_good_path(&state_dir);
        let Ok(text) = fs::read_to_string(&copy) else { continue };
        match parse_named(&text, &place, &copy) {
            Ok((desired, _)) if desired.state_dir == state_dir => return Ok(Some((desired, text))),
            Ok(_) => {}
            Err(rejected) => refused = refused.or(Some(rejected)),
        }
    }
    refused.map_or(Ok(None), Err)
}

fn default_state_dir(file: &Path) -> PathBuf {
    file.with_file_name("state")
}

/// `[agent] state_dir` of a file that may be broken anywhere.
fn lenient_state_dir(text: &str) -> Option<PathBuf> {
    let (table, _) = DeTable::parse_recoverable(text);
    let agent = table.get_ref().get("agent").and_then(|agent| agent.get_ref().as_table());
    match agent {
        Some(agent) => agent.get("state_dir").and_then(|dir| dir.get_ref().as_str()).map(PathBuf::from),
        // Not even `[agent]` is whole: the first line that looks like the key.
        None => text.lines().find_map(|line| {
            let value = line.trim_start().strip_prefix("state_dir")?.trim_start().strip_prefix('=')?.trim_start();
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            value[1..].split_once(quote).map(|(dir, _)| PathBuf::from(dir))
        }),
    }
}

fn pointer_path(home: &Path, file: &Path) -> PathBuf {
    let digest = sha256(file.as_os_str().as_encoded_bytes());
    home.join("sq-agent/last-good").join(hex(&digest[..16]))
}

/// Where programs of this user keep state, as the XDG Base Directory Specification has it.
fn state_home() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = || match nix::unistd::geteuid().is_root() {
        true => Some("/var/lib".into()),
        false => from("HOME").map(|home| home.join(".local/state")),
    };
    from("XDG_STATE_HOME").or_else(usual)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ELSEWHERE: &str = "[agent]\nstate_dir = \"../far\"\n[[tenants]]\nid = \"ada\"\n[proxy.tls]\ncert = \"c.pem\"\nkey = \"k.pem\"\n";

    struct Host {
        _dir: tempfile::TempDir,
        file: PathBuf,
        home: PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap();
            fs::create_dir_all(root.join("etc")).unwrap();
            Self { file: root.join("etc/tenants.toml"), home: root.join("home"), _dir: dir }
        }

        fn save(&self, text: &str) -> Desired {
            fs::write(&self.file, text).unwrap();
            let desired = super::super::load_without_files(&self.file).unwrap();
            save(&self.file, text, &desired.state_dir, Some(&self.home)).unwrap();
            desired
        }

        fn find(&self) -> Option<(Desired, String)> {
            find(&self.file, Some(&self.home)).unwrap()
        }
    }

    #[test]
    fn the_copy_comes_back_whatever_is_wrong_with_the_file() {
        let host = Host::new();
        assert_eq!(host.find(), None);
        let good = host.save(ELSEWHERE);
        for bad in [
            "[agent]\nstate_dir = \"../far\"\nports = 7\n[[tenants",
            "[agent\nstate_dir='../far'\n",
            "[agent]\nstate_dir = \"../f",
            "",
            "\u{0}",
        ] {
            fs::write(&host.file, bad).unwrap();
            assert_eq!(host.find(), Some((good.clone(), ELSEWHERE.to_owned())), "{bad:?}");
        }
        fs::write(&host.file, b"\xff\xfe").unwrap();
        assert!(host.find().is_some(), "not UTF-8");
        fs::remove_file(&host.file).unwrap();
        assert_eq!(host.find().unwrap().0, good, "gone");
    }

    #[test]
    fn paths_in_the_copy_start_where_the_file_stood() {
        let host = Host::new();
        host.save(ELSEWHERE);
        let cert = host.find().unwrap().0.proxy.tls.unwrap().cert;
        assert_eq!(cert, host.file.with_file_name("c.pem"));
    }

    #[test]
    fn a_file_that_moved_back_to_the_default_leaves_its_old_copy_behind() {
        let host = Host::new();
        host.save(ELSEWHERE);
        let good = host.save("[[tenants]]\nid = \"bob\"\n");
        fs::remove_file(&host.file).unwrap();
        assert_eq!(host.find().unwrap().0, good);
    }

    #[test]
    fn a_copy_of_another_state_directory_does_not_count() {
        let host = Host::new();
        let good = host.save(ELSEWHERE);
        let foreign = good.state_dir.with_file_name("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(last_good_path(&foreign), ELSEWHERE.replace("ada", "eve")).unwrap();
        fs::write(&host.file, "[agent]\nstate_dir = \"../foreign\"\nx").unwrap();
        assert_eq!(host.find().unwrap().0, good);
    }

    #[test]
    fn a_copy_that_this_version_cannot_read_is_an_error_that_names_the_copy() {
        let host = Host::new();
        let good = host.save(ELSEWHERE);
        fs::write(last_good_path(&good.state_dir), "[agent]\nfuture = 1\n").unwrap();
        let rejected = find(&host.file, None).unwrap_err();
        assert_eq!(rejected.file, last_good_path(&good.state_dir));
    }

    #[test]
    fn the_copy_is_private_and_leaves_nothing_beside_it() {
        let host = Host::new();
        let good = host.save(ELSEWHERE);
        let names: Vec<_> = fs::read_dir(&good.state_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["tenants.last-good.toml"]);
        assert_eq!(fs::metadata(last_good_path(&good.state_dir)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
