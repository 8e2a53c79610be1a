//! Changes as commits on a real branch, beside people who push, and what becomes of them where a push is not taken.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    thread,
};

use super::super::{
    EditError, Editor, Made,
    change::Change,
    editor::tests::{DEADLINE, Desk, HEAD, Pace, by, die, id, provision, runtime},
};
use crate::desired;

/// Whether this host has git and ssh-keygen, as CI does.
fn has_git() -> bool {
    [["git", "--version"], ["ssh-keygen", "-?"]].iter().all(|[program, argument]| Command::new(program).arg(argument).output().is_ok())
}

fn git(directory: &Path, arguments: &[&str]) -> Result<String, String> {
    let settings = ["user.name=Bob", "user.email=bob@example.com", "init.defaultBranch=main", "commit.gpgSign=false"];
    let mut git = Command::new("git");
    git.current_dir(directory).env("GIT_CONFIG_GLOBAL", "/dev/null").args(settings.iter().flat_map(|setting| ["-c", setting]));
    let ran = git.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    if ran.status.success() { Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned()) } else { Err(said) }
}

/// A host whose file comes from a repository, and where its operators work.
struct Followed {
    desk: Desk,
    clone: PathBuf,
}

impl Followed {
    /// `more` stands under [gitops].
    fn new(more: &str) -> Self {
        let desk = Desk::new(HEAD);
        let root = desk.dir.path();
        git(root, &["init", "--quiet", "--bare", "remote.git"]).unwrap();
        git(root, &["clone", "--quiet", "remote.git", "clone"]).unwrap();
        let clone = root.join("clone");
        fs::create_dir_all(clone.join("hosts")).unwrap();
        let url = format!("file://{}", root.join("remote.git").display());
        let text = format!("{HEAD}[gitops]\nurl = {url:?}\npath = \"hosts/one.toml\"\n{more}\n");
        fs::write(clone.join("hosts/one.toml"), &text).unwrap();
        fs::write(clone.join("README"), "of all hosts").unwrap();
        let followed = Self { clone, desk };
        followed.push("The first").unwrap();
        followed.take_over(&text);
        followed
    }

    /// As a look at the repository has it.
    fn take_over(&self, text: &str) {
        fs::write(self.desk.file(), text).unwrap();
        self.desk.in_force.send_replace(self.desk.load().into());
    }

    fn push(&self, subject: &str) -> Result<String, String> {
        git(&self.clone, &["add", "--all"])?;
        git(&self.clone, &["commit", "--quiet", "--allow-empty", "-m", subject])?;
        git(&self.clone, &["push", "--quiet", "origin", "HEAD:main"])
    }

    /// A person adds `name`: on top of what is there, as often as that takes.
    fn push_by_hand(&self, name: &str) {
        loop {
            git(&self.clone, &["fetch", "--quiet", "origin"]).unwrap();
            git(&self.clone, &["reset", "--quiet", "--hard", "origin/main"]).unwrap();
            let file = self.clone.join("hosts/one.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, format!("{text}\n# by hand\n[[tenants]]\nid = \"{name}\"\n")).unwrap();
            if self.push(&format!("By hand: {name}")).is_ok() {
                return;
            }
        }
    }

    fn make(&self, editor: &Editor, change: Change) -> Result<Made, EditError> {
        runtime().block_on(async { tokio::time::timeout(DEADLINE, editor.make(change, by("root"))).await.unwrap() })
    }

    fn remote(&self, arguments: &[&str]) -> String {
        git(&self.desk.dir.path().join("remote.git"), arguments).unwrap()
    }

    fn text(&self) -> String {
        // The last end of a line is cut off.
        self.remote(&["show", "main:hosts/one.toml"]) + "\n"
    }

    /// A hook of the remote repository.
    fn hook(&self, name: &str, script: &str) {
        let hook = self.desk.dir.path().join("remote.git/hooks").join(name);
        fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_change_is_one_commit_of_whoever_asked_for_it() {
    if !has_git() {
        return;
    }
    let it = Followed::new("");
    let (editor, before, in_place) = (it.desk.editor(), it.text(), it.desk.text());
    let made = it.make(&editor, provision("ada")).unwrap();
    let head = it.remote(&["log", "-1", "--format=%H|%an|%ae|%cn|%s", "main"]);
    assert_eq!(head, format!("{}|root|root@example.com|sq-agent|Provision ada (tier free): asked for", made.commit.clone().unwrap()));
    assert_eq!(it.remote(&["show", "--name-only", "--format=", "main"]), "hosts/one.toml");
    let text = it.text();
    assert_eq!(text, format!("{}\n\n[[tenants]]\nid = \"ada\"\ntier = \"free\"\n", before.trim_end()));
    assert_eq!((made.hash, made.changed), (desired::hash(&text), true));
    assert_eq!(it.desk.text(), in_place, "a look at the repository puts it in place");
    let again = it.make(&editor, provision("ada")).unwrap();
    assert_eq!((again.changed, again.commit, it.remote(&["rev-list", "--count", "main"])), (false, None, "2".to_owned()));
    assert_eq!(it.desk.looks.load(Ordering::Relaxed), 2, "and is asked for it");
    let unknown = it.make(&editor, Change::Remove { id: id("eve") }).unwrap_err();
    assert!(unknown.to_string().contains("no tenant eve"), "{unknown}");
}

#[test]
fn fifty_changes_beside_a_person_who_pushes_are_fifty_commits() {
    if !has_git() {
        return;
    }
    let it = Followed::new("");
    let editor = it.desk.editor();
    let pace = Pace::default();
    let by_hand = thread::scope(|scope| {
        let person = scope.spawn(|| {
            pace.person(|number| {
                it.push_by_hand(&format!("hand-{number}"));
                true
            })
        });
        let ends = pace.ends();
        runtime().block_on(async {
            for round in 0..10 {
                let mut asked = tokio::task::JoinSet::new();
                for number in 0..5 {
                    let editor = editor.clone();
                    asked.spawn(async move { editor.make(provision(&format!("api-{round}-{number}")), by("root")).await.unwrap() });
                }
                let made = tokio::time::timeout(DEADLINE, asked.join_all()).await.unwrap();
                pace.step();
                assert!(made.iter().all(|made| made.commit.is_some()));
            }
        });
        drop(ends);
        person.join().unwrap().len()
    });
    let subjects = it.remote(&["log", "--format=%s", "main"]);
    let text = it.text();
    for name in (0..10).flat_map(|round| (0..5).map(move |number| format!("api-{round}-{number}"))) {
        let of_it = subjects.lines().filter(|subject| subject.contains(&format!("Provision {name} "))).count();
        assert_eq!((of_it, text.contains(&format!("\"{name}\""))), (1, true), "{name}");
    }
    assert!(by_hand > 1);
    for number in 0..by_hand {
        assert!(text.contains(&format!("\"hand-{number}\"")), "hand-{number}");
    }
    assert_eq!(text.matches("# by hand\n").count(), by_hand);
    it.take_over(&text);
}

#[test]
fn where_only_signed_commits_count_the_agent_signs_or_makes_none() {
    if !has_git() {
        return;
    }
    let it = Followed::new("");
    let dir = it.desk.dir.path().to_owned();
    let key = dir.join("key");
    let mut keygen = Command::new("ssh-keygen");
    assert!(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap().success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    fs::write(dir.join("signers"), "").unwrap();
    let file = it.clone.join("hosts/one.toml");
    let unsigned = fs::read_to_string(&file).unwrap() + "verify = \"signers\"\n";
    fs::write(&file, &unsigned).unwrap();
    it.push("Unsigned").unwrap();
    it.take_over(&unsigned);
    let editor = it.desk.editor();
    // What a stranger pushed is not covered by a signature on top of it.
    let refused = it.make(&editor, provision("ada")).unwrap_err().to_string();
    assert!(refused.contains("signed it") && refused.contains("its head"), "{refused}");
    fs::write(dir.join("signers"), format!("bob@example.com {public}")).unwrap();
    let push_signed = |subject: &str| {
        let signing = format!("user.signingKey={}", key.display());
        git(&it.clone, &["add", "--all"]).unwrap();
        git(&it.clone, &["-c", "gpg.format=ssh", "-c", &signing, "commit", "--quiet", "--allow-empty", "-S", "-m", subject]).unwrap();
        git(&it.clone, &["push", "--quiet", "origin", "HEAD:main"]).unwrap();
    };
    push_signed("Signed");
    let refused = it.make(&editor, provision("ada")).unwrap_err().to_string();
    assert!(refused.contains("signing_key_file"), "{refused}");
    let signing = unsigned + "signing_key_file = \"key\"\n";
    fs::write(&file, &signing).unwrap();
    push_signed("With a key");
    it.take_over(&signing);
    let made = it.make(&editor, provision("ada")).unwrap();
    assert_eq!(it.remote(&["rev-parse", "main"]), made.commit.unwrap());
    let signers = format!("gpg.ssh.allowedSignersFile={}", dir.join("signers").display());
    it.remote(&["-c", &signers, "verify-commit", "main"]);
    // A key that is not among them.
    fs::write(dir.join("signers"), "").unwrap();
    let refused = it.make(&editor, provision("bob")).unwrap_err().to_string();
    assert!(refused.contains("signed it"), "{refused}");
}

#[test]
fn a_push_that_is_not_taken_is_told_and_one_that_is_overtaken_is_tried_six_times() {
    if !has_git() {
        return;
    }
    let it = Followed::new("");
    let editor = it.desk.editor();
    it.hook("pre-receive", "exit 1");
    let refused = it.make(&editor, provision("ada")).unwrap_err().to_string();
    assert!(refused.contains("hook declined") && refused.contains("let the agent's key push"), "{refused}");
    fs::remove_file(it.desk.dir.path().join("remote.git/hooks/pre-receive")).unwrap();
    // Somebody else is always there first.
    let identity = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a";
    it.hook("update", &format!("{identity}\ngit update-ref refs/heads/main $(git commit-tree -p main -m moved 'main^{{tree}}')\nexit 1"));
    let refused = it.make(&editor, provision("ada")).unwrap_err().to_string();
    assert!(refused.contains("at each of 6 attempts"), "{refused}");
    assert_eq!(it.remote(&["rev-list", "--count", "main"]), "7");
    fs::remove_file(it.desk.dir.path().join("remote.git/hooks/update")).unwrap();
    assert!(it.make(&editor, provision("ada")).unwrap().changed);
    // A head that could not be applied is nothing to build on.
    git(&it.clone, &["pull", "--quiet", "--rebase", "origin", "main"]).unwrap();
    let file = it.clone.join("hosts/one.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("\"free\"", "\"fre\"")).unwrap();
    it.push("Break it").unwrap();
    let refused = it.make(&editor, provision("bob")).unwrap_err().to_string();
    assert!(refused.contains("cannot be applied") && refused.contains("did you mean"), "{refused}");
}

#[test]
fn a_death_at_any_step_leaves_the_change_on_the_branch_or_not_at_all() {
    if !has_git() {
        return;
    }
    for (point, is_there) in [("edit.fetched", false), ("edit.committed", false), ("edit.pushed", true)] {
        let it = Followed::new("");
        die(&it.desk, point);
        assert_eq!(it.text().contains("eve"), is_there, "{point}");
        let made = it.make(&it.desk.editor(), provision("eve")).unwrap();
        assert_eq!((made.changed, it.remote(&["rev-list", "--count", "main"])), (!is_there, "2".to_owned()), "{point}");
    }
}
