//! What sq says in its log of a phext that it could not read or write. Its answers do not say it: a write that failed is answered with 200, and a
//! phext that could not be read counts as empty, so that the next write wipes it (sq-facts).

use std::io::{self, Read, Seek, SeekFrom};

use rustix::fs::Stat;

use super::directory::Directory;

/// What such lines hold, with the path of the phext behind it (sq 0.6.0, main.rs).
const COMPLAINTS: [&[u8]; 4] =
    [b"] disk write failed for ", b"Warning: Failed to read ", b"Warning: Failed to create empty phext ", b"] panic: "];

/// How far a log was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    inode: u64,
    offset: u64,
}

impl From<&Stat> for Mark {
    #[allow(clippy::cast_sign_loss, reason = "no file is shorter than nothing")]
    fn from(found: &Stat) -> Self {
        Self { inode: found.st_ino, offset: found.st_size as u64 }
    }
}

/// What stands in a log beyond a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Since {
    pub(super) mark: Option<Mark>,
    /// It complains of the phext, or cannot be known not to.
    pub(super) complains: bool,
}

/// Reads on from `mark`. Without one, or where the log is another one by now, nothing is known of what it said before: that counts as a complaint.
pub(super) fn since(directory: &Directory, mark: Option<Mark>, file: &str) -> io::Result<Since> {
    if let Some(mark) = mark
        && directory.stat_log()?.is_some_and(|found| Mark::from(&found) == mark)
    {
        return Ok(Since { mark: Some(mark), complains: false });
    }
    let Some((mut log, found)) = directory.open_log()? else { return Ok(Since { mark: None, complains: true }) };
    let now = Mark::from(&found);
    match mark {
        Some(mark) if mark == now => Ok(Since { mark: Some(now), complains: false }),
        Some(mark) if mark.inode == now.inode && mark.offset < now.offset => {
            let mut text = Vec::new();
            log.seek(SeekFrom::Start(mark.offset))?;
            log.take(now.offset - mark.offset).read_to_end(&mut text)?;
            Ok(Since { mark: Some(now), complains: complains(&text, file) })
        }
        _ => Ok(Since { mark: Some(now), complains: true }),
    }
}

/// Whether a line of `text` complains of the phext called `file`, or of a panic, which may have been about anything.
fn complains(text: &[u8], file: &str) -> bool {
    let path = format!("/{file}");
    text.split(|&byte| byte == b'\n').any(|line| {
        let complaint = COMPLAINTS.iter().find_map(|complaint| find(line, complaint).map(|at| &line[at + complaint.len()..]));
        complaint.is_some_and(|rest| find(line, b"] panic: ").is_some() || names(rest, path.as_bytes()))
    })
}

/// Whether `text` begins with a path that ends in `name`.
fn names(text: &[u8], name: &[u8]) -> bool {
    find(text, name).is_some_and(|at| matches!(text.get(at + name.len()), None | Some(b':' | b' ')))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn a_complaint_is_about_the_phext_that_it_names() {
        for (line, about) in [
            ("[#7] disk write failed for /s/users/u/phext-data/a.phext: No space left on device (os error 28)", true),
            ("Warning: Failed to read /s/users/u/phext-data/a.phext (creating empty): Too many open files", true),
            ("Warning: Failed to create empty phext /s/users/u/phext-data/a.phext: Read-only file system", true),
            ("[#7] panic: Any { .. }", true),
            ("[#7] disk write failed for /s/users/u/phext-data/ba.phext: x", false),
            ("[#7] disk write failed for /s/users/u/phext-data/a.phext.json: x", false),
            ("404: GET /a.phext HTTP/1.1", false),
            ("[#7] read error: connection closed", false),
            ("", false),
        ] {
            assert_eq!(complains(format!("first\n{line}\nlast").as_bytes(), "a.phext"), about, "{line}");
        }
    }

    #[test]
    fn only_what_came_since_is_read_and_a_log_that_is_not_known_counts_as_a_complaint() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("phext-data")).unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let look = |mark| since(&directory, mark, "a.phext").unwrap();
        assert!(look(None).complains, "no log");
        let mut log = fs::File::create(dir.path().join("sq.log")).unwrap();
        writeln!(log, "[#1] disk write failed for /d/a.phext: x").unwrap();
        let first = look(None);
        assert!(first.complains, "never read before");
        assert!(!look(first.mark).complains);
        writeln!(log, "Calculated").unwrap();
        let second = look(first.mark);
        assert!(!second.complains);
        writeln!(log, "[#2] disk write failed for /d/a.phext: x").unwrap();
        assert!(look(second.mark).complains);
        log.set_len(0).unwrap();
        assert!(look(second.mark).complains, "shorter than it was");
    }
}
