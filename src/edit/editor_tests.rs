//! Edits by program beside those of people, on a real disk and a real branch; and what a death at any step leaves.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use super::{super::change::Change, *};
use crate::{
    crash_point,
    desired::{self, TenantId},
};

/// Longer than anything here takes, on a machine that does much else.
pub(in super::super) const DEADLINE: Duration = Duration::from_secs(120);

pub(in super::super) const HEAD: &str = "# The host of the maths department.\n[agent]\nstate_dir = 'state' # here\n\n# for all\n[tiers.free]\nrate = \"none\"\n\n[tiers.paid]\n\n";

pub(in super::super) fn id(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

pub(in super::super) fn provision(name: &str) -> Change {
    Change::Provision { id: id(name), tier: Some("free".into()) }
}

pub(in super::super) fn by(name: &str) -> Author {
    Author { name: name.into(), email: Some(format!("{name}@example.com")), reason: Some("asked for".into()) }
}

/// A directory with a tenants.toml in it.
pub(in super::super) struct Desk {
    pub(in super::super) dir: tempfile::TempDir,
    pub(in super::super) looks: Arc<AtomicUsize>,
    pub(in super::super) in_force: watch::Sender<Arc<Desired>>,
}

impl Desk {
    pub(in super::super) fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tenants.toml");
        fs::write(&file, text).unwrap();
        let in_force = watch::Sender::new(Arc::new(desired::load(&file).unwrap()));
        Self { dir, looks: Arc::default(), in_force }
    }

    pub(in super::super) fn file(&self) -> PathBuf {
        self.dir.path().join("tenants.toml")
    }

    pub(in super::super) fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    pub(in super::super) fn load(&self) -> Desired {
        desired::load(&self.file()).unwrap_or_else(|rejected| panic!("{rejected}"))
    }

    fn parts(&self) -> EditorParts {
        let looks = self.looks.clone();
        let look = Box::new(move || _ = looks.fetch_add(1, Ordering::Relaxed));
        EditorParts { file: self.file(), state_dir: self.dir.path().join("state"), in_force: self.in_force.subscribe(), look }
    }

    pub(in super::super) fn editor(&self) -> Arc<Editor> {
        Arc::new(Editor::start(self.parts()).unwrap())
    }

    /// What lies beside the file, but for the state directory and what else a test has there.
    fn beside(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("sq-agent-edit")).collect()
    }
}

pub(in super::super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// The pace of a person: one edit for each few of the program's, so that on a slow machine neither keeps the other from ever being done.
#[derive(Default)]
pub(in super::super) struct Pace {
    done: AtomicUsize,
    over: AtomicBool,
}

impl Pace {
    /// Some of the program's edits are acknowledged.
    pub(in super::super) fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Does `edit` with ever another number, which says whether it was done; returns the numbers of those that were.
    pub(in super::super) fn person(&self, mut edit: impl FnMut(usize) -> bool) -> Vec<usize> {
        let mut done = Vec::new();
        for number in 0.. {
            let before = self.done.load(Ordering::Relaxed);
            if edit(number) {
                done.push(number);
            }
            while self.done.load(Ordering::Relaxed) == before && !self.is_over() {
                thread::park_timeout(Duration::from_millis(1));
            }
            if self.is_over() {
                break;
            }
        }
        done
    }

    pub(in super::super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Ends what goes on beside once that is dropped, also where a test fails: else it would be waited for.
    pub(in super::super) fn ends(&self) -> impl Drop + use<'_> {
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Ends(&self.over)
    }
}

/// A person: reads, changes, looks whether it is still what was read, saves. Counts on.
fn save_by_hand(file: &Path, number: usize, by_rename: bool) -> bool {
    let Ok(read) = fs::read_to_string(file) else { return false };
    // Half of what another one is writing in place.
    if !read.starts_with("# The host") || !read.ends_with('\n') {
        return false;
    }
    let text = format!("{read}\n# by hand {number}\n[[tenants]]\nid = \"hand-{number}\"\n");
    if fs::read_to_string(file).is_ok_and(|now| now != read) {
        return false;
    }
    if by_rename {
        let new = file.with_extension("hand");
        fs::write(&new, text).unwrap();
        fs::rename(new, file).unwrap();
    } else {
        fs::write(file, text).unwrap();
    }
    true
}

#[test]
fn a_thousand_edits_beside_those_of_a_person_are_all_there_and_the_file_is_good_at_every_instant() {
    let desk = Desk::new(HEAD);
    let (editor, file) = (desk.editor(), desk.file());
    let pace = Pace::default();
    let (saved, seen) = thread::scope(|scope| {
        let person = scope.spawn(|| pace.person(|number| save_by_hand(&file, number, true)));
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !pace.is_over() {
                let text = fs::read_to_string(&file).expect("it is there at every instant");
                desired::load_candidate(&text, &file).unwrap_or_else(|rejected| panic!("{rejected}"));
                seen += 1;
            }
            seen
        });
        let ends = pace.ends();
        runtime().block_on(async {
            for wave in 0..25 {
                let mut asked = tokio::task::JoinSet::new();
                for number in wave * 40..(wave + 1) * 40 {
                    let editor = editor.clone();
                    asked.spawn(async move {
                        let made = editor.make(provision(&format!("api-{number}")), by("root")).await.unwrap();
                        assert!(made.changed && made.commit.is_none());
                    });
                }
                tokio::time::timeout(DEADLINE, asked.join_all()).await.unwrap();
                pace.step();
            }
        });
        drop(ends);
        (person.join().unwrap(), reader.join().unwrap())
    });
    assert!(saved.len() > 5 && seen > 5, "{saved:?} were saved, {seen} times it was read");
    let (text, tenants) = (desk.text(), desk.load().tenants);
    let lost: Vec<_> = (0..1_000).filter(|number| !tenants.contains_key(&id(&format!("api-{number}")))).collect();
    assert!(lost.is_empty(), "{lost:?}");
    for number in saved {
        assert!(tenants.contains_key(&id(&format!("hand-{number}"))), "hand-{number}");
        assert!(text.contains(&format!("# by hand {number}\n")), "# by hand {number}");
    }
    assert!(text.starts_with(HEAD));
    assert_eq!(desk.beside(), [""; 0]);
}

#[test]
fn saving_in_place_loses_nothing_either() {
    let desk = Desk::new(HEAD);
    let (editor, file) = (desk.editor(), desk.file());
    let pace = Pace::default();
    let saved = thread::scope(|scope| {
        let person = scope.spawn(|| pace.person(|number| save_by_hand(&file, number, false)));
        let ends = pace.ends();
        runtime().block_on(async {
            for number in 0..20 {
                let asked = editor.make(provision(&format!("api-{number}")), by("root"));
                tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap();
                pace.step();
            }
        });
        drop(ends);
        person.join().unwrap()
    });
    assert!(saved.len() > 10, "{saved:?}");
    let tenants = desk.load().tenants;
    let all = saved.into_iter().map(|number| format!("hand-{number}")).chain((0..20).map(|number| format!("api-{number}")));
    let lost: Vec<_> = all.filter(|name| !tenants.contains_key(&id(name))).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn links_modes_and_files_that_are_no_good_stay_as_they_are() {
    let desk = Desk::new(HEAD);
    let target = desk.dir.path().join("elsewhere.toml");
    fs::rename(desk.file(), &target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("elsewhere.toml", desk.file()).unwrap();
    let editor = desk.editor();
    let make = |change| runtime().block_on(editor.make(change, by("root")));
    let made = make(provision("ada")).unwrap();
    assert!(fs::symlink_metadata(desk.file()).unwrap().is_symlink());
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!((made.hash, made.changed), (desired::hash(&desk.text()), true));
    assert!(!make(provision("ada")).unwrap().changed);
    assert!(matches!(make(Change::Remove { id: id("eve") }), Err(EditError::Refused(Refused::UnknownTenant(_)))));
    let bad = desk.text().replace("\"free\"", "\"fre\"");
    fs::write(desk.file(), &bad).unwrap();
    let refused = make(provision("bob")).unwrap_err().to_string();
    assert!(refused.contains("tenants.toml:13:8") && refused.contains("did you mean"), "{refused}");
    assert_eq!(desk.text(), bad);
    fs::write(desk.file(), desk.text().replace("\"fre\"", "\"free\"").replace("'state'", "'other'")).unwrap();
    let refused = make(provision("bob")).unwrap_err().to_string();
    assert!(refused.contains("state_dir cannot change"), "{refused}");
    fs::remove_file(desk.file()).unwrap();
    assert!(make(provision("bob")).unwrap_err().to_string().contains("no such file"));
}

#[test]
fn one_change_that_cannot_be_does_not_keep_others_from_being_made() {
    let desk = Desk::new(&HEAD.replace("[agent]\n", "[agent]\nports = \"10001-10003\"\n"));
    let editor = desk.editor();
    let (made, refused) = runtime().block_on(async {
        let mut asked = tokio::task::JoinSet::new();
        for number in 0..5 {
            let editor = editor.clone();
            asked.spawn(async move { editor.make(provision(&format!("t{number}")), by("root")).await });
        }
        asked.join_all().await.into_iter().partition::<Vec<_>, _>(Result::is_ok)
    });
    assert_eq!((made.len(), refused.len(), desk.load().tenants.len()), (3, 2, 3), "there are three ports");
    assert!(refused[0].as_ref().unwrap_err().to_string().contains("each tenant needs a port"), "{refused:?}");
}

/// Not a test of its own: the agent that [`a_death_at_any_step`] kills.
#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn dies_where_it_is_told() {
    let Some(dir) = env::var_os("SQ_AGENT_TEST_DIRECTORY") else { return };
    let file = Path::new(&dir).join("tenants.toml");
    let in_force = watch::Sender::new(Arc::new(desired::load(&file).unwrap()));
    let state_dir = Path::new(&dir).join("state");
    let parts = EditorParts { file, state_dir, in_force: in_force.subscribe(), look: Box::new(|| {}) };
    let editor = Editor::start(parts).unwrap();
    runtime().block_on(editor.make(provision("eve"), by("root"))).unwrap();
}

/// Has an agent die at `point`.
pub(in super::super) fn die(desk: &Desk, point: &str) {
    let mut agent = Command::new(env::current_exe().unwrap());
    agent.args(["--exact", "edit::editor::tests::dies_where_it_is_told", "--ignored", "--test-threads=1"]);
    agent.env(crash_point::VARIABLE, point).env("SQ_AGENT_TEST_DIRECTORY", desk.dir.path());
    let ended = agent.output().unwrap();
    assert_eq!(ended.status.signal(), Some(9), "{point}: {}", String::from_utf8_lossy(&ended.stdout));
}

#[test]
fn a_death_at_any_step_leaves_the_old_file_or_the_new_one_and_the_next_agent_goes_on() {
    let new = format!("{HEAD}[[tenants]]\nid = \"eve\"\ntier = \"free\"\n");
    for (point, is_new) in [("edit.written", false), ("edit.named", false), ("edit.exchanged", true), ("edit.placed", true)] {
        let desk = Desk::new(HEAD);
        die(&desk, point);
        assert_eq!(desk.text(), if is_new { &new } else { HEAD }, "{point}");
        let made = runtime().block_on(desk.editor().make(provision("eve"), by("root"))).unwrap();
        assert_eq!((desk.text(), made.changed), (new.clone(), !is_new), "{point}");
        assert_eq!(desk.beside(), [""; 0], "{point}");
    }
}

#[test]
fn a_persons_edit_that_a_dead_agent_had_taken_out_is_back_in_place() {
    let by_hand = format!("{HEAD}[[tenants]]\nid = \"by-hand\"\n");
    let desk = Desk::new(HEAD);
    die(&desk, "edit.exchanged");
    // What came out was not what had been read, but what a person had just saved.
    let beside = desk.dir.path().join(&desk.beside()[0]);
    fs::write(&beside, &by_hand).unwrap();
    let made = runtime().block_on(desk.editor().make(provision("bob"), by("root"))).unwrap();
    assert!(made.changed);
    let tenants: Vec<_> = desk.load().tenants.into_keys().map(String::from).collect();
    assert_eq!(tenants, ["bob", "by-hand"], "nobody was told of eve");
    // Where the agent that died had put it back already, its own is what lies beside.
    let desk = Desk::new(HEAD);
    die(&desk, "edit.exchanged");
    fs::rename(desk.file(), desk.dir.path().join(&desk.beside()[0])).unwrap();
    fs::write(desk.file(), &by_hand).unwrap();
    runtime().block_on(desk.editor().make(Change::Remove { id: id("by-hand") }, by("root"))).unwrap();
    assert_eq!((desk.text(), desk.beside()), (HEAD.trim_end().to_owned() + "\n", vec![]));
    // And where a person saved once more, on top of the agent's, the one before is kept aside.
    let desk = Desk::new(HEAD);
    die(&desk, "edit.exchanged");
    fs::write(desk.dir.path().join(&desk.beside()[0]), &by_hand).unwrap();
    fs::write(desk.file(), format!("{}# later\n", desk.text())).unwrap();
    runtime().block_on(desk.editor().make(provision("bob"), by("root"))).unwrap();
    assert!(desk.text().contains("# later") && !desk.text().contains("by-hand"));
    let kept: Vec<_> = fs::read_dir(desk.dir.path().join("state/edited")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>(), [by_hand]);
    assert_eq!(desk.beside(), [""; 0]);
}
