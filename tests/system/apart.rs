//! What keeps instances apart is in force, said, and insisted on where tenants.toml asks for that. (tests/hostile shows what it holds back.)

use std::process::Command;

use tokio::net::TcpStream;

use crate::support::host::{Host, SQ_AGENT, ran};

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_out_of_reach_by_its_port_and_status_says_what_keeps_it_apart() {
    let host = Host::start(&["ada"]).await;
    let status = host.settled().await;
    let isolation = status.agent.isolation.clone().unwrap();
    if !isolation.network.is_on() {
        return eprintln!("not shown here: {:?}", isolation.network);
    }
    let port = status.tenants[0].port.unwrap();
    let refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.text(), "0.6.0", "but by the proxy");
    let doctor = host.cli(&["doctor"]);
    assert!(doctor.out.contains("network        on:"), "{}", doctor.out);
}

#[tokio::test]
async fn required_isolation_that_the_host_does_not_give_is_refused_with_what_is_missing() {
    let host = Host::prepare(|wanted| {
        wanted.isolation = "required";
        wanted.add("ada");
    });
    // Root in a user namespace with one user has no others to give to instances.
    let mut run = Command::new("unshare");
    run.args(["--user", "--map-root-user", SQ_AGENT, "run", "--tenants"]).arg(host.file());
    let ran = ran(&mut run);
    if ran.err.contains("unshare failed") {
        return eprintln!("not shown here: {}", ran.err);
    }
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("isolation = \"required\"") && ran.err.contains("user: "), "{}", ran.err);
    assert_eq!(host.alive().len(), 0, "nothing was started");
}
