//! Certificates from a real ACME server: pebble, Let's Encrypt's own for tests, with a name server that says every name is this host.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use sq_agent::{
    admin::status::{CertificateStatus, Status},
    store::Store,
};
use tokio::net::TcpStream;

use crate::support::{eventually, free_port, host::Host};

const NAMES: [&str; 2] = ["sq.example.test", "also.example.test"];

/// pebble and its name server; they end with the test.
struct Pebble {
    dir: PathBuf,
    port: u16,
    manage: u16,
    children: Vec<Child>,
}

/// What is different about a pebble.
#[derive(Default)]
struct Ways {
    /// Seconds for which its certificates hold.
    holds: u64,
    /// It wants an account elsewhere.
    external: bool,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.end();
    }
}

impl Pebble {
    /// Prepares one that looks for proofs on these ports; `None`, said aloud, where pebble is not installed.
    fn prepare(host: &Host, plain: u16, ways: &Ways) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join("pebble").exists()) {
            eprintln!("SKIPPED: no pebble here; `apt-get install pebble` lets this test run");
            return None;
        }
        let dir = host.root().join("pebble");
        fs::create_dir(&dir).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        let (port, manage) = (free_port(), free_port());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{manage}"),
            "certificate": dir.join("cert.pem"),
            "privateKey": dir.join("key.pem"),
            "httpPort": plain,
            "tlsPort": host.wanted.https,
            "ocspResponderURL": "",
            "certificateValidityPeriod": ways.holds,
            "externalAccountBindingRequired": ways.external,
            "externalAccountMACKeys": { "kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W" },
        } });
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        Some(Self { dir, port, manage, children: Vec::new() })
    }

    fn spawn(&mut self, program: &str, args: &[&str]) {
        let log = File::options().append(true).create(true).open(self.dir.join("log")).unwrap();
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.dir).env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        // Of a hundred nonces that it gave it takes twenty for wrong: more than an order survives each time.
        command.env("PEBBLE_WFE_NONCEREJECT", "20");
        self.children.push(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    async fn start(&mut self) {
        let (dns, manage) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let off = ["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""];
        self.spawn("pebble-challtestsrv", &[off.as_slice(), &["-dns01", &dns, "-management", &manage]].concat());
        self.spawn("pebble", &["-config", "config.json", "-dnsserver", &dns]);
        for address in [dns, format!("127.0.0.1:{}", self.port)] {
            eventually("pebble and its name server listen", async || TcpStream::connect(&address).await.is_ok()).await;
        }
        eventually("pebble answers", async || self.root().await.is_some()).await;
    }

    fn end(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The authority of its certificates.
    async fn root(&self) -> Option<String> {
        let ca = reqwest::Certificate::from_pem(&fs::read(self.dir.join("ca.pem")).unwrap()).unwrap();
        let client = reqwest::Client::builder().add_root_certificate(ca).build().unwrap();
        client.get(format!("https://localhost:{}/roots/0", self.manage)).send().await.ok()?.text().await.ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// `[proxy.acme]` with more lines.
    fn table(&self, more: &str) -> String {
        let Self { dir, port, .. } = self;
        format!(
            "\n[proxy.acme]\ndomains = {NAMES:?}\ncontact = \"admin@example.test\"\ndirectory = \"https://localhost:{port}/dir\"\nca_file = {:?}\n{more}\n",
            dir.join("ca.pem")
        )
    }
}

/// A browser somewhere else, which trusts the authority `root`. Each request is a handshake.
async fn browse(host: &Host, root: &str, name: &str) -> reqwest::Result<reqwest::Response> {
    let root = reqwest::Certificate::from_pem(root.as_bytes()).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], host.wanted.https));
    let client = reqwest::Client::builder().tls_certs_only([root]).resolve(name, address).build().unwrap();
    client.get(format!("https://{name}:{}/", address.port())).send().await
}

fn certificate(status: &Status) -> &CertificateStatus {
    status.proxy.certificate.as_ref().unwrap()
}

fn events(host: &Host, kind: &str) -> Vec<String> {
    let events = Store::open(&host.state_dir()).unwrap().store.events(1_000).unwrap();
    events.into_iter().filter(|event| event.kind == kind).map(|event| event.detail).collect()
}

async fn until_from_acme(host: &Host) -> Status {
    host.within(Duration::from_secs(60), "the certificate is there", |status| certificate(status).source == "acme").await
}

/// Every file below `dir` that others than its owner may use.
fn open_to_others(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.metadata().unwrap().permissions().mode() & 0o077 != 0 {
            found.push(entry.path());
        }
        if entry.path().is_dir() {
            found.extend(open_to_others(&entry.path()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_by_tls_alpn_01_and_is_kept_across_a_restart() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let Some(mut pebble) = Pebble::prepare(&host, 1, &Ways { holds: 90 * 86_400, ..Ways::default() }) else { return };
    pebble.start().await;
    host.edit(|wanted| wanted.more = pebble.table(""));
    host.launch().await;
    let status = until_from_acme(&host).await;
    let mut names = NAMES.map(str::to_owned).to_vec();
    names.sort();
    assert_eq!((&certificate(&status).names, certificate(&status).days_left), (&names, 89), "{status:#?}");
    let root = pebble.root().await.unwrap();
    for name in NAMES {
        let answer = browse(&host, &root, name).await.unwrap();
        assert_eq!(answer.headers()["strict-transport-security"], "max-age=63072000");
    }
    assert!(host.state_dir().join("acme").is_dir());
    assert_eq!(open_to_others(&host.state_dir().join("acme")), Vec::<PathBuf>::new());
    assert_eq!(events(&host, "certificate_obtained").len(), 1);
    let status = host.until("the next time is said", |status| status.proxy.acme.as_ref().unwrap().next_try.is_some()).await;
    let acme = status.proxy.acme.unwrap();
    assert_eq!((acme.asking, acme.last_error), (false, None));
    let log = fs::read_to_string(host.agent_log()).unwrap() + &fs::read_to_string(host.state_dir().join("proxy.log")).unwrap();
    assert!(!log.contains("PRIVATE KEY"));

    let orders = pebble.log().matches("/finalize-order/").count();
    host.end_agent(Signal::TERM);
    let status = host.launch().await;
    assert_eq!(certificate(&status).source, "acme", "at once");
    host.until("it has looked", |status| status.proxy.acme.as_ref().unwrap().next_try.is_some()).await;
    assert_eq!(pebble.log().matches("/finalize-order/").count(), orders, "nothing was asked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_under_load_fail_no_handshake() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let Some(mut pebble) = Pebble::prepare(&host, 1, &Ways { holds: 15, ..Ways::default() }) else { return };
    pebble.start().await;
    host.edit(|wanted| wanted.more = pebble.table(""));
    host.launch().await;
    let mut ends = certificate(&until_from_acme(&host).await).not_after.clone();
    let root = pebble.root().await.unwrap();
    let (stop, served, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let host = Arc::new(host);
    let browser = {
        let (host, stop, served, failed) = (host.clone(), stop.clone(), served.clone(), failed.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match browse(&host, &root, NAMES[0]).await {
                    Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        eprintln!("{error:?}");
                        failed.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        })
    };
    for _ in 0..3 {
        let status = host.within(Duration::from_secs(60), "another certificate", |status| certificate(status).not_after != ends).await;
        ends.clone_from(&certificate(&status).not_after);
    }
    stop.store(true, Ordering::Relaxed);
    browser.await.unwrap();
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(served.load(Ordering::Relaxed) > 50);
    assert!(events(&host, "certificate_obtained").len() >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_the_self_signed_one_serves_and_a_change_of_the_table_tries_at_once() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let Some(mut pebble) = Pebble::prepare(&host, 1, &Ways::default()) else { return };
    host.edit(|wanted| wanted.more = pebble.table(""));
    host.launch().await;
    let status = host.until("the failure is said", |status| status.proxy.acme.as_ref().unwrap().last_error.is_some()).await;
    let acme = status.proxy.acme.as_ref().unwrap();
    assert!(acme.last_error.as_ref().unwrap().contains("refused") && acme.next_try.is_some(), "{acme:?}");
    assert_eq!(certificate(&status).source, "self-signed");
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.status, 200);
    assert_eq!(events(&host, "certificate_failed").len(), 1);
    assert_eq!(host.cli(&["status"]).code, 2, "somebody should look");

    pebble.start().await;
    host.edit(|wanted| wanted.more = pebble.table("# again\n").replace("admin@", "other@"));
    until_from_acme(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_elsewhere_is_said_with_what_the_server_saw() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let Some(mut pebble) = Pebble::prepare(&host, 1, &Ways::default()) else { return };
    // The server looks at another port than the one that is listened on.
    let config = fs::read_to_string(pebble.dir.join("config.json")).unwrap();
    fs::write(pebble.dir.join("config.json"), config.replace(&format!("\"tlsPort\":{}", host.wanted.https), "\"tlsPort\":1")).unwrap();
    pebble.start().await;
    host.edit(|wanted| wanted.more = pebble.table(""));
    host.launch().await;
    let status = host.until("the failure is said", |status| status.proxy.acme.as_ref().unwrap().last_error.is_some()).await;
    let error = status.proxy.acme.unwrap().last_error.unwrap();
    assert!(error.contains("example.test is not proved") && error.contains("port 443"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_by_http_01_with_an_account_from_elsewhere_and_by_another_once_the_server_knows_it_no_more() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let plain = free_port();
    let Some(mut pebble) = Pebble::prepare(&host, plain, &Ways { external: true, ..Ways::default() }) else { return };
    pebble.start().await;
    let key = host.root().join("eab.key");
    fs::write(&key, "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    host.edit(|wanted| {
        wanted.proxy = format!("http_listen = [\"127.0.0.1:{plain}\"]");
        wanted.more = pebble.table("challenge = \"http-01\"\neab_kid = \"kid-1\"\neab_key_file = \"eab.key\"");
    });
    host.launch().await;
    until_from_acme(&host).await;
    browse(&host, &pebble.root().await.unwrap(), NAMES[1]).await.unwrap();

    // It begins anew, and knows no account.
    pebble.end();
    pebble.start().await;
    host.edit(|wanted| wanted.more = wanted.more.replace(", \"also.example.test\"", ""));
    host.within(Duration::from_secs(60), "the other certificate is there", |status| certificate(status).names == NAMES[..1]).await;
    browse(&host, &pebble.root().await.unwrap(), NAMES[0]).await.unwrap();
    assert!(fs::read_to_string(host.agent_log()).unwrap().contains("does not know the account"));
}
