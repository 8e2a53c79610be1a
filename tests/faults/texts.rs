//! One tenant with a text, and what must be true of it after every fault.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, process::Command, time::Duration};

use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::support::{
    client::Answer,
    eventually,
    host::{Host, User, ran, tenant},
    processes::{ended_within, freeze, signal},
};

pub(crate) const ID: &str = "ada";
pub(crate) const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
pub(crate) const APPEND: &str = "/api/v2/insert?p=diary&c=1.1.1/1.1.1/1.1.1";
pub(crate) const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";

/// Fails unless the answer is this problem.
pub(crate) fn assert_problem(answer: &Answer, status: u16, slug: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.text().contains(&format!("urn:sq-agent:problem:{slug}\"")), "{slug}: {answer:?}");
}

/// A host with the one tenant.
pub(crate) struct Ada {
    pub(crate) host: Host,
    pub(crate) user: User,
}

impl Ada {
    pub(crate) async fn launch(mut host: Host) -> Self {
        host.launch().await;
        let user = host.user(ID);
        Self { host, user }
    }

    pub(crate) fn prepare(more: &'static str) -> Host {
        Host::prepare(|wanted| wanted.add(ID).more = more)
    }

    pub(crate) fn user_dir(&self) -> PathBuf {
        self.host.state_dir().join("users").join(ID)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.host.data_dir(ID).join("diary.phext")
    }

    pub(crate) fn sq(&self) -> u32 {
        tenant(&self.host.status().unwrap(), ID).pid.unwrap()
    }

    pub(crate) async fn stores(&self, text: &str) {
        let answer = self.user.post(WRITE, text.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.host.account());
        self.holds(text).await;
    }

    /// As sq has it in its memory.
    pub(crate) async fn holds(&self, text: &str) {
        let answer = self.user.get(READ).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text() == text, "{} bytes instead of {}: {:.80}", answer.body.len(), text.len(), answer.text());
    }

    pub(crate) fn kill_sq(&self) {
        let sq = self.sq();
        signal(sq, Signal::KILL);
        assert!(ended_within(sq, Duration::from_secs(10)));
    }

    /// Sets a limit of the running sq, as prlimit(1) names it. As its own user: root may be without CAP_SYS_RESOURCE.
    pub(crate) fn limit(&self, limit: &str) {
        let sq = self.sq().to_string();
        let owner = fs::metadata(format!("/proc/{sq}/task/{sq}/comm")).unwrap();
        let (uid, gid) = (format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid()));
        let prlimit = ["prlimit", "--pid", &sq, limit];
        let ran = if rustix::process::geteuid().is_root() {
            ran(Command::new("setpriv").args([&uid, &gid]).arg("--clear-groups").args(prlimit))
        } else {
            ran(Command::new(prlimit[0]).args(&prlimit[1..]))
        };
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// As the next start finds it on the disk.
    pub(crate) async fn holds_after_a_kill(&self, text: &str) {
        self.kill_sq();
        self.host.settled().await;
        self.holds(text).await;
    }

    /// Sends a write of which sq sees nothing yet; returns when its marker stands.
    pub(crate) async fn write_that_hangs(&self, target: &'static str, body: String) -> Hanging {
        let sq = self.sq();
        freeze(sq);
        let user = self.user.clone();
        let answer = tokio::spawn(async move { user.post(target, body.as_bytes()).await });
        eventually("the marker stands", async || self.is_marked()).await;
        Hanging { sq, answer }
    }

    pub(crate) fn is_marked(&self) -> bool {
        fs::read(self.user_dir().join("guard/marker")).is_ok_and(|marker| marker.first().is_some_and(|&first| first != 0))
    }
}

/// A write that sq has not seen.
pub(crate) struct Hanging {
    sq: u32,
    answer: JoinHandle<Answer>,
}

impl Hanging {
    /// Lets sq go on.
    pub(crate) async fn go_on(self) -> Answer {
        signal(self.sq, Signal::CONT);
        self.answered().await
    }

    /// What the client is told.
    pub(crate) async fn answered(self) -> Answer {
        self.answer.await.unwrap()
    }
}
