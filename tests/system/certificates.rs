//! Certificates from files: the end of the one in force is said in time, wherever somebody looks.

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

use crate::support::{host::Host, processes};

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
