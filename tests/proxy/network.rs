//! Instances in a network of their own: the proxy joins it, its clients do not.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use http::StatusCode;
use sq_agent::proxy::JoinNetwork;

use super::{
    host::{Host, is_root, ready},
    replace::retired,
    support::{eventually, free_port, sq_binary},
};

/// A real sq in namespaces of its own, which end with it.
pub struct Elsewhere {
    sq: Child,
    user: bool,
    port: u16,
}

impl Elsewhere {
    /// With `user`, also in a user namespace, which needs no root; there its user is some other, with every capability.
    async fn start(dir: &Path, user: bool, key: &str) -> Self {
        let (port, sq) = (free_port(), sq_binary());
        let script = format!("ip link set lo up && exec {} host {port} --key {key} --data-dir data", sq.display());
        let sq = Command::new("unshare")
            .args(user.then_some(["--user", "--map-user=1234", "--keep-caps"]).into_iter().flatten())
            .args(["--net", "sh", "-c", &script])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let elsewhere = Self { sq, user, port };
        let pid = elsewhere.sq.id();
        eventually("sq runs", async || {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(sq_binary().as_os_str().as_encoded_bytes()))
        })
        .await;
        let listens = format!(":{port:04X} ");
        eventually("sq listens there", async || fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap().contains(&listens)).await;
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "nobody reaches it from here");
        elsewhere
    }

    pub fn join(&self) -> JoinNetwork {
        let open = |name| File::open(format!("/proc/{}/ns/{name}", self.sq.id())).unwrap().into();
        JoinNetwork { user: self.user.then(|| open("user")), net: open("net") }
    }

    fn inode(&self) -> u64 {
        fs::metadata(format!("/proc/{}/ns/net", self.sq.id())).unwrap().ino()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.sq.kill().unwrap();
        self.sq.wait().unwrap();
    }
}

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

async fn alice_is_reached(host: &Host) {
    let (client, token) = (host.client(), host.token("alice"));
    let at = "p=book&c=1.1.1/1.1.1/1.1.1";
    assert_eq!(client.post(&token, &format!("/api/v2/update?{at}"), "from afar").await.status, StatusCode::OK);
    assert_eq!(client.get(&token, &format!("/api/v2/select?{at}")).await.text(), "from afar");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_reaches_the_instances_in_their_own_network_and_is_reached_from_the_hosts() {
    // Without root there is a network namespace only inside a user namespace; with root each of both is tried.
    for user in if is_root() { vec![false, true] } else { vec![true] } {
        let mut host = Host::start(&[]).await;
        let elsewhere = Elsewhere::start(host.path(), user, &host.instance_key("alice", 1)).await;
        host.publish(&[ready("alice", 0, elsewhere.port)]).await;
        if user {
            // Whom the namespace does not know nobody can become there.
            host.settings.send_modify(|settings| std::sync::Arc::make_mut(settings).run_as = None);
        }
        let in_hosts_network = host.pid;
        host.network = Some(Box::new({
            let again = elsewhere.join();
            move || JoinNetwork { user: again.user.as_ref().map(|fd| fd.try_clone().unwrap()), net: again.net.try_clone().unwrap() }
        }));
        host.agent().await;
        assert_ne!(host.pid, in_hosts_network, "one that works in another network is not kept");
        assert_eq!(retired(&host).await, (in_hosts_network, Some(0)));
        alice_is_reached(&host).await;
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(host.pid, set), "0000000000000000", "{set}");
        }
        if is_root() {
            assert_eq!(fs::metadata(format!("/proc/{}/ns/net", host.pid)).unwrap().ino(), elsewhere.inode());
        }
        let there = host.pid;
        host.agent().await;
        assert_eq!(host.pid, there, "one that works there is adopted");
        alice_is_reached(&host).await;
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_cannot_be_joined_is_said_and_the_old_proxy_goes_on() {
    let mut host = Host::start(&[]).await;
    let old = host.pid;
    host.network = Some(Box::new(|| JoinNetwork { user: None, net: File::open("/proc/self/ns/uts").unwrap().into() }));
    host.agent().await;
    let not_up = host.supervisor.as_mut().unwrap().up().await.unwrap_err();
    assert_eq!((not_up.still_serving, host.pid), (Some(old), old), "{not_up}");
    assert!(host.log("proxy.log").contains("join the instances' network"), "{}", host.log("proxy.log"));
    host.stop().await;
}
