//! `sq-agent logs ID [--follow]`: what a tenant's sq wrote.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use rustix::fs::OFlags;

use super::{follow, snapshot::tenant};
use crate::desired::Desired;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent logs user1@example.com              # the last 50 lines\n  sq-agent logs user1@example.com --follow     # and what comes, until Ctrl-C\n\nIt is <state_dir>/users/<id>/sq.log; beyond 10 MB it goes on anew, and sq.log.1 has what was before."
)]
pub(super) struct Args {
    /// The tenant
    id: String,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// So many of the last lines
    #[arg(long, short = 'n', default_value_t = 50)]
    lines: usize,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = tenant(&args.id)?;
    let dir = desired.user_dir(&id);
    let there = desired.tenants.contains_key(&id) || dir.try_exists()?;
    anyhow::ensure!(there, "no tenant {id}, now or before: {} is not there", dir.display());
    let mut log = Log::new(dir.join("sq.log"));
    let mut shown = String::new();
    if let Some(mut older) = open(&dir.join("sq.log.1"))? {
        read_to(&mut older, &mut shown)?;
    }
    shown.push_str(&log.more()?);
    let lines: Vec<&str> = shown.lines().collect();
    for line in &lines[lines.len().saturating_sub(args.lines)..] {
        if !follow::line(&clean(line))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        follow::pause();
        for line in log.more()?.lines() {
            if !follow::line(&clean(line))? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// A log that is appended to, and now and then emptied.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    at: u64,
    /// The begin of a line whose end has not come.
    begun: Vec<u8>,
}

impl Log {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, at: 0, begun: Vec::new() }
    }

    /// The whole lines that came since the last call.
    pub(super) fn more(&mut self) -> io::Result<String> {
        let named = open(&self.path)?;
        let same = |one: &File, other: &File| -> io::Result<bool> {
            let (one, other) = (one.metadata()?, other.metadata()?);
            Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        match (&self.file, named) {
            (Some(old), Some(new)) if same(old, &new)? => {}
            (_, Some(new)) => (self.file, self.at) = (Some(new), 0),
            (_, None) => {}
        }
        let Some(file) = &mut self.file else { return Ok(String::new()) };
        if file.metadata()?.len() < self.at {
            (self.at, self.begun) = (0, Vec::new());
        }
        file.seek(SeekFrom::Start(self.at))?;
        self.at += file.read_to_end(&mut self.begun)? as u64;
        let whole = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.begun.split_off(whole);
        Ok(String::from_utf8_lossy(&std::mem::replace(&mut self.begun, rest)).into_owned())
    }
}

/// A tenant's sq may write in its directory: nothing is opened that a link of it names.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_to(file: &mut File, text: &mut String) -> io::Result<()> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    text.push_str(&String::from_utf8_lossy(&bytes));
    Ok(())
}

/// A user's request line may stand in a log: nothing in it may steer the terminal of whoever reads it.
pub(super) fn clean(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    #[test]
    fn lines_come_whole_and_once_also_after_the_log_was_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sq.log");
        let mut log = Log::new(path.clone());
        assert_eq!(log.more().unwrap(), "", "there is none yet");
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        writer.write_all(b"one\ntw").unwrap();
        assert_eq!(log.more().unwrap(), "one\n");
        writer.write_all(b"o\n").unwrap();
        assert_eq!((log.more().unwrap(), log.more().unwrap()), ("two\n".into(), String::new()));
        writer.set_len(0).unwrap();
        writer.write_all(b"3\n").unwrap();
        assert_eq!(log.more().unwrap(), "3\n");
    }

    #[test]
    fn a_link_is_not_followed_and_no_line_steers_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret\n").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("sq.log")).unwrap();
        assert!(Log::new(dir.path().join("sq.log")).more().is_err());
        assert_eq!(clean("a\x1b[2J\tb"), "a\u{fffd}[2J\tb");
    }
}
