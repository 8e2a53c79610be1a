//! What the process that faces the network has given up, seen from outside.

use super::host::{Host, is_root};

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_has_no_right_left() {
    let host = Host::start(&[]).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid)).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("NoNewPrivs:"), "1");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    if is_root() {
        assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Gid:"), "65534\t65534\t65534\t65534");
        assert_eq!(field("Groups:"), "");
        assert_eq!(field("CapBnd:"), "0000000000000000");
    }
    // Every thread is under the filter, not only the first.
    for thread in std::fs::read_dir(format!("/proc/{}/task", host.pid)).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    let line = std::fs::read(format!("/proc/{}/cmdline", host.pid)).unwrap();
    assert!(line.ends_with(b"\0proxy\0"), "nothing on the command line but what it is");
    host.stop().await;
}
