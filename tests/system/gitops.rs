//! tenants.toml from a real git repository: a push is a deployment, and whatever is wrong with one leaves the host as it was.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use sq_agent::{admin::status::GitOpsStatus, crash_point::POINTS};

use crate::support::{
    has_programs,
    host::{Host, Ran, SQ_AGENT, ran},
    ports::PortBlock,
    processes::ended_within,
};

pub(crate) const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
/// Longer than any test: the repository is looked at when that is asked for, and once at the start.
const NEVER: &str = "24h";

/// A host, and the repository from which it has its file.
pub(crate) struct Followed {
    pub(crate) host: Host,
    /// Where its operators work.
    pub(crate) clone: PathBuf,
}

pub(crate) fn git(directory: &Path, args: &[&str]) -> String {
    let mut git = Command::new("git");
    let settings = ["user.name=Bob", "user.email=bob@example.com", "init.defaultBranch=main", "commit.gpgSign=false"];
    git.current_dir(directory).args(settings.iter().flat_map(|setting| ["-c", setting])).args(args);
    let Ran { code, out, err } = ran(&mut git);
    assert_eq!(code, 0, "git {args:?}: {out}{err}");
    out
}

impl Followed {
    /// A repository with the host's file in it; the host runs and has looked at it once. `more` stands under [gitops].
    pub(crate) async fn start(ids: &[&str], more: &str) -> Self {
        let mut followed = Self::prepare(ids, more);
        followed.host.launch().await;
        followed.host.until("the first look", |status| status.gitops.as_ref().is_some_and(|gitops| gitops.finished > 0)).await;
        followed
    }

    pub(crate) fn prepare(ids: &[&str], more: &str) -> Self {
        Self::of(Host::prepare(|wanted| ids.iter().for_each(|id| _ = wanted.add(id))), more)
    }

    /// The same, of a host that does not run yet.
    fn of(mut host: Host, more: &str) -> Self {
        let (remote, clone) = (host.root().join("remote.git"), host.root().join("clone"));
        git(host.root(), &["init", "--quiet", "--bare", "remote.git"]);
        git(host.root(), &["clone", "--quiet", remote.to_str().unwrap(), "clone"]);
        let table = format!("\n[gitops]\nurl = {:?}\ninterval = {NEVER:?}\n{more}\n", format!("file://{}", remote.display()));
        host.edit(|wanted| wanted.more = table);
        let followed = Self { host, clone };
        followed.push("the first", &[]);
        followed
    }

    /// Commits the host's wanted file, and pushes it; `how` are further arguments of the commit.
    pub(crate) fn push(&self, subject: &str, how: &[String]) -> String {
        self.push_text(subject, &self.host.wanted.text(), how)
    }

    pub(crate) fn push_text(&self, subject: &str, text: &str, how: &[String]) -> String {
        self.commit(subject, text, how);
        self.upload();
        git(&self.clone, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Commits `text` as tenants.toml, and whatever else lies in the clone.
    pub(crate) fn commit(&self, subject: &str, text: &str, how: &[String]) {
        fs::write(self.clone.join("tenants.toml"), text).unwrap();
        git(&self.clone, &["add", "--all"]);
        let commit = ["commit", "--quiet", "--allow-empty", "-m", subject];
        let settings = how.iter().flat_map(|setting| ["-c", setting.as_str()]).chain(commit);
        git(&self.clone, &settings.collect::<Vec<_>>());
    }

    /// `git push`.
    pub(crate) fn upload(&self) {
        git(&self.clone, &["push", "--quiet", "--force", "origin", "HEAD:main"]);
    }

    /// `sq-agent gitops sync`: its exit code, and how it stands.
    pub(crate) fn sync(&self, more: &[&str]) -> (i32, GitOpsStatus) {
        let args: Vec<&str> = ["gitops", "sync", "--json"].into_iter().chain(more.iter().copied()).collect();
        let ran = self.host.cli(&args);
        let status = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}{}\n{}", ran.out, ran.err, self.host.account()));
        (ran.code, status)
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.host.file()).unwrap()
    }
}

#[tokio::test]
async fn a_push_is_served_and_a_bad_one_leaves_all_as_it_was_until_a_good_one_comes() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::start(&["ada"], "").await;
    it.host.wanted.add("bob");
    let good = it.push("Add bob", &[]);
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.applied.unwrap().id), (0, good.clone()));
    it.host.settled().await;
    assert_eq!(it.host.user("bob").get(READ).await.status, 200);

    let bad = it.push_text("Break it", &it.host.wanted.text().replace("tier = \"free\"", "tier = \"fre\""), &[]);
    let (code, status) = it.sync(&[]);
    let why = status.refused_because.unwrap();
    assert_eq!((code, status.refused.unwrap().id, status.applied.unwrap().id), (2, bad, good.clone()));
    assert!(why.contains("did you mean") && why.contains("tenants.toml:"), "{why}");
    assert_eq!(it.text(), it.host.wanted.text());
    assert_eq!(it.host.user("bob").get(READ).await.status, 200);
    let said = it.host.cli(&["gitops", "status"]);
    assert!(said.code == 2 && said.out.contains("refused") && said.out.contains("Break it"), "{}", said.out);

    // Also one without [gitops], which would be the last to be seen.
    let cut_off = it.host.wanted.text().replace(&it.host.wanted.more, "");
    it.push_text("Forget where it comes from", &cut_off, &[]);
    assert!(it.sync(&[]).1.refused_because.unwrap().contains("no [gitops]"));
    git(&it.clone, &["rm", "--quiet", "tenants.toml"]);
    git(&it.clone, &["commit", "--quiet", "-m", "Remove it"]);
    git(&it.clone, &["push", "--quiet", "origin", "HEAD:main"]);
    assert!(it.sync(&[]).1.refused_because.unwrap().contains("has no file tenants.toml"));

    it.host.wanted.remove("bob");
    it.push("Good again, without bob", &[]);
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.refused), (0, None));
    it.host.settled().await;
}

#[tokio::test]
async fn a_rewritten_branch_is_refused_until_somebody_accepts_it() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::start(&["ada"], "").await;
    it.host.wanted.add("bob");
    git(&it.clone, &["checkout", "--quiet", "--orphan", "other"]);
    let rewritten = it.push("Another history", &[]);
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.refused.unwrap().id), (2, rewritten.clone()));
    assert!(status.refused_because.unwrap().contains("--accept-rewrite"));
    assert!(!it.text().contains("bob"));
    let (code, status) = it.sync(&["--accept-rewrite"]);
    assert_eq!((code, status.applied.unwrap().id), (0, rewritten));
    it.host.settled().await;
}

#[tokio::test]
async fn only_commits_that_a_known_key_signed_are_applied() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::prepare(&["ada"], "verify = \"allowed_signers\"");
    let key = |name: &str| {
        let path = it.host.root().join(name);
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path);
        assert_eq!(ran(&mut keygen).code, 0);
        let public = path.with_extension("pub");
        (format!("user.signingKey={}", public.display()), fs::read_to_string(public).unwrap())
    };
    let ((known, public), (stranger, _)) = (key("known"), key("stranger"));
    fs::write(it.host.root().join("allowed_signers"), format!("bob@example.com {public}")).unwrap();
    let signed_by = |key: &str| ["gpg.format=ssh".to_owned(), key.to_owned(), "commit.gpgSign=true".to_owned()];
    it.host.launch().await;
    it.host.wanted.add("bob");
    for settings in [&[][..], &signed_by(&stranger)] {
        it.push("Not by one of us", settings);
        let (code, status) = it.sync(&[]);
        assert_eq!((code, status.applied), (2, None), "{settings:?}");
        assert!(status.refused_because.unwrap().contains("signed it"), "{settings:?}");
        assert!(!it.text().contains("bob"));
    }
    let signed = it.push("By one of us", &signed_by(&known));
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.applied.unwrap().id), (0, signed));
    it.host.settled().await;
}

#[tokio::test]
async fn an_edit_by_hand_is_replaced_and_kept_unless_following_is_suspended() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::start(&["ada"], "").await;
    it.host.edit(|wanted| _ = wanted.add("by-hand"));
    let edited = it.text();
    it.host.settled().await;
    assert_eq!(it.host.cli(&["gitops", "suspend"]).code, 0);
    assert!(it.host.status().unwrap().gitops.unwrap().suspended);
    it.host.cli(&["gitops", "resume"]);
    it.host.wanted.remove("by-hand");
    it.host.settled().await;
    let aside = it.host.state_dir().join("gitops/edited");
    let kept: Vec<_> = fs::read_dir(aside).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert_eq!(kept, [edited]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_removes_many_empties_the_file_or_renames_everybody_removes_nobody_until_that_is_confirmed() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let ids: Vec<String> = (0..100).map(|n| format!("t{n:02}")).collect();
    let host = Host::prepare_on(PortBlock::large(), |wanted| ids.iter().for_each(|id| _ = wanted.add(id)));
    let mut it = Followed::of(host, "");
    it.host.launch().await;
    let held = async |it: &Followed, count| {
        let held = it.host.until("the removals are held", |status| status.held.as_ref().is_some_and(|held| held.removals.len() == count));
        held.await.held.unwrap().hash
    };
    // 60 of 100, and one more, who comes at once.
    ids[..60].iter().for_each(|id| it.host.wanted.remove(id));
    it.host.wanted.add("new");
    it.push("Remove sixty", &[]);
    assert_eq!(it.sync(&[]).0, 0);
    let hash = held(&it, 60).await;
    it.host.until("101 are there", |status| status.tenants.iter().filter(|t| t.state == "ready").count() == 101).await;
    assert_eq!(it.host.user("t03").get(READ).await.status, 200, "nobody was removed");
    assert_eq!(it.host.cli(&["confirm", &hash]).code, 0);
    it.host.settled().await;

    // A file without a byte, and one with nobody in it.
    it.push_text("Empty the file", "", &[]);
    let (code, status) = it.sync(&[]);
    assert!(code == 2 && status.refused_because.as_ref().is_some_and(|why| why.contains("write [gitops]")), "{status:?}");
    assert_eq!(it.text(), it.host.wanted.text());
    let all = it.host.wanted.tenants.clone();
    it.host.wanted.tenants.clear();
    it.push("Remove everybody", &[]);
    assert_eq!(it.sync(&[]).0, 0);
    held(&it, 41).await;
    assert_eq!(it.host.user("t99").get(READ).await.status, 200, "nobody was removed");

    // Every id renamed: all of them removed, and as many others added.
    it.host.wanted.tenants = all.iter().map(|(id, tenant)| (format!("{id}-renamed"), tenant.clone())).collect();
    it.push("Rename everybody", &[]);
    assert_eq!(it.sync(&[]).0, 0);
    let hash = held(&it, 41).await;
    it.host.until("the new ones are there", |status| status.tenants.iter().filter(|t| t.state == "ready").count() == 82).await;
    assert_eq!(it.host.user("t99").get(READ).await.status, 200, "nobody was removed");
    assert_eq!(it.host.cli(&["confirm", &hash]).code, 0);
    it.host.settled().await;
}

#[tokio::test]
async fn a_repository_out_of_reach_is_told_with_a_remedy_and_a_broken_copy_is_fetched_anew() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::start(&["ada"], "").await;
    let (remote, away) = (it.host.root().join("remote.git"), it.host.root().join("away.git"));
    fs::rename(&remote, &away).unwrap();
    let (code, status) = it.sync(&[]);
    let why = status.last_error.unwrap();
    assert!(code == 2 && why.contains("is `url` under [gitops] right"), "{why}");
    assert_eq!(it.host.user("ada").get(READ).await.status, 200);
    fs::rename(&away, &remote).unwrap();
    it.host.wanted.add("bob");
    it.push("Add bob", &[]);
    // What a killed git may leave: a lock, and objects that are cut short.
    let copy = it.host.state_dir().join("gitops/repo.git");
    fs::create_dir_all(copy.join("refs/sq-agent")).unwrap();
    fs::write(copy.join("refs/sq-agent/head.lock"), "").unwrap();
    let (code, status) = it.sync(&[]);
    assert_eq!((code, status.last_error), (0, None));
    it.host.settled().await;
    for entry in fs::read_dir(copy.join("objects")).unwrap().flatten() {
        for object in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            fs::set_permissions(object.path(), fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(object.path(), "").unwrap();
        }
    }
    it.host.wanted.add("eve");
    it.push("Add eve", &[]);
    assert_eq!(it.sync(&[]).0, 0, "{}", it.host.account());
    it.host.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_a_look_is_followed_by_one_that_ends_where_it_should() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    for point in POINTS.into_iter().filter(|point| point.starts_with("gitops.")) {
        let mut it = Followed::start(&["ada"], "").await;
        it.host.end_agent(Signal::KILL);
        it.host.wanted.add("bob");
        let pushed = it.push("Add bob", &[]);
        let before = it.text();
        it.host.spawn_agent_that_dies_at(point);
        assert!(ended_within(it.host.agent_pid(), std::time::Duration::from_secs(20)), "{point}\n{}", it.host.account());
        it.host.reap_agent();
        let expected = if ["gitops.put", "gitops.told"].contains(&point) { it.host.wanted.text() } else { before };
        assert_eq!(it.text(), expected, "{point}: never half a file");
        it.host.spawn_agent();
        it.host.settled().await;
        it.host
            .until("the commit is known", |status| status.gitops.as_ref().and_then(|g| g.applied.as_ref()).is_some_and(|c| c.id == pushed))
            .await;
    }
}

#[tokio::test]
async fn it_follows_over_the_networks_of_git_itself_and_survives_its_own_restart() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::prepare(&["ada"], "");
    let port = it.host.wanted.https + 1;
    // `git daemon` would leave this one behind.
    let mut daemon = Command::new(Path::new(git(it.host.root(), &["--exec-path"]).trim()).join("git-daemon"));
    daemon.args(["--reuseaddr", "--export-all", "--listen=127.0.0.1"]).arg(format!("--port={port}"));
    daemon.arg(format!("--base-path={}", it.host.root().display())).arg(it.host.root());
    let mut daemon = daemon.spawn().unwrap();
    let remote = format!("file://{}", it.host.root().join("remote.git").display());
    let url = format!("git://127.0.0.1:{port}/remote.git");
    it.host.edit(|wanted| wanted.more = wanted.more.replace(&remote, &url));
    let pushed = it.push("Over the network", &[]);
    it.host.launch().await;
    it.host.until("the first look", |status| status.gitops.as_ref().is_some_and(|gitops| gitops.applied.is_some())).await;
    it.host.end_agent(Signal::KILL);
    it.host.spawn_agent();
    it.host.settled().await;
    let applied = it.host.status().unwrap().gitops.unwrap().applied.unwrap();
    assert_eq!((applied.id, applied.author, applied.subject), (pushed, "Bob".to_owned(), "Over the network".to_owned()));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[tokio::test]
async fn a_host_without_a_file_takes_its_first_one_from_the_repository() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let mut it = Followed::prepare(&["ada"], "");
    fs::remove_file(it.host.file()).unwrap();
    let url = format!("file://{}", it.host.root().join("remote.git").display());
    let refused = it.host.cli(&["run", "--git-url", &url, "--git-branch", "next"]);
    assert!(refused.code == 1 && refused.err.contains("is `branch` under [gitops] right"), "{}", refused.err);
    // Where the agent may not write beside it, tenants.toml is a link.
    fs::create_dir(it.host.root().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere/t.toml", it.host.file()).unwrap();
    it.host.spawn_agent_beside_its_file(&["run", "--git-url", &url]);
    it.host.settled().await;
    // git runs in /, and must not take the link for one there.
    assert!(!Path::new("/elsewhere").exists() && !it.host.root().join("elsewhere/t.gitops").exists());
    assert!(fs::symlink_metadata(it.host.file()).unwrap().is_symlink());
    it.host.wanted.add("bob");
    it.push("Add bob", &[]);
    assert_eq!(it.sync(&[]).0, 0);
    it.host.settled().await;
    assert_eq!(fs::read_to_string(it.host.root().join("elsewhere/t.toml")).unwrap(), it.host.wanted.text());
    assert!(!it.host.state_dir().join("gitops/edited").exists(), "nobody edited anything");
}

#[test]
fn a_pull_request_is_told_what_it_would_do() {
    if !has_programs(&["git", "ssh-keygen"]) {
        return;
    }
    let it = Followed::prepare(&["ada", "bob"], "");
    let text = it.host.wanted.text().replace("id = \"bob\"", "id = \"eve\"");
    fs::write(it.clone.join("tenants.toml"), text).unwrap();
    let plan = |against: &str| {
        let mut plan = Command::new(SQ_AGENT);
        plan.current_dir(&it.clone).args(["plan", "tenants.toml", "--format", "markdown", "--host-memory", "4G", "--against", against]);
        ran(&mut plan)
    };
    let told = plan("origin/main:tenants.toml");
    assert_eq!(told.code, 2, "{}", told.err);
    for part in ["**Added** (1)", "- `eve`", "**Removed (data stay)** (1)", "- `bob`", "Plan hash of the removals: `", "| 4.0G |"] {
        assert!(told.out.contains(part), "{part}\n{}", told.out);
    }
    let nowhere = plan("origin/nowhere:tenants.toml");
    assert!(nowhere.code == 1 && nowhere.err.contains("git has no origin/nowhere:tenants.toml"), "{}", nowhere.err);
}

#[tokio::test]
async fn a_removed_tenants_data_stay_come_back_with_it_and_only_a_purge_deletes_them() {
    let mut host = Host::start(&["ada", "bob"]).await;
    assert_eq!(host.user("bob").post(WRITE, b"bob").await.status, 200);
    host.wanted.remove("bob");
    host.write(&host.wanted.text().replace("[agent]\n", "[agent]\nrequire_reviewed_hash = true\n"));
    let status = host.until("one removal is held", |status| status.held.is_some()).await;
    assert_eq!(host.user("bob").get(READ).await.text(), "bob");
    let refused = host.cli(&["purge", "bob", "--confirm", "bob"]);
    assert!(refused.code == 1 && refused.err.contains("still has a place for bob"), "{}", refused.err);
    host.cli(&["confirm", &status.held.unwrap().hash]);
    host.until("bob is gone", |status| status.tenants.len() == 1).await;
    let listed = host.cli(&["tenants", "removed", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    assert!(listed[0]["id"] == "bob" && listed[0]["removed_at"].is_string() && listed[0]["bytes"].as_u64() > Some(0), "{listed}");
    host.edit(|wanted| _ = wanted.add("bob"));
    host.settled().await;
    assert_eq!(host.user("bob").get(READ).await.text(), "bob", "it came back");
    assert!(host.cli(&["purge", "bob", "--confirm", "bob"]).err.contains("stands in tenants.toml"));
    host.edit(|wanted| wanted.remove("bob"));
    host.settled().await;
    assert_eq!(host.cli(&["purge", "bob"]).code, 1, "nobody typed it");
    assert_eq!(host.cli(&["purge", "bob", "--confirm", "bo"]).code, 1);
    let purged = host.cli(&["purge", "bob", "--confirm", "bob"]);
    assert_eq!(purged.code, 0, "{}", purged.err);
    assert!(!host.state_dir().join("users/bob").exists());
    assert_eq!(fs::read_dir(host.state_dir().join("purged")).unwrap().count(), 1);
}
