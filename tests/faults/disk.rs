//! Disks of the tests' own, mounted where the tenants' files lie.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::support::{
    eventually,
    host::{Host, ran},
};

/// A mounted file system. It is gone from its place with the test, before the host is, which goes on in it until its end.
pub(crate) struct Disk {
    at: PathBuf,
    /// Of an image: the loop device, and what its file lies on.
    image: Option<(String, TempDir)>,
}

fn run(command: &str, args: &[&str]) -> String {
    let ran = ran(Command::new(command).args(args));
    assert_eq!(ran.code, 0, "{command} {args:?}: {}{} (this test takes root, which may mount)", ran.out, ran.err);
    ran.out.trim().to_owned()
}

/// Whether this user may mount; says so where not.
pub(crate) fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root may mount the disk that is to fail");
    }
    root
}

fn users(host: &Host) -> PathBuf {
    let users = host.state_dir().join("users");
    fs::create_dir_all(&users).unwrap();
    users
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Disk {
    /// A small one in memory, under a host that does not run yet.
    pub(crate) fn small(host: &Host, megabytes: usize) -> Self {
        let at = users(host);
        run("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=711"), "sq-agent-test", path(&at)]);
        Self { at, image: None }
    }

    /// ext4 on an image that is larger than what its own disk, of `megabytes`, can hold: once that is full, what the file system writes
    /// fails with an I/O error.
    pub(crate) fn on_a_failing_device(host: &Host, megabytes: usize) -> Self {
        Self::ext4(host, megabytes, &[])
    }

    /// ext4 with the small inodes of old ones: their times are whole seconds.
    pub(crate) fn with_coarse_times(host: &Host) -> Self {
        Self::ext4(host, 64, &["-I", "128"])
    }

    fn ext4(host: &Host, megabytes: usize, more: &[&str]) -> Self {
        let below = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "sq-agent-test", path(below.path())]);
        let image = below.path().join("image");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let options = ["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4"];
        run("mke2fs", &[&options[..], more, &[path(&image)]].concat());
        let device = run("losetup", &["--find", "--show", path(&image)]);
        let at = users(host);
        run("mount", &["-o", "errors=remount-ro", &device, path(&at)]);
        Self { at, image: Some((device, below)) }
    }

    /// Where its image lies.
    pub(crate) fn below(&self) -> &Path {
        self.image.as_ref().unwrap().1.path()
    }

    /// Takes all room that is left.
    pub(crate) fn fill(at: &Path) -> Filler {
        let file = at.join("filler");
        let mut filler = File::create(&file).unwrap();
        for size in [1 << 20, 4_096, 1] {
            while filler.write_all(&vec![b'x'; size]).is_ok() {}
        }
        Filler(file)
    }

    /// Takes room until only so much is left, bytes.
    pub(crate) fn leave(at: &Path, left: u64) -> Filler {
        let file = at.join("filler");
        let found = rustix::fs::statvfs(at).unwrap();
        let takes = (found.f_bavail * found.f_frsize).checked_sub(left).unwrap();
        fs::write(&file, vec![b'x'; takes.try_into().unwrap()]).unwrap();
        Filler(file)
    }

    /// What an ext4 does that found an error in itself: no more writes.
    pub(crate) fn fail(&self) {
        let device = &self.image.as_ref().unwrap().0;
        fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", device.trim_start_matches("/dev/")), "test").unwrap();
    }

    /// What an operator does about that. Nobody may use it, but whose end the kernel has still to finish.
    pub(crate) async fn mend(&self) {
        let device = &self.image.as_ref().unwrap().0;
        eventually("nothing holds the disk any more", async || ran(Command::new("umount").arg(&self.at)).code == 0).await;
        let ran = ran(Command::new("e2fsck").args(["-f", "-y", device]));
        assert!(ran.code <= 1, "{ran:?}");
        run("mount", &[device, path(&self.at)]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not asserted: another failure is being told.
        let run = |command: &str, args: &[&str]| ran(Command::new(command).args(args));
        run("umount", &["--lazy", path(&self.at)]);
        if let Some((device, below)) = &self.image {
            run("losetup", &["--detach", device]);
            run("umount", &["--lazy", path(below.path())]);
        }
    }
}

/// A directory in which nothing can be changed.
pub(crate) struct ReadOnly(PathBuf);

impl ReadOnly {
    pub(crate) fn make(directory: &Path) -> Self {
        run("mount", &["--bind", path(directory), path(directory)]);
        run("mount", &["-o", "remount,bind,ro", path(directory)]);
        Self(directory.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        ran(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// What fills a disk.
pub(crate) struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
