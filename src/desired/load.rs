//! From a file on this host to the desired state.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{Desired, Rejected, files, parse_named, problem::Source, rejected};

/// The largest tenants.toml that is read, bytes: 20,000 tenants with every key set take about 10 MiB.
pub const MAX_FILE: u64 = 16 << 20;

/// Reads `file`, then checks what it says against this host: the secrets and certificates that it names must be there,
/// readable, and the secret ones readable by nobody else.
pub fn load(file: &Path) -> Result<Desired, Rejected> {
    load_with_text(file).map(|(desired, _)| desired)
}

/// As [`load`], with the text that was read: what [`super::save_last_good`] keeps, even if the file has changed since.
pub fn load_with_text(file: &Path) -> Result<(Desired, String), Rejected> {
    let text = read(file)?;
    load_candidate(&text, file).map(|desired| (desired, text))
}

/// What `text` would mean as the content of `file`, with all checks of [`load`].
pub fn load_candidate(text: &str, file: &Path) -> Result<Desired, Rejected> {
    let (desired, named) = parse_named(text, &absolute(file), file)?;
    let found = files::check(&named);
    if found.is_empty() { Ok(desired) } else { Err(rejected(&Source::new(text), file, found)) }
}

/// Reads `file` without the checks of [`load`] that look at other files: for a desired state that is meant for another host.
pub fn load_without_files(file: &Path) -> Result<Desired, Rejected> {
    parse_named(&read(file)?, &absolute(file), file).map(|(desired, _)| desired)
}

/// `file` with the directory in which its name stands made canonical. The name itself may be a symlink and is left
/// alone: paths are relative to the place that the operator named, not to a target that a tool swaps beneath it.
pub(super) fn absolute(file: &Path) -> PathBuf {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::desired::{Algorithm, KeySource};

    #[test]
    fn loading_looks_at_the_files_that_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tenants.toml");
        let put = |name: &str, mode: u32| {
            fs::write(dir.path().join(name), [b'x'; 32]).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::write(&file, "[[proxy.jwt]]\nalg = 'HS256'\nsecret_file = 'hs'\n[[proxy.jwt]]\nkid = 'e'\nalg = 'ES256'\nsecret_file = 'es'\n[proxy.tls]\ncert = 'c'\nkey = 'k'\n\
        [admin]\nlisten = '127.0.0.1:1'\nkey_file = 'a'\n[alerts.discord]\nwebhook_file = 'd'\n[sq]\nbinary = 'sq'\n").unwrap();
        let lines = || {
            load(&file)
                .map_or_else(|rejected| rejected.problems.iter().map(|problem| problem.place.as_ref().unwrap().line).collect(), |_| vec![])
        };
        assert_eq!(lines(), [3, 7, 9, 10, 13, 15, 17], "all are missing");
        for (name, mode) in [("hs", 0o644), ("es", 0o644), ("c", 0o644), ("k", 0o640), ("a", 0o604), ("d", 0o660), ("sq", 0o644)] {
            put(name, mode);
        }
        assert_eq!(lines(), [3, 10, 13, 15, 17], "those for anyone are good, the secret ones too open");
        assert!(load(&file).unwrap_err().to_string().contains("run `chmod 600 /"));
        for (name, mode) in [("hs", 0o600), ("k", 0o600), ("a", 0o600), ("d", 0o600), ("sq", 0o755)] {
            put(name, mode);
        }
        let desired = load(&file).unwrap();
        let path = dir.path().canonicalize().unwrap().join("hs");
        assert_eq!(desired.proxy.jwt[0].source, KeySource::File { kid: None, alg: Algorithm::HS256, path });
    }

    #[test]
    fn a_file_that_is_none_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        let says = |file: &Path, part: &str| {
            let rejected = load(file).unwrap_err();
            assert!(rejected.to_string().contains(part) && rejected.summary().contains(part), "{rejected}");
        };
        says(&file, "no such file");
        says(dir.path(), "a directory");
        says(Path::new("/dev/zero"), "not a regular file");
        fs::write(&file, b"a = 1\nb = \"\xff\"\n").unwrap();
        says(&file, "line 2 is not UTF-8");
        fs::File::create(&file).unwrap().set_len(MAX_FILE + 1).unwrap();
        says(&file, "larger than 16 MiB");
    }

    #[test]
    fn paths_start_at_the_directory_of_the_name_not_of_a_symlinks_target() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("data")).unwrap();
        fs::write(root.join("data/t.toml"), "").unwrap();
        std::os::unix::fs::symlink("data/t.toml", root.join("t.toml")).unwrap();
        assert_eq!(load(&root.join("t.toml")).unwrap().state_dir, root.join("state"));
        assert_eq!(load(&root.join("data/t.toml")).unwrap().state_dir, root.join("data/state"));
    }
}
