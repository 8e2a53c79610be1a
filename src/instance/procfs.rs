//! The two facts of /proc/<pid>/stat that tell one process from another with the same pid.

use std::{fs, io};

/// What identifies a process beside its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Field 3: `R`, `S`, `T`, `Z` …
    pub(super) state: u8,
    /// Field 22: clock ticks since boot at which it started.
    pub(super) start_time: u64,
}

impl Stat {
    /// Whether it has exited and only waits to be reaped.
    pub(super) fn is_dead(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// Reads `/proc/<pid>/stat`.
pub(super) fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has an unknown form")))
}

/// Parses the text of a stat file (proc_pid_stat(5)).
pub(super) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let mut fields = fields(text)?;
    let state = *fields.next()?.as_bytes().first()?; // field 3
    let start_time = fields.nth(22 - 4)?.parse().ok()?; // field 22, after field 3
    Some(Stat { state, start_time })
}

/// Fields 14 and 15 together: clock ticks that it ran, in user space and in the kernel.
pub(super) fn parse_cpu_ticks(text: &[u8]) -> Option<u64> {
    let mut fields = fields(text)?;
    let user: u64 = fields.nth(14 - 3)?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    user.checked_add(kernel)
}

/// Field 3 and on. The name in field 2 may hold spaces and brackets, so counting starts at the last closing one.
fn fields(text: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    let after_name = text.iter().rposition(|&byte| byte == b')')? + 1;
    Some(std::str::from_utf8(text.get(after_name..)?).ok()?.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = b"42 (a) b (c)) S 1 42 42 0 -1 4194560 90 0 0 0 30 4 0 0 20 0 1 0 987654 2600000 200 18446744073709551615";
        assert_eq!(parse_cpu_ticks(text), Some(34));
        assert_eq!(parse_stat(text), Some(Stat { state: b'S', start_time: 987_654 }));
    }

    #[test]
    fn a_cut_line_is_no_stat() {
        assert_eq!(parse_stat(b"42 (sq) S 1 42"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn this_process_has_a_start_time() {
        assert!(stat(std::process::id()).unwrap().start_time > 0);
    }
}
