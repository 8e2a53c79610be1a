//! Instances that hang, crash or find their port taken.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, time::Duration};

use rustix::process::Signal;

use crate::support::{
    host::{Host, tenant},
    processes::{self, signal},
    wanted::Wanted,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_sq_that_hangs_is_restarted_after_three_failed_probes() {
    // Three probes 10 s apart, each with 3 s to answer; the stop that follows needs 5 s, since a stopped process ignores TERM.
    const HANGS_AT_MOST: Duration = Duration::from_secs(55);
    let host = Host::start(&["ada", "bob"]).await;
    let before = host.settled().await;
    let hung = tenant(&before, "ada").pid.unwrap();
    signal(hung, Signal::STOP);
    let after = host
        .within(HANGS_AT_MOST, "ada has another sq", |status| {
            tenant(status, "ada").epoch > tenant(&before, "ada").epoch && host.as_wanted(status)
        })
        .await;
    assert!(!processes::lives(hung));
    assert_eq!(tenant(&after, "bob").pid, tenant(&before, "bob").pid);
    assert_eq!(tenant(&after, "ada").restarts, tenant(&before, "ada").restarts + 1);
    assert!(tenant(&after, "ada").last_exit.as_ref().is_some_and(|how| how.contains("probes")), "{after:#?}");
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.text(), "0.6.0");
    // By now a survey, one each 20 s, has looked at everything: an idle sq has 0.15 to 2.4 MB for itself.
    let bytes = tenant(&after, "bob").memory_bytes.unwrap();
    assert!((50_000..5_000_000).contains(&bytes), "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_is_said_with_its_exit_and_the_next_try_and_ends_when_sq_is_mended() {
    let mut host = Host::prepare(|wanted| _ = wanted.add("ada"));
    let (broken, good) = (host.root().join("sq"), host.wanted.sq.clone());
    fs::write(&broken, "#!/bin/sh\n[ \"$1\" = version ] && echo 0.6.0 && exit 0\nexit 3\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    // In its sandbox a script would not find its shell.
    host.edit(|wanted| (wanted.sq, wanted.isolation) = (broken.clone(), "off"));
    host.spawn_agent();
    let status = host.until("it is said", |status| status.tenants.iter().any(|t| t.detail.contains("crash-looping"))).await;
    let ada = tenant(&status, "ada");
    assert_eq!((ada.state.as_str(), ada.pid), ("crashed", None), "{ada:#?}");
    assert!(ada.detail.contains("exit 3, next try in ") && ada.detail.ends_with("users/ada/sq.log"), "{}", ada.detail);
    assert_eq!(ada.last_exit.as_deref(), Some("exit 3"));
    assert_eq!(host.cli(&["status"]).code, 2, "scripts can tell");

    host.edit(|wanted| wanted.sq = good);
    host.settled().await;
}

/// Where others may hold an instance's port.
fn in_the_hosts_network(wanted: &mut Wanted) {
    wanted.isolation = "off";
    wanted.add("ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_something_else_holds_is_skipped_and_said() {
    let mut host = Host::prepare(in_the_hosts_network);
    let port = host.wanted.ports.0;
    let _foreign = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let status = host.launch().await;
    assert_ne!(tenant(&status, "ada").port, Some(port));
    let said = host.logged();
    let line = said.lines().find(|line| line.contains("port skipped")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("tenant=ada") && line.contains(&format!("port={port}")), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_port_was_taken_meanwhile_moves_to_another() {
    let mut host = Host::prepare(in_the_hosts_network);
    let before = host.launch().await;
    let (pid, port) = (tenant(&before, "ada").pid.unwrap(), tenant(&before, "ada").port.unwrap());
    signal(pid, Signal::KILL);
    assert!(processes::ended_within(pid, Duration::from_secs(5)));
    // The agent tries again only after the first back-off, 1 s.
    let _stranger = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let after =
        host.until("ada runs again", |status| tenant(status, "ada").epoch > tenant(&before, "ada").epoch && host.as_wanted(status)).await;
    assert_ne!(tenant(&after, "ada").port, Some(port));
    host.assert_matches_proc(&after);
    assert_eq!(host.user("ada").get("/api/v2/version?p=x").await.text(), "0.6.0");
}
