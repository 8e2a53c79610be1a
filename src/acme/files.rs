//! What is kept between two certificates: `<state_dir>/acme/SERVER/account.json` and `certificate.pem`, for the agent alone.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use instant_acme::AccountCredentials;

use crate::{
    certificate::Facts,
    desired::{self, Acme},
    proxy::credentials::{self, CredentialsError},
    secret::Secret,
};

/// The directory of one server: whoever tries out another one first goes on with nothing of that.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Where what comes from the server of `acme` is kept.
    pub fn new(state_dir: &Path, acme: &Acme) -> Self {
        let host = acme.directory.parse::<http::Uri>().ok().and_then(|url| url.host().map(str::to_ascii_lowercase)).unwrap_or_default();
        let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
        let hash = desired::hash(&acme.directory);
        Self { dir: state_dir.join("acme").join(format!("{host}-{}", &hash[..8])) }
    }

    fn account_path(&self) -> PathBuf {
        self.dir.join("account.json")
    }

    fn certificate_path(&self) -> PathBuf {
        self.dir.join("certificate.pem")
    }

    /// The account that was made there, if one was.
    pub(super) fn account(&self) -> Option<AccountCredentials> {
        let bytes = fs::read(self.account_path()).ok()?;
        serde_json::from_slice(&bytes).inspect_err(|_| tracing::warn!("the kept ACME account cannot be read; another one is made")).ok()
    }

    pub(super) fn keep_account(&self, account: &AccountCredentials) -> Result<(), CredentialsError> {
        let bytes = serde_json::to_vec(account).unwrap_or_default();
        self.keep(&self.account_path(), &bytes)
    }

    fn keep(&self, path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
        // Where that fails, so does what follows, and says why.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        credentials::make(path, bytes)
    }

    /// The server knows it no more.
    pub(super) fn forget_account(&self) {
        // Where it cannot be removed, the next try says so once more.
        let _ = fs::remove_file(self.account_path());
    }

    /// Chain and key, where there are any.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn certificate(&self) -> io::Result<Option<(Vec<u8>, Secret)>> {
        match fs::read(self.certificate_path()) {
            // Both stand in one file, so that no moment has one of them without the other.
            Ok(both) => Ok(Some((both.clone(), Secret::new(both)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the certificate says of itself.
    pub(super) fn facts(&self) -> Option<Facts> {
        self.certificate().ok().flatten().and_then(|(chain, _)| Facts::of(&chain))
    }

    pub(super) fn keep_certificate(&self, chain_pem: &str, key_pem: &str) -> Result<(), CredentialsError> {
        let both = format!("{}\n{}", key_pem.trim_end(), chain_pem);
        self.keep(&self.certificate_path(), both.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::desired::Challenge;

    fn acme(directory: &str) -> Acme {
        Acme {
            domains: vec!["a.example".into()],
            contact: None,
            directory: directory.into(),
            challenge: Challenge::TlsAlpn01,
            ca_file: None,
            eab: None,
        }
    }

    #[test]
    fn certificate_and_key_are_kept_together_for_the_agent_alone() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::new(state.path(), &acme("https://acme.example/directory"));
        assert!(files.certificate().unwrap().is_none() && files.facts().is_none());
        let pair = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        files.keep_certificate(&pair.cert.pem(), &pair.signing_key.serialize_pem()).unwrap();
        let (chain, key) = files.certificate().unwrap().unwrap();
        assert!(crate::proxy::fits(&chain, &key).is_ok());
        assert_eq!(files.facts().unwrap().names, ["a.example"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.certificate_path()), mode(&files.dir)), (0o600, 0o700));
    }

    #[test]
    fn each_server_has_files_of_its_own() {
        let dir = |directory: &str| Files::new(Path::new("/s"), &acme(directory)).dir;
        let all = [dir("https://acme.example/directory"), dir("https://acme.example/staging"), dir("https://[::1]:14000/dir")];
        assert!(all[0] != all[1] && all[0].starts_with("/s/acme"), "{all:?}");
        assert!(all[2].strip_prefix("/s/acme").unwrap().components().count() == 1, "{all:?}");
    }
}
