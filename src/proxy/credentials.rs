//! The files behind the proxy's settings, on the agent's side: read where tenants.toml names them, made once where it does not.

use std::{
    borrow::Cow,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use super::{
    front::{Addresses, Front, Source, Trusted},
    settings::{KeyForm, TokenKey},
    token::{self, MintError},
};
use crate::{
    acme,
    desired::{Algorithm, Desired, JwtKey, KeySource, Proxy, TenantId},
    digest::hex,
    secret::Secret,
};

/// Validity of a self-signed certificate: browsers refuse more than 398 days.
const VALID: Duration = Duration::from_secs(397 * 86_400);
/// It is made anew when less than this is left.
const RENEW: Duration = Duration::from_secs(30 * 86_400);

/// Longest file that is read, bytes. A long chain of certificates has some 20 KiB.
const MAX_FILE: u64 = 1 << 20;

/// Whose the proxy becomes where the agent is root's: (uid, gid) of `nobody` on every Linux. It needs no file, so it needs no user of its own.
pub(super) const NOBODY: (u32, u32) = (65_534, 65_534);

/// A credential that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file that cannot be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// "read", "write" …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A secret that is none.
    #[error("{} can be read by every user of this host: chmod o= {}", path.display(), path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// Somebody's disk image, say.
    #[error("{} is longer than 1 MiB, which no key or certificate is", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// What was read cannot be served with.
    #[error("{0}")]
    Unusable(String),
    /// A file of ours that was cut or edited.
    #[error("{} should hold 32 bytes and holds {length}; remove it to have a new one made", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        length: usize,
    },
    /// No token.
    #[error(transparent)]
    Token(#[from] MintError),
    /// No random numbers.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// No certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CredentialsError {
    move |source| CredentialsError::File { doing, path: path.to_owned(), source }
}

/// What tenants.toml says of the way to the proxy. A browser that is told to insist on HTTPS would never again let its user pass by a
/// certificate that nobody vouches for.
pub(super) fn front(proxy: &Proxy, source: Source) -> Front {
    Front {
        trusted: Trusted::new(proxy.trusted_proxies.clone()),
        proxy_protocol: proxy.proxy_protocol,
        hsts: proxy.hsts.filter(|_| source != Source::SelfSigned),
        public: proxy.public_url.as_ref().and_then(|url| Some(url.parse::<http::Uri>().ok()?.authority()?.as_str().to_owned())),
        source,
        challenges: Vec::new(),
        addresses: Some(Addresses::of(proxy)),
    }
}

/// The certificate chain and its key: those that `desired` names, those that were asked for once there are any, or the self-signed ones of this
/// host.
///
/// # Errors
/// A file that is missing, or a key that is open to all.
pub(super) fn certificate_files(desired: &Desired) -> Result<(Vec<u8>, Secret, Source), CredentialsError> {
    if let Some(tls) = &desired.proxy.tls {
        return Ok((read(&tls.cert)?, read_secret(&tls.key)?, Source::Files));
    }
    if let Some(acme) = &desired.proxy.acme {
        let dir = desired.state_dir.join("acme");
        if let Some((cert, key)) = acme::Files::new(&desired.state_dir, acme).certificate().map_err(file("read", &dir))? {
            return Ok((cert, key, Source::Acme));
        }
    }
    let (cert, key) = self_signed(&desired.state_dir)?;
    Ok((cert, key, Source::SelfSigned))
}

/// A token for `id`, valid from `now` (seconds since 1970) for `ttl` seconds.
///
/// # Errors
/// No key that signs, or one that cannot be read.
pub fn mint(desired: &Desired, id: &TenantId, now: u64, ttl: u64) -> Result<String, CredentialsError> {
    let tier = desired.tenants.get(id).map(|tenant| tenant.tier.as_str());
    Ok(token::mint(&signing_keys(desired)?, id, tier, now, ttl)?)
}

/// Where the self-signed certificate lies: `curl --cacert`.
pub fn certificate_path(state_dir: &Path) -> PathBuf {
    state_dir.join("tls").join("cert.pem")
}

/// Where the keys that verify tokens come from, each with the issuer and audience that its tokens must name: as tenants.toml says, or the secret that
/// this host keeps.
pub(super) fn key_sources(desired: &Desired) -> Cow<'_, [JwtKey]> {
    if !desired.proxy.jwt.is_empty() {
        return Cow::Borrowed(&desired.proxy.jwt);
    }
    let source = KeySource::File { kid: None, alg: Algorithm::HS256, path: jwt_secret_path(&desired.state_dir) };
    Cow::Owned(vec![JwtKey { source, iss: None, aud: None }])
}

/// Makes the secret that this host keeps, where it has none.
///
/// # Errors
/// The file cannot be made.
pub(super) fn make_jwt_secret(state_dir: &Path) -> Result<(), CredentialsError> {
    let path = jwt_secret_path(state_dir);
    if path.exists() { Ok(()) } else { make(&path, format!("{}\n", hex(&random()?)).as_bytes()) }
}

/// The text of a key that is a file of its own. A public key is no secret.
pub(super) fn read_key(alg: Algorithm, path: &Path) -> Result<Secret, CredentialsError> {
    if alg == Algorithm::HS256 { read_secret(path) } else { read(path).map(Secret::new) }
}

/// The keys of this host that sign as well.
fn signing_keys(desired: &Desired) -> Result<Vec<TokenKey>, CredentialsError> {
    if desired.proxy.jwt.is_empty() {
        make_jwt_secret(&desired.state_dir)?;
    }
    let sources = key_sources(desired);
    let keys = sources.iter().filter_map(|key| match &key.source {
        KeySource::File { kid, alg: Algorithm::HS256, path } => Some((kid.clone(), path, key)),
        _ => None,
    });
    let read = keys.map(|(kid, path, key)| {
        let (iss, aud) = (key.iss.clone(), key.aud.clone());
        Ok(TokenKey { kid, alg: Algorithm::HS256, secret: read_secret(path)?, form: KeyForm::File, iss, aud })
    });
    read.collect()
}

/// The HS256 secret of a host whose tenants.toml names none: `<state_dir>/jwt.key`, mode 0600, made once: 64 hex digits and a newline.
/// As in every `secret_file`, the secret is the file's bytes without one newline at their end.
///
/// # Errors
/// The file cannot be read or made.
pub fn jwt_secret(state_dir: &Path) -> Result<Secret, CredentialsError> {
    make_jwt_secret(state_dir)?;
    read_secret(&jwt_secret_path(state_dir))
}

fn jwt_secret_path(state_dir: &Path) -> PathBuf {
    state_dir.join("jwt.key")
}

/// The secret behind every instance's key: `<state_dir>/instance.key`, mode 0600, made once, 32 bytes. It must outlive the agent, which
/// proves by it which running instances are its own.
///
/// # Errors
/// The file cannot be read or made, or is damaged.
pub fn instance_secret(state_dir: &Path) -> Result<Secret, CredentialsError> {
    let path = state_dir.join("instance.key");
    if !path.exists() {
        make(&path, &random()?)?;
    }
    check_private(&path)?;
    let bytes = read(&path)?;
    if bytes.len() == 32 { Ok(Secret::new(bytes)) } else { Err(CredentialsError::Damaged { path, length: bytes.len() }) }
}

/// A certificate for loopback and its key, PEM: `<state_dir>/tls/cert.pem` and `key.pem`, made once and again a month before it expires.
///
/// # Errors
/// The files cannot be read or made.
pub fn self_signed(state_dir: &Path) -> Result<(Vec<u8>, Secret), CredentialsError> {
    let dir = state_dir.join("tls");
    let (cert_path, key_path) = (certificate_path(state_dir), dir.join("key.pem"));
    let age = fs::metadata(&cert_path).and_then(|meta| meta.modified()).ok().map(|made| made.elapsed().unwrap_or_default());
    if age.is_none_or(|age| age > VALID - RENEW) || !key_path.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(file("make", &dir))?;
        let (cert, key) = certificate(SystemTime::now())?;
        make(&key_path, key.as_bytes())?;
        make(&cert_path, cert.as_bytes())?;
    }
    Ok((read(&cert_path)?, read_secret(&key_path)?))
}

fn certificate(now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(["localhost", "127.0.0.1", "::1"].map(str::to_owned))?;
    params.distinguished_name.push(DnType::CommonName, "sq-agent on this host");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // A day back, for clocks that are behind.
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970.saturating_sub(Duration::from_secs(86_400));
    params.not_after = epoch + since_1970 + VALID;
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn random() -> Result<[u8; 32], getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Writes `bytes` for this user alone, whole or not at all: by rename.
pub(crate) fn make(path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", &new)(error)),
        _ => {}
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(file("make", dir))?;
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(file("make", &new))?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(file("write", &new))?;
    fs::rename(&new, path).map_err(file("write", path))
}

/// The bytes of a file that somebody named.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let mut bytes = Vec::new();
    let open = fs::File::open(path).map_err(file("read", path))?;
    open.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(file("read", path))?;
    if bytes.len() as u64 > MAX_FILE { Err(CredentialsError::TooLong { path: path.to_owned() }) } else { Ok(bytes) }
}

/// A secret file's bytes, without one newline at their end.
pub(crate) fn read_secret(path: &Path) -> Result<Secret, CredentialsError> {
    check_private(path)?;
    let mut bytes = read(path)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Secret::new(bytes))
}

fn check_private(path: &Path) -> Result<(), CredentialsError> {
    let mode = fs::metadata(path).map_err(file("read", path))?.mode();
    if mode & 0o007 == 0 { Ok(()) } else { Err(CredentialsError::Open { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::proxy::tls::server_config;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn secrets_are_made_once_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (jwt, instance) = (jwt_secret(dir.path()).unwrap(), instance_secret(dir.path()).unwrap());
        assert_eq!((jwt.expose().len(), instance.expose().len()), (64, 32));
        assert!(jwt == jwt_secret(dir.path()).unwrap() && instance == instance_secret(dir.path()).unwrap());
        assert_eq!((mode(&dir.path().join("jwt.key")), mode(&dir.path().join("instance.key"))), (0o600, 0o600));
    }

    #[test]
    fn the_certificate_is_one_to_serve_with_and_made_anew_before_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = self_signed(dir.path()).unwrap();
        assert!(server_config(&cert, key.expose(), &[]).is_ok());
        assert_eq!(self_signed(dir.path()).unwrap().0, cert);
        assert_eq!(mode(&dir.path().join("tls/key.pem")), 0o600);
        let old = fs::File::options().append(true).open(dir.path().join("tls/cert.pem")).unwrap();
        old.set_modified(SystemTime::now() - VALID + RENEW - Duration::from_secs(60)).unwrap();
        let (renewed, key) = self_signed(dir.path()).unwrap();
        assert_ne!(renewed, cert);
        assert!(server_config(&renewed, key.expose(), &[]).is_ok());
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        jwt_secret(dir.path()).unwrap();
        let path = dir.path().join("jwt.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(jwt_secret(dir.path()), Err(CredentialsError::Open { .. })));
    }

    #[test]
    fn a_cut_instance_secret_is_an_error_not_another_secret() {
        let dir = tempfile::tempdir().unwrap();
        instance_secret(dir.path()).unwrap();
        let path = dir.path().join("instance.key");
        fs::write(&path, b"short").unwrap();
        assert!(matches!(instance_secret(dir.path()), Err(CredentialsError::Damaged { length: 5, .. })));
    }
}
