//! Who listens on a port, for a message. Walks all of /proc, so only after a bind has failed.

use std::{fs, io, path::Path};

/// `pid 4711 (nginx)`, or `uid 33` where the process is not ours to see, or `None` where nothing listens (the socket is
/// bound and does not listen, or lives in another namespace).
///
/// `tables` is the directory of a network's tables in /proc.
pub fn of_port(tables: &Path, port: u16) -> Option<String> {
    let (uid, inode) = ["tcp", "tcp6"].iter().find_map(|table| listener(&fs::read_to_string(tables.join(table)).ok()?, port))?;
    let Ok(Some(pid)) = process_with_socket(inode) else { return Some(format!("a process of uid {uid}")) };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("pid {pid} ({})", name.trim_end()))
}

/// Finds a listening socket in the text of /proc/net/tcp (proc_pid_net(5)): its uid and inode.
fn listener(table: &str, port: u16) -> Option<(u32, u64)> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next()?; // 0100007F:1F90
        let state = fields.nth(1)?;
        let matches = state == LISTEN && u16::from_str_radix(local.rsplit(':').next()?, 16).ok()? == port;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        matches.then_some((uid, inode))
    })
}

fn process_with_socket(inode: u64) -> io::Result<Option<u32>> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // Others' descriptors are closed to us, and processes come and go: neither is an error here.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        if descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == Path::new(&wanted))) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2711 0100007F:9C40 01 00000000:00000000 00:00000000 00000000    33        0 111 1 0000000000000000 20 4 30 10 -1
   1: 00000000:2711 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 222 1 0000000000000000 100 0 0 10 0
";

    #[test]
    fn the_listener_is_found_and_not_a_connection_on_the_same_port() {
        assert_eq!(listener(TABLE, 10_001), Some((1000, 222)));
        assert_eq!(listener(TABLE, 10_002), None);
        assert_eq!(listener("", 10_001), None);
    }
}
