//! Log files that another process keeps open for append: rotation by size, and their last lines for messages.

use std::{
    collections::VecDeque,
    fs::{self, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// Size at which a log is rotated, bytes. One old file is kept, so a tenant's logs take at most about twice this.
pub const ROTATE_AT: u64 = 10 * 1024 * 1024;

/// Whether a log has reached `limit` bytes. One that is missing has not.
pub fn is_due(path: &Path, limit: u64) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_file() && found.len() >= limit),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies a log that has reached `limit` bytes to `<path>.1` and truncates it; tells whether it did. A missing log is
/// none to rotate.
///
/// Renaming would not do: the writer keeps its descriptor, and sq cannot be told to open a new file. As it writes in append
/// mode, it goes on at the new end. Lines written between the end of the copy and the truncation (some µs) are
/// lost. A crash before the truncation leaves both whole, and the next call does it again.
pub fn rotate_if_needed(path: &Path, limit: u64) -> io::Result<bool> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    if !is_due(path, limit)? {
        return Ok(false);
    }
    let mut log = OpenOptions::new().read(true).write(true).custom_flags(no_links).open(path)?;
    let (old, new) = (with_suffix(path, ".1"), with_suffix(path, ".1.new"));
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(no_links).open(&new)?;
    let copied = io::copy(&mut log, &mut copy).and_then(|_| fs::rename(&new, &old));
    if let Err(error) = copied {
        // No room for a copy (a full disk): keep the log, free what the half copy took.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    // Whatever came in since goes along as well.
    io::copy(&mut log, &mut copy)?;
    log.set_len(0)?;
    Ok(true)
}

/// The last `count` lines, for a message: at most 16 KiB back, control characters replaced. Empty where there is no log; nothing is opened that a
/// link of a tenant's sq names.
pub fn tail(path: &Path, count: usize) -> Vec<String> {
    const REACH: u64 = 16 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(REACH)))?;
        let mut bytes = Vec::new();
        file.take(REACH).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    last_lines(&String::from_utf8_lossy(&read().unwrap_or_default()), count)
}

/// A user's request line may stand in a log: nothing in it may steer the terminal of whoever reads the message.
fn last_lines(text: &str, count: usize) -> Vec<String> {
    let mut lines = VecDeque::with_capacity(count);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if lines.len() == count {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    lines.into_iter().map(|line| line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()).collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_writer_in_append_mode_goes_on_in_the_emptied_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sq.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        writer.write_all(b"0123456789").unwrap();
        assert!(!rotate_if_needed(&path, 11).unwrap(), "below the limit");
        assert!(rotate_if_needed(&path, 10).unwrap());
        writer.write_all(b"after").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after", "without a hole of ten NULs before it");
        assert_eq!(fs::read(dir.path().join("sq.log.1")).unwrap(), b"0123456789");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_missing_log_and_a_link_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!rotate_if_needed(&dir.path().join("none"), 1).unwrap());
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(!rotate_if_needed(&link, 1).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        assert_eq!((tail(&target, 1), tail(&link, 1)), (vec!["precious".to_owned()], vec![]));
    }

    #[test]
    fn the_last_lines_cannot_steer_a_terminal() {
        assert_eq!(last_lines("a\n\nb\x1b[2J\nc\n", 2), ["b\u{fffd}[2J", "c"]);
        assert_eq!(last_lines("", 2), Vec::<String>::new());
        assert_eq!(tail(Path::new("/no/such/log"), 3), Vec::<String>::new());
    }
}
