//! Keys and certificates change under a host that serves: no request fails, and what is no good is told and changes nothing.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    client::Client,
    host::{Host, User},
    tokens::{self, Issuer},
};

/// A certificate for localhost and its key, PEM.
fn certificate() -> (String, String) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    (pair.cert.pem(), pair.signing_key.serialize_pem())
}

/// A file that replaces another as every careful tool does.
fn put(path: &Path, text: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// An identity provider: an HTTPS server whose answers are the test's, by path.
struct Provider {
    port: u16,
    certificate: PathBuf,
    answers: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<AtomicUsize>,
    up: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl Provider {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = certificate();
        let path = dir.path().join("ca.pem");
        fs::write(&path, &cert).unwrap();
        let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            port: listener.local_addr().unwrap().port(),
            certificate: path,
            answers: Arc::default(),
            asked: Arc::default(),
            up: Arc::new(AtomicBool::new(true)),
            _dir: dir,
        };
        let (answers, asked, up) = (provider.answers.clone(), provider.asked.clone(), provider.up.clone());
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers, asked) = (acceptor.clone(), answers.clone(), asked.clone());
                if !up.load(Ordering::Relaxed) {
                    continue;
                }
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.ok()?;
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.ok()?);
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    let path = String::from_utf8_lossy(&head).split(' ').nth(1)?.to_owned();
                    let answer = answers.lock().unwrap().get(&path).cloned();
                    match answer {
                        Some(answer) => stream.write_all(answer.as_bytes()).await.ok()?,
                        // It hangs.
                        None => tokio::time::sleep(Duration::from_secs(60)).await,
                    }
                    stream.shutdown().await.ok()
                });
            }
        });
        provider
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    fn answer(&self, path: &str, status: &str, headers: &str, body: &str) {
        let whole = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n{body}");
        self.answers.lock().unwrap().insert(path.to_owned(), whole);
    }

    fn publish(&self, path: &str, jwks: &str) {
        self.answer(path, "200 OK", &format!("Content-Length: {}\r\n", jwks.len()), jwks);
    }
}

fn token(issuer: &Issuer, kid: &str, sub: &str) -> String {
    let claims = format!(r#"{{"sub":"{sub}","exp":{},"iss":"sso","aud":["sq"]}}"#, tokens::now() + 600);
    issuer.token(&format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#), &claims)
}

async fn status_of(host: &Host, token: &str) -> u16 {
    User { client: host.client(), token: token.to_owned() }.get("/api/v2/toc?p=x").await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_identity_provider_are_fetched_renewed_and_kept_over_a_restart() {
    let provider = Provider::start().await;
    let (first, second) = (Issuer::new(), Issuer::new());
    provider.publish("/jwks", &first.jwks("2026-01"));
    let mut host = Host::prepare(|wanted| {
        wanted.add("ada");
        wanted.more = format!("\n[[proxy.jwt]]\njwks_url = {:?}\niss = \"sso\"\naud = \"sq\"\n", provider.url("/jwks"));
    });
    host.environment = vec![("SSL_CERT_FILE", provider.certificate.clone())];
    host.launch().await;
    host.until("the keys have come", |status| status.proxy.troubles.is_empty() && provider.asked.load(Ordering::Relaxed) > 0).await;
    let old = token(&first, "2026-01", "ada");
    let patience = Instant::now();
    while status_of(&host, &old).await != 200 {
        assert!(patience.elapsed() < Duration::from_secs(20), "{}", host.account());
    }
    assert_eq!(status_of(&host, &token(&second, "2026-01", "ada")).await, 401, "the kid alone opens nothing");

    // The provider signs with another key: the first such token has it fetched, at the latest 30 s after the last time.
    provider.publish("/jwks", &second.jwks("2026-02"));
    let new = token(&second, "2026-02", "ada");
    let asked = provider.asked.load(Ordering::Relaxed);
    let patience = Instant::now();
    while status_of(&host, &new).await != 200 {
        assert!(patience.elapsed() < Duration::from_secs(45), "{}", host.account());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(provider.asked.load(Ordering::Relaxed), asked + 1, "fetched once, however many asked");
    assert_eq!(status_of(&host, &old).await, 401, "a key that is published no more opens nothing, also by a token that was let in before");

    provider.up.store(false, Ordering::Relaxed);
    host.end_agent(Signal::TERM);
    host.launch().await;
    assert_eq!(status_of(&host, &new).await, 200, "the last good keys are kept");
    let status = host.until("the trouble is told", |status| !status.proxy.troubles.is_empty()).await;
    let trouble = &status.proxy.troubles[0];
    assert!(trouble.contains(&provider.url("/jwks")) && trouble.contains("its keys of before stay in force"), "{trouble}");
    assert_eq!((host.cli(&["status"]).code, status_of(&host, &new).await), (2, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bad_provider_answers_is_refused_and_told() {
    let provider = Provider::start().await;
    let good = Issuer::new();
    provider.publish("/good", &good.jwks("g"));
    provider.answer("/moved", "302 Found", &format!("Location: {}\r\nContent-Length: 0\r\n", provider.url("/good")), "");
    provider.answer("/missing", "404 Not Found", "Content-Length: 0\r\n", "");
    let long = format!(r#"{{"keys":[],"x":"{}"}}"#, "x".repeat(66_000));
    provider.publish("/long", &long);
    // Without a length it ends with the connection.
    provider.answer("/endless", "200 OK", "", &long);
    provider.publish("/secret", r#"{"keys":[{"kty":"oct","kid":"s","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}]}"#);
    provider.publish("/page", "<html>log in</html>");
    let paths = ["/good", "/moved", "/missing", "/long", "/endless", "/secret", "/page", "/hangs"];
    let mut host = Host::prepare(|wanted| {
        wanted.add("ada");
        wanted.more = paths.map(|path| format!("\n[[proxy.jwt]]\njwks_url = {:?}\n", provider.url(path))).concat();
    });
    host.environment = vec![("SSL_CERT_FILE", provider.certificate.clone())];
    host.launch().await;
    let status = host.until("all are told", |status| status.proxy.troubles.len() == paths.len() - 1).await;
    for (path, why) in [
        ("/moved", "sends elsewhere (302 Found), which is not followed"),
        ("/missing", "answered 404 Not Found"),
        ("/long", "longer than 64 KiB"),
        ("/endless", "longer than 64 KiB"),
        ("/secret", "publishes a secret (kty oct, kid \"s\")"),
        ("/page", "it is no JWKS"),
        ("/hangs", "no answer within 5 s"),
    ] {
        let told = |trouble: &&String| trouble.contains(&format!("{}:", provider.url(path))) && trouble.contains(why);
        assert!(status.proxy.troubles.iter().any(|trouble| told(&trouble)), "{path}: {:#?}", status.proxy.troubles);
    }
    let logged = host.logged();
    assert!(logged.contains("longer than 64 KiB") && !logged.contains("c2VjcmV0"), "{logged}");
    assert_eq!(status_of(&host, &token(&good, "g", "ada")).await, 200, "the good one is in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_are_in_force_at_once_and_no_request_fails() {
    let mut host = Host::prepare(|wanted| {
        wanted.add("ada");
        wanted.more = "\n[proxy.tls]\ncert = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n\n[[proxy.jwt]]\nkid = \"own\"\nalg = \"HS256\"\nsecret_file = \"own.key\"\n\n[[proxy.jwt]]\njwks_file = \"jwks.json\"\n".into();
    });
    let (tls, root) = (host.root().join("tls"), host.root().to_owned());
    fs::create_dir(&tls).unwrap();
    let swap = |cert: &str, key: &str| {
        put(&tls.join("key.pem"), key);
        put(&tls.join("cert.pem"), cert);
    };
    let (cert, key) = certificate();
    swap(&cert, &key);
    put(&root.join("own.key"), [b'a'; 48]);
    let idp = Issuer::new();
    put(&root.join("jwks.json"), idp.jwks("1"));
    host.launch().await;
    let user = |cert: &Path, token: &str| User { client: Client::new(host.wanted.https, cert), token: token.to_owned() };
    let first = root.join("first.pem");
    fs::write(&first, &cert).unwrap();
    let idp_token = token(&idp, "1", "ada");
    assert_eq!(user(&first, &idp_token).get("/api/v2/toc?p=x").await.status, 200);

    // Over a connection that stands, and with a key that stays, every request is served, whatever happens meanwhile.
    let over = Arc::new(AtomicBool::new(false));
    let busy = tokio::spawn({
        let (over, user) = (over.clone(), user(&first, &idp_token));
        async move {
            let (mut session, mut served) = (user.client.session(crate::support::client::Http::Two), 0);
            while !over.load(Ordering::Relaxed) {
                let request = user.request(http::Method::GET, "/api/v2/toc?p=x", Default::default());
                assert_eq!(session.send(request).await.unwrap().status, 200);
                served += 1;
            }
            served
        }
    });

    let own = |secret: u8| {
        let header = serde_json::json!({ "alg": "HS256", "kid": "own" });
        tokens::sign_as(&header, &[secret; 48], &tokens::claims("ada"))
    };
    assert_eq!(user(&first, &own(b'a')).get("/api/v2/toc?p=x").await.status, 200);
    let until = async |cert: &Path, token: &str, wanted: u16, what: &str| {
        let begun = Instant::now();
        loop {
            let answer = user(cert, token).send(http::Method::GET, "/api/v2/toc?p=x", Default::default()).await;
            if answer.is_ok_and(|answer| answer.status == wanted) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}\n{}", host.account());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    put(&root.join("own.key"), [b'b'; 48]);
    until(&first, &own(b'b'), 200, "the new secret").await;
    assert_eq!(user(&first, &own(b'a')).get("/api/v2/toc?p=x").await.status, 401, "the old secret, by a token that was let in before");

    let (cert, key) = certificate();
    let second = root.join("second.pem");
    fs::write(&second, &cert).unwrap();
    swap(&cert, &key);
    until(&second, &idp_token, 200, "the new certificate").await;
    assert!(user(&first, &idp_token).send(http::Method::GET, "/api/v2/toc?p=x", Default::default()).await.is_err());

    put(&tls.join("key.pem"), "nonsense");
    put(&root.join("jwks.json"), "{}");
    let status = host.until("both are told", |status| status.proxy.troubles.len() == 2).await;
    let troubles = status.proxy.troubles.join("\n");
    assert!(troubles.contains("[proxy.tls]") && troubles.contains("jwks.json: it is no JWKS"), "{troubles}");
    assert_eq!(user(&second, &idp_token).get("/api/v2/toc?p=x").await.status, 200, "the last good ones serve on");
    put(&tls.join("key.pem"), &key);
    put(&root.join("jwks.json"), idp.jwks("1"));
    host.until("all is good again", |status| status.proxy.troubles.is_empty()).await;
    over.store(true, Ordering::Relaxed);
    let served = busy.await.unwrap();
    assert!(served > 10, "{served}");
    put(&root.join("jwks.json"), Issuer::new().jwks("1"));
    until(&second, &idp_token, 401, "its key is gone").await;
}
