//! What the proxy is to serve by, each part as it last was good: a file that is being replaced or was spoiled closes nobody's way in.
//!
//! A look reads every file that tenants.toml names, whether or not anything says that it changed, so that no lost event keeps an old key in force. The
//! loop looks at every tick, and at once when the watch has a notice.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    auth::Keys,
    credentials::{self, CredentialsError, NOBODY},
    fits,
    front::Source,
    jwks, key_sets,
    settings::{KeyForm, Settings, TokenKey},
};
use crate::{
    desired::{Desired, KeySource, Proxy},
    digest::sha256,
    secret::Secret,
};

/// Whoever guesses the secret of webhooks can have the repository looked at, no more; it is no shorter than others all the same.
const MIN_WEBHOOK_SECRET: usize = 32;

/// See the file's description.
pub struct Ring {
    instance_secret: Secret,
    certificate: Part<Certificate>,
    keys: BTreeMap<KeySource, Part<Vec<TokenKey>>>,
    /// The secret of webhooks, and the file that it is from.
    webhook: Option<(PathBuf, Part<Secret>)>,
}

/// What a look found.
pub struct Look {
    /// To serve by; the proxy's side is set by who starts it.
    pub settings: Settings,
    /// What is no good, a sentence each: place, cause, and what is in force instead.
    pub troubles: Vec<String>,
}

/// Chain and key, and where they are from.
type Certificate = (Vec<u8>, Secret, Source);

/// A file or two.
struct Part<T> {
    /// SHA-256 of what was last judged, so that the same is not judged at every look.
    judged: Option<[u8; 32]>,
    good: Option<T>,
    trouble: Option<String>,
}

impl<T> Part<T> {
    const NONE: Self = Self { judged: None, good: None, trouble: None };

    /// Takes in what was read of it now.
    fn see(&mut self, digest: [u8; 32], judge: impl FnOnce() -> Result<T, String>) {
        if self.judged == Some(digest) {
            return;
        }
        self.judged = Some(digest);
        match judge() {
            Ok(good) => (self.good, self.trouble) = (Some(good), None),
            Err(why) => self.trouble = Some(why),
        }
    }

    /// It cannot be read now.
    fn lost(&mut self, why: &CredentialsError) {
        (self.judged, self.trouble) = (None, Some(why.to_string()));
    }
}

impl Ring {
    /// The first look.
    ///
    /// # Errors
    /// There is no certificate to serve with. A bad key is no error: its tokens are refused, and all others are served.
    pub fn new(desired: &Desired) -> Result<(Self, Look), CredentialsError> {
        let instance_secret = credentials::instance_secret(&desired.state_dir)?;
        let mut ring = Self { instance_secret, certificate: Part::NONE, keys: BTreeMap::new(), webhook: None };
        let look = ring.look(desired);
        match ring.certificate.good {
            Some(_) => Ok((ring, look)),
            None => Err(CredentialsError::Unusable(of_certificate(desired, &ring.certificate.trouble.unwrap_or_default()))),
        }
    }

    /// What of the files that `desired` names is no good; nothing is made and nothing kept.
    pub fn troubles(desired: &Desired) -> Vec<String> {
        let mut troubles = Vec::new();
        if desired.proxy.tls.is_some() {
            let mut part = Part::NONE;
            look_at_certificate(&mut part, desired);
            troubles.extend(part.trouble.map(|why| of_certificate(desired, &why)));
        }
        for key in &desired.proxy.jwt {
            let mut part = Part::NONE;
            look_at_keys(&mut part, &key.source, &desired.state_dir);
            troubles.extend(part.trouble.map(|why| format!("[[proxy.jwt]] {why}")));
        }
        if let Some(path) = webhook_file(desired) {
            let mut part = Part::NONE;
            look_at_webhook(&mut part, path);
            troubles.extend(part.trouble.map(|why| format!("[gitops] {why}")));
        }
        troubles
    }

    /// Reads everything anew.
    pub fn look(&mut self, desired: &Desired) -> Look {
        let mut troubles = Vec::new();
        look_at_certificate(&mut self.certificate, desired);
        let trouble = self.certificate.trouble.as_ref();
        troubles.extend(trouble.map(|why| format!("{}; the certificate of before stays in force", of_certificate(desired, why))));
        if desired.proxy.jwt.is_empty() {
            troubles.extend(credentials::make_jwt_secret(&desired.state_dir).err().map(|error| error.to_string()));
        }
        let sources = credentials::key_sources(desired);
        let mut before = std::mem::take(&mut self.keys);
        let mut token_keys = Vec::new();
        for key in sources.iter() {
            let part = self.keys.entry(key.source.clone()).or_insert_with(|| before.remove(&key.source).unwrap_or(Part::NONE));
            look_at_keys(part, &key.source, &desired.state_dir);
            for good in part.good.iter().flatten() {
                token_keys.push(TokenKey { iss: key.iss.clone(), aud: key.aud.clone(), ..good.clone() });
            }
            let stays = if part.good.is_some() { "its keys of before stay in force" } else { "none of its keys is in force" };
            troubles.extend(part.trouble.as_ref().map(|why| format!("[[proxy.jwt]] {why}; {stays}")));
        }
        let webhook_secret = self.webhook_secret(desired, &mut troubles);
        let good = self.certificate.good.clone();
        let (tls_cert_pem, tls_key_pem, source) = good.unwrap_or_else(|| (Vec::new(), Secret::new([]), Source::default()));
        let settings = Settings {
            tls_cert_pem,
            tls_key_pem,
            token_keys,
            keys_renew: urls(desired).next().is_some(),
            instance_secret: self.instance_secret.clone(),
            side: 0,
            webhook_secret,
            run_as: rustix::process::geteuid().is_root().then_some(NOBODY),
            front: credentials::front(&desired.proxy, source),
        };
        Look { settings, troubles }
    }

    /// Where tenants.toml names a file for it, its secret as it last was good.
    fn webhook_secret(&mut self, desired: &Desired, troubles: &mut Vec<String>) -> Option<Secret> {
        let Some(path) = webhook_file(desired) else {
            self.webhook = None;
            return None;
        };
        let before = self.webhook.take().filter(|(before, _)| before == path);
        let (_, part) = self.webhook.insert(before.unwrap_or_else(|| (path.to_owned(), Part::NONE)));
        look_at_webhook(part, path);
        let stays = if part.good.is_some() { "the secret of before stays in force" } else { "no webhook is taken" };
        troubles.extend(part.trouble.as_ref().map(|why| format!("[gitops] {why}; {stays}")));
        part.good.clone()
    }
}

/// `[gitops] webhook_secret_file`.
fn webhook_file(desired: &Desired) -> Option<&Path> {
    desired.gitops.as_ref()?.webhook_secret_file.as_deref()
}

fn look_at_webhook(part: &mut Part<Secret>, path: &Path) {
    match credentials::read_secret(path) {
        Ok(secret) => part.see(sha256(secret.expose()), || match secret.expose().len() {
            0..MIN_WEBHOOK_SECRET => Err(format!(
                "{}: it has {} bytes, at least {MIN_WEBHOOK_SECRET} are needed; make one: (umask 077; openssl rand -hex 32 > FILE)",
                path.display(),
                secret.expose().len()
            )),
            _ => Ok(secret.clone()),
        }),
        Err(error) => part.lost(&error),
    }
}

fn look_at_certificate(part: &mut Part<Certificate>, desired: &Desired) {
    match credentials::certificate_files(desired) {
        Ok((cert, key, source)) => {
            let digest = sha256(&[&sha256(&cert)[..], &sha256(key.expose())].concat());
            part.see(digest, || fits(&cert, &key).map(|()| (cert, key, source)));
        }
        Err(error) => part.lost(&error),
    }
}

/// What is wrong with the certificate or its key, where, and what to do.
fn of_certificate(desired: &Desired, why: &str) -> String {
    match &desired.proxy {
        Proxy { tls: Some(tls), .. } => {
            let (cert, key) = (tls.cert.display(), tls.key.display());
            format!("[proxy.tls] {cert}, {key}: {why}; put a pair that belongs together there, it is read at once")
        }
        Proxy { acme: Some(_), .. } => {
            format!("[proxy.acme]: {why}; remove the directory acme/ in the state directory to have one asked for")
        }
        _ => format!("the self-signed certificate: {why}; remove the directory tls/ in the state directory to have one made"),
    }
}

fn look_at_keys(part: &mut Part<Vec<TokenKey>>, source: &KeySource, state_dir: &Path) {
    let (path, read) = match source {
        KeySource::File { alg, path, .. } => (path.clone(), credentials::read_key(*alg, path)),
        KeySource::JwksFile(path) => (path.clone(), credentials::read(path).map(Secret::new)),
        KeySource::JwksUrl(url) => {
            let path = key_sets::path(state_dir, url);
            // Nothing was fetched yet: whoever fetches says why.
            if !path.exists() {
                return;
            }
            let read = credentials::read(&path).map(Secret::new);
            (path, read)
        }
    };
    let at = |why: String| format!("{}: {why}", path.display());
    match read {
        Ok(text) => part.see(sha256(text.expose()), || keys_of(source, &text).map_err(at)),
        Err(error) => part.lost(&error),
    }
}

fn keys_of(source: &KeySource, text: &Secret) -> Result<Vec<TokenKey>, String> {
    match source {
        KeySource::File { kid, alg, .. } => {
            let key = TokenKey { kid: kid.clone(), alg: *alg, secret: text.clone(), form: KeyForm::File, iss: None, aud: None };
            Keys::new(std::slice::from_ref(&key)).map_err(|bad| bad.to_string())?;
            Ok(vec![key])
        }
        KeySource::JwksFile(_) | KeySource::JwksUrl(_) => jwks::parse(text.expose()).map_err(|bad| bad.to_string()),
    }
}

/// The files behind `desired.proxy`, which are worth a look when they change.
pub(crate) fn files(desired: &Desired) -> Vec<PathBuf> {
    let keys = desired.proxy.jwt.iter().filter_map(|key| match &key.source {
        KeySource::File { path, .. } | KeySource::JwksFile(path) => Some(path.clone()),
        KeySource::JwksUrl(_) => None,
    });
    let tls = desired.proxy.tls.iter().flat_map(|tls| [tls.cert.clone(), tls.key.clone()]);
    keys.chain(tls).chain(webhook_file(desired).map(Path::to_owned)).collect()
}

/// The addresses from which keys are fetched.
pub(crate) fn urls(desired: &Desired) -> impl Iterator<Item = &str> {
    desired.proxy.jwt.iter().filter_map(|key| if let KeySource::JwksUrl(url) = &key.source { Some(url.as_str()) } else { None })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::{desired, proxy::auth::keys_for_tests::Signer};

    struct Bench {
        dir: TempDir,
        desired: Desired,
    }

    impl Bench {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let desired = desired::parse(text, &dir.path().join("tenants.toml")).unwrap();
            Self { dir, desired }
        }

        fn put(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::write(self.dir.path().join(name), text).unwrap();
            fs::set_permissions(self.dir.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }

        fn certificate(&self) -> String {
            let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            self.put("cert.pem", pair.cert.pem());
            self.put("key.pem", pair.signing_key.serialize_pem());
            pair.cert.pem()
        }
    }

    fn kids(look: &Look) -> Vec<&str> {
        look.settings.token_keys.iter().map(|key| key.kid.as_deref().unwrap_or("-")).collect()
    }

    fn jwks(kids: &[&str]) -> String {
        let key = |kid: &&str| {
            let mut jwk = Signer::es256().jwk();
            jwk["kid"] = (*kid).into();
            jwk
        };
        json!({ "keys": kids.iter().map(key).collect::<Vec<_>>() }).to_string()
    }

    #[test]
    fn a_host_that_names_nothing_makes_its_own() {
        let bench = Bench::new("");
        let (mut ring, look) = Ring::new(&bench.desired).unwrap();
        assert_eq!((kids(&look), look.troubles.len(), look.settings.keys_renew), (vec!["-"], 0, false));
        assert_eq!(ring.look(&bench.desired).settings, look.settings, "nothing changed");
        fs::set_permissions(bench.desired.state_dir.join("jwt.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let open = ring.look(&bench.desired);
        assert_eq!(open.settings, look.settings, "its own key stays in force as any other");
        assert!(open.troubles.len() == 1 && open.troubles[0].contains("jwt.key can be read by every user"), "{:?}", open.troubles);
    }

    #[test]
    fn a_certificate_that_is_half_replaced_or_spoiled_leaves_the_one_before_in_force() {
        let bench = Bench::new("[proxy.tls]\ncert = 'cert.pem'\nkey = 'key.pem'\n");
        bench.put("cert.pem", "nonsense");
        bench.put("key.pem", "nonsense");
        let error = Ring::new(&bench.desired).err().unwrap().to_string();
        assert!(error.contains("no certificate in PEM form"), "{error}");
        let first = bench.certificate();
        let (mut ring, look) = Ring::new(&bench.desired).unwrap();
        assert!(look.settings.tls_cert_pem == first.as_bytes() && look.troubles.is_empty());
        let key = fs::read(bench.dir.path().join("key.pem")).unwrap();
        let second = bench.certificate();
        let new_key = fs::read(bench.dir.path().join("key.pem")).unwrap();
        bench.put("key.pem", &key);
        for _ in 0..2 {
            let half = ring.look(&bench.desired);
            assert_eq!(half.settings.tls_cert_pem, first.as_bytes());
            assert!(
                half.troubles[0].contains("/cert.pem") && half.troubles[0].contains("certificate and key do not go together"),
                "{:?}",
                half.troubles
            );
            assert!(half.troubles[0].ends_with("the certificate of before stays in force"), "{:?}", half.troubles);
        }
        fs::remove_file(bench.dir.path().join("key.pem")).unwrap();
        let gone = ring.look(&bench.desired);
        assert!(gone.settings.tls_cert_pem == first.as_bytes() && gone.troubles[0].contains("key.pem"), "{:?}", gone.troubles);
        bench.put("key.pem", &new_key);
        let whole = ring.look(&bench.desired);
        assert!(whole.settings.tls_cert_pem == second.as_bytes() && whole.troubles.is_empty(), "{:?}", whole.troubles);
    }

    #[test]
    fn each_source_of_keys_goes_by_itself() {
        let bench = Bench::new(
            "[[proxy.jwt]]\nkid = 'own'\nalg = 'HS256'\nsecret_file = 'hs'\n\
             [[proxy.jwt]]\nkid = 'pem'\nalg = 'EdDSA'\nsecret_file = 'ed.pem'\niss = 'sso'\n\
             [[proxy.jwt]]\njwks_file = 'jwks.json'\naud = 'sq'\n",
        );
        bench.put("hs", [7; 32]);
        bench.put("ed.pem", Signer::eddsa().pem());
        bench.put("jwks.json", jwks(&["a", "b"]));
        let (mut ring, look) = Ring::new(&bench.desired).unwrap();
        assert_eq!((kids(&look), look.troubles.len()), (vec!["own", "pem", "a", "b"], 0));
        assert_eq!((look.settings.token_keys[1].iss.as_deref(), look.settings.token_keys[3].aud.as_deref()), (Some("sso"), Some("sq")));
        bench.put("jwks.json", "{\"keys\":");
        bench.put("ed.pem", Signer::es256().pem());
        bench.put("hs", [8; 32]);
        let spoiled = ring.look(&bench.desired);
        assert_eq!(kids(&spoiled), ["own", "pem", "a", "b"]);
        assert_eq!(spoiled.settings.token_keys[0].secret.expose(), [8; 32], "the good one is taken");
        assert_eq!(spoiled.settings.token_keys[1..], look.settings.token_keys[1..], "the bad ones are not");
        let said =
            |part: &str| spoiled.troubles.iter().any(|trouble| trouble.contains(part) && trouble.contains("of before stay in force"));
        assert!(
            spoiled.troubles.len() == 2 && said("/jwks.json: it is no JWKS") && said("/ed.pem: the token key pem"),
            "{:?}",
            spoiled.troubles
        );
        bench.put("jwks.json", jwks(&["b", "c"]));
        bench.put("ed.pem", Signer::eddsa().pem());
        let mended = ring.look(&bench.desired);
        assert_eq!((kids(&mended), mended.troubles.len()), (vec!["own", "pem", "b", "c"], 0));
    }

    #[test]
    fn a_bad_key_at_the_start_keeps_nobody_else_out() {
        let bench = Bench::new("[[proxy.jwt]]\njwks_file = 'none.json'\n[[proxy.jwt]]\nkid = 'own'\nalg = 'HS256'\nsecret_file = 'hs'\n");
        bench.put("hs", [7; 32]);
        let (_, look) = Ring::new(&bench.desired).unwrap();
        assert_eq!(kids(&look), ["own"]);
        assert!(
            look.troubles[0].contains("none.json") && look.troubles[0].ends_with("none of its keys is in force"),
            "{:?}",
            look.troubles
        );
    }

    #[test]
    fn a_check_names_every_file_that_is_no_good_and_makes_none() {
        let bench = Bench::new(
            "[proxy.tls]\ncert = 'cert.pem'\nkey = 'key.pem'\n[[proxy.jwt]]\njwks_file = 'j'\n[[proxy.jwt]]\njwks_url = 'https://x/j'\n",
        );
        bench.put("cert.pem", "nonsense");
        bench.put("key.pem", "nonsense");
        bench.put("j", "nonsense");
        let troubles = Ring::troubles(&bench.desired);
        assert!(
            troubles.len() == 2 && troubles[0].starts_with("[proxy.tls] /") && troubles[1].contains("/j: it is no JWKS"),
            "{troubles:?}"
        );
        bench.certificate();
        bench.put("j", jwks(&["a"]));
        assert_eq!(Ring::troubles(&bench.desired), Vec::<String>::new());
        assert_eq!(Ring::troubles(&Bench::new("").desired), Vec::<String>::new());
        assert!(!bench.desired.state_dir.exists());
    }

    #[test]
    fn the_secret_of_webhooks_is_taken_anew_where_it_is_good_and_stays_where_it_is_not() {
        let bench = Bench::new("[gitops]\nurl = '/srv/host.git'\nwebhook_secret_file = 'hook'\n");
        assert!(files(&bench.desired).iter().any(|file| file.ends_with("hook")), "it is watched");
        let secret = |look: &Look| look.settings.webhook_secret.as_ref().map(|secret| secret.expose().to_vec());
        let (mut ring, none) = Ring::new(&bench.desired).unwrap();
        assert!(secret(&none).is_none() && none.troubles[0].ends_with("no webhook is taken"), "{:?}", none.troubles);
        bench.put("hook", [b"a".repeat(32), b"\n".to_vec()].concat());
        let first = ring.look(&bench.desired);
        assert_eq!((secret(&first), first.troubles.len()), (Some(b"a".repeat(32)), 0));
        for (bad, said) in [("b".repeat(31), "it has 31 bytes"), (String::new(), "it has 0 bytes")] {
            bench.put("hook", bad);
            let short = ring.look(&bench.desired);
            assert_eq!(secret(&short), secret(&first));
            let trouble = &short.troubles[0];
            assert!(
                trouble.starts_with("[gitops] /") && trouble.contains(said) && trouble.ends_with("of before stays in force"),
                "{trouble}"
            );
            assert!(Ring::troubles(&bench.desired)[0].contains(said));
        }
        bench.put("hook", [b'c'; 32]);
        fs::set_permissions(bench.dir.path().join("hook"), fs::Permissions::from_mode(0o604)).unwrap();
        let open = ring.look(&bench.desired);
        assert!(secret(&open) == secret(&first) && open.troubles[0].contains("can be read by every user"), "{:?}", open.troubles);
        bench.put("hook", [b'c'; 32]);
        let mended = ring.look(&bench.desired);
        assert_eq!((secret(&mended), mended.troubles.len()), (Some(b"c".repeat(32)), 0));
        assert_eq!(secret(&ring.look(&Bench::new("").desired)), None, "tenants.toml names none any more");
    }

    #[test]
    fn a_public_key_is_never_taken_for_a_secret() {
        let bench = Bench::new("[[proxy.jwt]]\nalg = 'HS256'\nsecret_file = 'rsa.pub'\n");
        bench.put("rsa.pub", Signer::es256().pem());
        let (_, look) = Ring::new(&bench.desired).unwrap();
        assert!(look.settings.token_keys.is_empty() && look.troubles[0].contains("a PEM file, not a secret"), "{:?}", look.troubles);
    }
}
