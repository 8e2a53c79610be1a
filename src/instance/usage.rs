//! What one instance costs in memory, and what the host has of it.

use std::{fs, io};

use super::procfs;

/// What a process was found to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Proportional set size, which counts a page shared by n processes as 1/n.
    pub bytes: u64,
    /// Resident pages at that time.
    resident: u64,
}

/// Memory of a process. `last` holds as long as its count of resident pages is the same: that count is at hand, while for the
/// PSS the kernel walks all mappings, which costs some 60 µs. Others that begin or cease to share its pages change the PSS
/// as well, so ask without `last` now and then.
///
/// RSS alone misleads here: an idle sq has 2.4 MB of it but only 0.16 MB of its own once many run. RSS is the answer only
/// where the kernel has no smaps_rollup or refuses it. An error means that the process has ended.
pub fn memory(pid: u32, last: Option<Memory>) -> io::Result<Memory> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let resident = parse_resident_pages(&statm).ok_or(io::ErrorKind::InvalidData)?;
    if let Some(last) = last.filter(|last| last.resident == resident) {
        return Ok(last);
    }
    let pss = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok().and_then(|text| parse_pss(&text));
    Ok(Memory { bytes: pss.unwrap_or(resident * rustix::param::page_size() as u64), resident })
}

/// CPU time that a process has used since it began, all its threads together, microseconds. An error means that it has ended.
pub fn cpu_us(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let ticks = procfs::parse_cpu_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1))
}

/// `Pss:  163 kB` in smaps_rollup, in bytes. A zombie's file has no such line.
fn parse_pss(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib * 1024)
}

/// The second number of statm: resident pages.
fn parse_resident_pages(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn pss_is_read_and_not_one_of_its_parts() {
        let text = "5581-7ffd ---p 00000000 00:00 0 [rollup]\nRss:    2400 kB\nPss:     163 kB\nPss_Dirty:  90 kB\n";
        assert_eq!(parse_pss(text), Some(163 * 1024));
        assert_eq!(parse_pss("Rss: 1 kB\n"), None);
    }

    #[test]
    fn resident_pages_are_the_second_number_of_statm() {
        assert_eq!(parse_resident_pages("1400 600 500 40 0 300 0\n"), Some(600));
        assert_eq!(parse_resident_pages("\n"), None);
    }

    #[test]
    fn this_process_uses_some_memory_and_a_dead_one_is_an_error() {
        assert!(memory(std::process::id(), None).unwrap().bytes > 100_000);
        assert!(memory(4_194_304, None).is_err());
    }

    #[test]
    fn a_process_that_works_uses_cpu_time_and_a_dead_one_is_an_error() {
        let (before, started) = (cpu_us(std::process::id()).unwrap(), Instant::now());
        while cpu_us(std::process::id()).unwrap() < before + 30_000 {
            assert!(started.elapsed() < Duration::from_secs(60));
        }
        assert!(cpu_us(4_194_304).is_err());
    }

    #[test]
    fn what_was_measured_holds_while_the_resident_pages_are_the_same() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it has echoed, it has loaded all it needs; soon it waits for more, and nothing of it changes any more.
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let again = |resident| memory(cat.id(), Some(Memory { bytes: 1, resident }));
        let started = Instant::now();
        let (measured, same, other) = loop {
            let measured = memory(cat.id(), None);
            let (same, other) = measured.as_ref().map_or((None, None), |m| (again(m.resident).ok(), again(m.resident + 1).ok()));
            let rests = same.is_some_and(|same| same.bytes == 1) && other == measured.as_ref().ok().copied();
            if rests || started.elapsed() > Duration::from_secs(10) {
                break (measured, same, other);
            }
            std::thread::yield_now();
        };
        cat.kill().unwrap();
        cat.wait().unwrap();
        assert_eq!(same.unwrap().bytes, 1);
        assert_eq!(other.unwrap(), measured.unwrap());
    }
}
