//! Each way in which a tool changes a file leads to a notice, and nothing else does.

use std::os::unix::fs::symlink;

use super::*;

struct Bench {
    dir: PathBuf,
    notices: tokio::sync::mpsc::Receiver<()>,
    watch: Watch,
    _temp: tempfile::TempDir,
}

/// How long a notice may take in a test; far above what it takes, so that a busy machine does not fail it.
const DEADLINE: Duration = Duration::from_secs(20);

impl Bench {
    /// Watches `name` below a fresh directory that `prepare` has filled.
    fn new(name: &str, prepare: impl FnOnce(&Path)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        prepare(&dir);
        let (send, notices) = tokio::sync::mpsc::channel(1);
        let watch = Watch::start(&dir.join(name), send).unwrap();
        Self { dir, notices, watch, _temp: temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn notice(&mut self, within: Duration) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(within, self.notices.recv()).await }).is_ok_and(|notice| notice.is_some())
    }

    /// `change` is noticed.
    fn notices(&mut self, change: impl FnOnce(&Path)) {
        change(&self.dir);
        assert!(self.notice(DEADLINE), "not noticed");
        self.rest();
    }

    /// Waits until nothing more comes of what was done.
    fn rest(&mut self) {
        let start = Instant::now();
        while self.notice(Duration::from_millis(400)) {
            assert!(start.elapsed() < DEADLINE, "notices without end");
        }
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

#[test]
fn saving_replacing_deleting_and_making_the_file_are_noticed() {
    let mut bench = Bench::new("t.toml", |dir| write(&dir.join("t.toml"), "1"));
    bench.notices(|dir| write(&dir.join("t.toml"), "2"));
    bench.notices(|dir| {
        write(&dir.join("t.toml.new"), "3");
        fs::rename(dir.join("t.toml.new"), dir.join("t.toml")).unwrap();
    });
    bench.notices(|dir| fs::remove_file(dir.join("t.toml")).unwrap());
    bench.notices(|dir| write(&dir.join("t.toml"), "4"));
    bench.notices(|dir| fs::rename(dir.join("t.toml"), dir.join("away")).unwrap());
}

#[test]
fn other_files_and_our_own_reading_are_not() {
    let mut bench = Bench::new("t.toml", |dir| write(&dir.join("t.toml"), "1"));
    for i in 0..100 {
        write(&bench.path("instances.db-wal"), &i.to_string());
        assert!(fingerprint(&bench.path("t.toml")).is_some());
    }
    fs::create_dir(bench.path("state")).unwrap();
    write(&bench.path("state/t.toml"), "another");
    assert!(!bench.notice(Duration::from_millis(500)), "noticed what does not concern it");
    bench.notices(|dir| write(&dir.join("t.toml"), "2"));
}

#[test]
fn swapped_symlinks_are_noticed_as_kubernetes_swaps_them() {
    let mut bench = Bench::new("t.toml", |dir| {
        for version in ["..1", "..2"] {
            fs::create_dir(dir.join(version)).unwrap();
            write(&dir.join(version).join("t.toml"), version);
        }
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/t.toml", dir.join("t.toml")).unwrap();
    });
    bench.notices(|dir| {
        symlink("..2", dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    });
    // The new target is watched, wherever it lies; the old one no longer counts.
    bench.notices(|dir| write(&dir.join("..2/t.toml"), "edited in place"));
    write(&bench.path("..1/t.toml"), "stale");
    assert!(!bench.notice(Duration::from_millis(500)));
}

#[test]
fn a_target_in_another_directory_is_watched_too() {
    let mut bench = Bench::new("etc/t.toml", |dir| {
        fs::create_dir(dir.join("etc")).unwrap();
        fs::create_dir(dir.join("repo")).unwrap();
        write(&dir.join("repo/t.toml"), "1");
        symlink("../repo/t.toml", dir.join("etc/t.toml")).unwrap();
    });
    bench.notices(|dir| write(&dir.join("repo/t.toml"), "2"));
}

#[test]
fn a_directory_that_goes_and_comes_back_is_watched_again() {
    let mut bench = Bench::new("etc/t.toml", |dir| fs::create_dir(dir.join("etc")).unwrap());
    bench.notices(|dir| fs::remove_dir_all(dir.join("etc")).unwrap());
    bench.notices(|dir| fs::create_dir(dir.join("etc")).unwrap());
    bench.notices(|dir| write(&dir.join("etc/t.toml"), "1"));
    bench.notices(|dir| {
        fs::create_dir(dir.join("new")).unwrap();
        write(&dir.join("new/t.toml"), "2");
        fs::rename(dir.join("etc"), dir.join("old")).unwrap();
        fs::rename(dir.join("new"), dir.join("etc")).unwrap();
    });
    bench.notices(|dir| write(&dir.join("etc/t.toml"), "3"));
}

#[test]
fn a_storm_of_edits_is_a_few_notices_and_the_last_edit_is_among_them() {
    let mut bench = Bench::new("t.toml", |dir| write(&dir.join("t.toml"), ""));
    let start = Instant::now();
    let mut edits = 0;
    while start.elapsed() < Duration::from_millis(1_500) {
        write(&bench.path("t.toml"), &edits.to_string());
        edits += 1;
    }
    let last = fingerprint(&bench.path("t.toml"));
    let (mut notices, mut seen) = (0, None);
    while bench.notice(Duration::from_millis(400)) {
        notices += 1;
        seen = fingerprint(&bench.path("t.toml"));
    }
    assert!((1..=4).contains(&notices), "{notices} notices for {edits} edits");
    assert_eq!(seen, last);
}

#[test]
fn a_fingerprint_is_of_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert_eq!(fingerprint(&a), None);
    write(&a, "x");
    write(&b, "x");
    assert_eq!(fingerprint(&a), fingerprint(&b));
    write(&b, "y");
    assert_ne!(fingerprint(&a), fingerprint(&b));
}

#[test]
fn links_in_a_circle_end() {
    let dir = tempfile::tempdir().unwrap();
    symlink("b", dir.path().join("a")).unwrap();
    symlink("a", dir.path().join("b")).unwrap();
    assert_eq!(watch_points(&dir.path().canonicalize().unwrap().join("a")).len(), 2);
}

#[test]
fn files_that_are_followed_beside_it_are_noticed_and_those_of_before_no_longer() {
    let mut bench = Bench::new("t.toml", |dir| {
        write(&dir.join("t.toml"), "1");
        fs::create_dir(dir.join("tls")).unwrap();
        write(&dir.join("tls/cert.pem"), "1");
    });
    bench.watch.follow(vec![bench.path("tls/cert.pem"), bench.path("tls/missing.pem")]);
    bench.rest();
    bench.notices(|dir| write(&dir.join("tls/cert.pem"), "2"));
    bench.notices(|dir| write(&dir.join("tls/missing.pem"), "1"));
    bench.notices(|dir| write(&dir.join("t.toml"), "2"));
    bench.watch.follow(vec![]);
    bench.rest();
    write(&bench.path("tls/cert.pem"), "3");
    assert!(!bench.notice(Duration::from_millis(500)), "noticed what is no longer followed");
    bench.notices(|dir| write(&dir.join("t.toml"), "3"));
}
