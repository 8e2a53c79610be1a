//! What `[admin]` means to those who listen: address, key, names, rate. The key as it last was good.

use std::{
    fs,
    io::{self, Read as _},
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{desired::Admin, secret::Secret};

/// What the admin API on TCP is served by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who shows it gets in.
    pub key: Secret,
    /// Further names by which a loopback address may be asked.
    pub hosts: Vec<String>,
    /// Nanoseconds between two requests of one address; 0: no limit.
    pub interval_ns: u64,
    /// Requests at once on top of that.
    pub burst: u32,
}

/// The key file, looked at again and again.
#[derive(Debug, Default)]
pub struct KeyFile {
    path: PathBuf,
    good: Option<Secret>,
}

/// Shortest key, bytes of its file: as for HS256 (RFC 7518, 3.2).
const SHORTEST: usize = 32;
/// Longest file that is read.
const LONGEST: u64 = 4_096;

impl KeyFile {
    /// What `admin` means now: none without it, or while there was no good key yet; and what is wrong with the key file.
    pub fn look(&mut self, admin: Option<&Admin>) -> (Option<Arc<Settings>>, Option<String>) {
        let Some(admin) = admin else {
            *self = Self::default();
            return (None, None);
        };
        if self.path != admin.key_file {
            *self = Self { path: admin.key_file.clone(), good: None };
        }
        let trouble = match read(&self.path) {
            Ok(key) => {
                self.good = Some(key);
                None
            }
            Err(why) => {
                let instead = if self.good.is_some() { "the key of before stays in force" } else { "nobody is let in by TCP" };
                Some(format!("[admin] key_file: {} {why}; {instead}", self.path.display()))
            }
        };
        let settings = self.good.clone().map(|key| {
            let interval_ns = admin.rate.map_or(0, |rate| rate.interval_ns());
            Arc::new(Settings { listen: admin.listen, key, hosts: admin.hosts.clone(), interval_ns, burst: admin.burst })
        });
        (settings, trouble)
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    let file = fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("is a secret that others than its owner may use (mode {mode:04o}): run `chmod 600 {}`", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    let make = || format!("make one: (umask 077; openssl rand -base64 48 > {})", path.display());
    if bytes.len() < SHORTEST {
        return Err(format!("holds {} bytes, a key needs {SHORTEST}: {}", bytes.len(), make()));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() as u64 > LONGEST || !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(format!("holds what no header carries: a key is one line of at most {LONGEST} visible characters; {}", make()));
    }
    Ok(Secret::new(bytes))
}

#[cfg(test)]
impl Settings {
    pub(super) fn for_tests() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            key: Secret::new("0123456789abcdef0123456789abcdef"),
            hosts: Vec::new(),
            interval_ns: 0,
            burst: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_that_is_spoiled_leaves_the_one_before_in_force_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        let put = |text: &[u8], mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let admin = Admin { listen: ([127, 0, 0, 1], 0).into(), key_file: path.clone(), hosts: Vec::new(), rate: None, burst: 0 };
        let mut file = KeyFile::default();
        let (none, trouble) = file.look(Some(&admin));
        assert!(none.is_none() && trouble.unwrap().contains("nobody is let in"));
        put(b"0123456789abcdef0123456789abcdef\n", 0o600);
        let (first, trouble) = file.look(Some(&admin));
        assert_eq!((first.as_ref().unwrap().key.expose(), trouble), (&b"0123456789abcdef0123456789abcdef"[..], None));
        for (text, mode, says) in [
            (&b"short"[..], 0o600, "holds 5 bytes"),
            (b"0123456789abcdef0123456789abcdeX\n", 0o640, "chmod 600"),
            (b"0123456789abcdef\n0123456789abcdef\n", 0o600, "no header"),
            (&[0xff; 40], 0o600, "no header"),
        ] {
            put(text, mode);
            let (settings, trouble) = file.look(Some(&admin));
            let trouble = trouble.unwrap();
            assert_eq!(settings, first, "{says}");
            assert!(trouble.contains(says) && trouble.contains("of before stays"), "{trouble}");
        }
        put(b"another-key-of-0123456789abcdef-bytes", 0o600);
        assert_eq!(file.look(Some(&admin)).0.unwrap().key.expose(), b"another-key-of-0123456789abcdef-bytes");
        assert_eq!(file.look(None), (None, None));
    }
}
