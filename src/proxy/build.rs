//! Which program file a process runs, so that a proxy of another build is known without asking for its version, which a rebuild may not change.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// The file that this process runs, whatever has its name by now.
pub(super) const OWN: &str = "/proc/self/exe";

/// What tells the program at `path` from another: an installation makes a new file, or changes its time. `None` where it cannot be seen.
pub(super) fn of(path: &Path) -> Option<String> {
    let about = fs::metadata(path).ok()?;
    Some(format!("{}-{}-{}.{:09}", about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_the_same_under_every_name_and_another_once_it_is_installed_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("sq-agent"), dir.path().join("new"));
        fs::write(&path, "one").unwrap();
        fs::write(&other, "two").unwrap();
        let first = of(&path).unwrap();
        fs::hard_link(&path, dir.path().join("link")).unwrap();
        assert_eq!(of(&dir.path().join("link")), Some(first.clone()));
        fs::rename(&other, &path).unwrap();
        assert_ne!(of(&path).unwrap(), first);
        assert_eq!(of(Path::new(OWN)), of(&std::env::current_exe().unwrap()));
        assert_eq!(of(&other), None);
    }
}
