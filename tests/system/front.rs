//! The front door as tenants.toml changes it: the end of a certificate from files is said in time, and another port is taken at once.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use sq_agent::{
    admin::status::{CertificateStatus, Status},
    store::Store,
};

use tokio::net::{TcpListener, TcpStream};

use crate::support::{eventually, free_port, host::Host, processes};

const DAY: u64 = 86_400;

/// A certificate for localhost that began so many days ago and holds so many more; negative: it has ended.
fn put(host: &Host, began: u64, left: i64) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    params.not_before = now - Duration::from_secs(began * DAY);
    let days = Duration::from_secs(left.unsigned_abs() * DAY + DAY / 2);
    params.not_after = if left < 0 { now - days } else { now + days };
    fs::write(host.root().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(host.root().join("key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(host.root().join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn certificate(status: &Status) -> &CertificateStatus {
    status.proxy.certificate.as_ref().unwrap()
}

fn events(host: &Host) -> Vec<String> {
    let events = Store::open(&host.state_dir()).unwrap().store.events(1_000).unwrap();
    events.into_iter().rev().map(|event| event.kind).filter(|kind| kind.starts_with("certificate_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_port_is_listened_on_as_soon_as_the_file_says_so() {
    let mut host = Host::start(&["ada"]).await;
    let (old, pid) = (host.user("ada"), host.settled().await.proxy.pid);
    let (https, plain) = (free_port(), free_port());
    host.edit(|wanted| {
        wanted.https = https;
        wanted.proxy = format!("http_listen = [\"127.0.0.1:{plain}\"]");
    });
    let listens = [https, plain].map(|port| format!("127.0.0.1:{port}"));
    let status = host.until("it listens there", |status| status.proxy.listen == listens).await;
    assert_eq!((status.proxy.pid, status.agent.pending_restart.len()), (pid, 0), "the same proxy, and nothing waits for a restart");
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.status, 200);
    assert!(TcpStream::connect(("127.0.0.1", plain)).await.is_ok());
    eventually("the old port is closed", async || TcpStream::connect(old.client.address()).await.is_err()).await;

    // One that is taken changes nothing.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    host.edit(|wanted| wanted.https = port);
    let status = host.until("it is refused", |status| status.proxy.detail.is_some()).await;
    assert!(status.proxy.detail.as_ref().unwrap().contains(&format!("cannot listen on 127.0.0.1:{port}")), "{status:#?}");
    host.wanted.https = https;
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.status, 200, "where it was");
    host.edit(|wanted| wanted.https = https);
    host.until("all is well again", |status| status.proxy.detail.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_certificate_is_said_14_days_before_and_when_it_is_there() {
    let mut host = Host::prepare(|wanted| {
        wanted.add("ada");
        wanted.more = "\n[proxy.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n".to_owned();
    });
    put(&host, 60, 30);
    host.launch().await;
    let status = host.until("it is in force", |status| certificate(status).source == "files").await;
    assert_eq!((certificate(&status).days_left, certificate(&status).ends_soon), (30, false));
    assert_eq!(host.cli(&["status"]).code, 0);
    assert!(host.cli(&["status"]).err.contains("certificate (files) for localhost until "));

    let renew = async |left: i64| {
        put(&host, 80, left);
        processes::signal(host.agent_pid(), Signal::HUP);
        host.until("the next one is in force", |status| {
            certificate(status).days_left == left || left < 0 && certificate(status).days_left < 0
        })
        .await
    };
    assert!(certificate(&renew(13).await).ends_soon);
    let event = async |kind: &str| {
        host.until("it is told", |_| events(&host).last().is_some_and(|last| last == kind)).await;
    };
    event("certificate_expires").await;
    assert_eq!(host.cli(&["status"]).code, 2);
    let doctor = host.cli(&["doctor"]);
    assert!((doctor.out + &doctor.err).contains("put another one into the files that [proxy.tls] names"));
    renew(-2).await;
    event("certificate_expired").await;
    assert!(!certificate(&renew(60).await).ends_soon);
    assert_eq!(events(&host), ["certificate_expires", "certificate_expired"], "each once");
}
