//! What one instance costs in memory.

use std::{fs, io};

/// Memory of a process in bytes: PSS, which counts a page shared by n processes as 1/n.
///
/// RSS misleads here: an idle sq has 2.4 MB of it but only 0.16 MB of its own once many run. RSS is the answer only
/// where the kernel has no smaps_rollup or refuses it. An error means that the process has ended. Costs some 60 µs of
/// CPU, since the kernel walks all mappings: spread thousands over a minute.
pub fn memory_bytes(pid: u32) -> io::Result<u64> {
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        && let Some(bytes) = parse_pss(&text)
    {
        return Ok(bytes);
    }
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = parse_resident_pages(&statm).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages * rustix::param::page_size() as u64)
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
        assert!(memory_bytes(std::process::id()).unwrap() > 100_000);
        assert!(memory_bytes(4_194_304).is_err());
    }
}
