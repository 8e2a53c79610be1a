//! The files that a desired state names: there, readable, and the secret ones readable by nobody else.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::problem::{Finding, Span};

/// What a named file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Anyone may read it: a certificate, a public key.
    Public,
    /// Only its owner may read it: a private key, a webhook.
    Secret,
    /// As [`Use::Secret`], and its strength is its length: an HMAC secret, the admin key.
    Random,
    /// As [`Use::Public`], or a directory of such.
    Keys,
    /// It is run.
    Program,
}

/// A file and the key that names it.
#[derive(Debug)]
pub(super) struct NamedFile {
    pub(super) path: PathBuf,
    pub(super) key: &'static str,
    pub(super) purpose: Use,
    pub(super) span: Span,
}

/// The shortest HMAC secret that RFC 7518 (3.2) allows for HS256, bytes; short ones can be found by trying.
const MIN_RANDOM: u64 = 32;

/// What is wrong with `files` on this host, now.
pub(super) fn check(files: &[NamedFile]) -> Vec<Finding> {
    files.iter().filter_map(check_one).collect()
}

fn check_one(file: &NamedFile) -> Option<Finding> {
    let (message, help) = fault(&file.path, file.purpose)?;
    Some(Finding::new(file.span.clone(), format!("`{}`: {} {message}", file.key, file.path.display()), help))
}

/// Why a file cannot serve, and what to do.
fn fault(path: &Path, purpose: Use) -> Option<(String, String)> {
    let shown = path.display();
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Some(("does not exist".into(), create(path, purpose))),
        _ => Some((
            format!("cannot be read: {error}"),
            format!("make it readable for the user that runs the agent: `chown` or `chmod u+r {shown}`"),
        )),
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return unreadable(error),
    };
    let mode = meta.permissions().mode() & 0o777;
    match purpose {
        Use::Keys if meta.is_dir() => fs::read_dir(path).err().and_then(unreadable),
        _ if !meta.is_file() => Some(("is not a regular file".into(), "name a regular file".into())),
        Use::Program if mode & 0o111 == 0 => Some(("is not executable".into(), format!("run `chmod 755 {shown}`"))),
        Use::Program => None,
        // Group and others get nothing at all: who may write a secret may choose it.
        Use::Secret | Use::Random if mode & 0o077 != 0 => {
            Some((format!("is a secret that others than its owner may use (mode {mode:04o})"), format!("run `chmod 600 {shown}`")))
        }
        Use::Random if meta.len() < MIN_RANDOM => {
            Some((format!("holds {} bytes, a secret needs {MIN_RANDOM}", meta.len()), format!("make one: {}", openssl(path))))
        }
        Use::Public | Use::Keys | Use::Secret | Use::Random => fs::File::open(path).err().and_then(unreadable),
    }
}

fn create(path: &Path, purpose: Use) -> String {
    match purpose {
        Use::Random => format!("correct the path, or make one: {}", openssl(path)),
        Use::Secret => "correct the path, or create it with mode 600".into(),
        Use::Public | Use::Keys | Use::Program => "correct the path, or create it".into(),
    }
}

fn openssl(path: &Path) -> String {
    format!("(umask 077; openssl rand -base64 48 > {})", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, mode: u32) -> PathBuf {
        let path = dir.path().join(format!("f{mode:o}"));
        fs::write(&path, "a secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_secret_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o400] {
            assert_eq!(fault(&file(&dir, mode), Use::Secret), None, "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o660, 0o644, 0o620] {
            let (message, help) = fault(&file(&dir, mode), Use::Secret).unwrap();
            assert!(message.contains(&format!("{mode:04o}")) && help.contains("chmod 600 /"), "{message} {help}");
        }
        assert_eq!(fault(&file(&dir, 0o644), Use::Public), None);
    }

    #[test]
    fn a_secret_that_could_be_guessed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, 0o600);
        let (message, help) = fault(&path, Use::Random).unwrap();
        assert!(message.contains("holds 8 bytes") && help.contains("openssl rand"), "{message} {help}");
        fs::write(&path, [7; 32]).unwrap();
        assert_eq!(fault(&path, Use::Random), None);
    }

    #[test]
    fn a_file_that_is_missing_or_no_file_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(fault(&dir.path().join("none"), Use::Secret).unwrap().0.contains("does not exist"));
        assert!(fault(dir.path(), Use::Public).unwrap().0.contains("not a regular file"));
        assert!(fault(&file(&dir, 0o600), Use::Program).unwrap().1.contains("chmod 755"));
    }
}
