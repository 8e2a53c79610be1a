//! How much memory this host has left: by /proc/meminfo, and by the limit of whatever cgroup the agent lives in.

use std::{fs, path::Path};

use super::Share;

/// Where cgroups are mounted, of version 2 alone, of both, of version 1.
const ROOTS: [(&str, Names); 3] = [("/sys/fs/cgroup", V2), ("/sys/fs/cgroup/unified", V2), ("/sys/fs/cgroup/memory", V1)];

/// What the files of a cgroup are called.
#[derive(Debug, Clone, Copy)]
struct Names {
    /// In /proc/self/cgroup, behind the number: the controllers.
    controllers: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Pages of files that the kernel takes back when it needs them, in memory.stat.
    given_back: &'static str,
}

const V2: Names = Names { controllers: "", limit: "memory.max", usage: "memory.current", given_back: "inactive_file " };
const V1: Names =
    Names { controllers: "memory", limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", given_back: "total_inactive_file " };

/// The memory of this host, or of the cgroup that has least of it left: that is where this agent and its instances end first. A few small files; some 0.1 ms.
pub(crate) fn host_memory() -> Option<Share> {
    let host = of_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = ROOTS.iter().flat_map(|(root, names)| of_cgroups(Path::new(root), *names, &own));
    Some(tightest(host, limits))
}

/// The one of which the largest part is taken. A limit above what the host has is none.
fn tightest(host: Share, limits: impl Iterator<Item = Share>) -> Share {
    let part = |share: &Share| u128::from(share.used) * 1_000_000 / u128::from(share.total.max(1));
    limits.filter(|share| share.total < host.total).chain([host]).max_by_key(part).unwrap_or(host)
}

/// What cannot be had any more without taking it from somebody: all but MemAvailable.
fn of_meminfo(text: &str) -> Option<Share> {
    let kib = |name: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim_end().parse().ok()
    };
    let (total, available) = (kib("MemTotal")?, kib("MemAvailable")?);
    Some(Share { used: total.saturating_sub(available) << 10, total: total << 10 })
}

/// The limits above this process, each with what is taken of it.
fn of_cgroups(root: &Path, names: Names, own: &str) -> Vec<Share> {
    let Some(path) = path_of(own, names.controllers) else { return Vec::new() };
    let mut place = root.join(path.trim_start_matches('/'));
    // In a container the path may be that of the host, which is not to be seen: then the root is the container's own.
    if !place.starts_with(root) || !place.is_dir() {
        place = root.to_owned();
    }
    place.ancestors().take_while(|place| place.starts_with(root)).filter_map(|place| of_cgroup(place, names)).collect()
}

/// The path of this process in the hierarchy with these controllers, out of /proc/self/cgroup.
fn path_of<'a>(own: &'a str, controllers: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let (named, path) = line.split_once(':')?.1.split_once(':')?;
        (named == controllers || (!controllers.is_empty() && named.split(',').any(|one| one == controllers))).then_some(path)
    })
}

fn of_cgroup(place: &Path, names: Names) -> Option<Share> {
    let number = |name: &str| -> Option<u64> { fs::read_to_string(place.join(name)).ok()?.trim().parse().ok() };
    let (total, usage) = (number(names.limit)?, number(names.usage)?);
    let given_back = fs::read_to_string(place.join("memory.stat")).ok();
    let given_back = given_back.and_then(|stat| stat.lines().find_map(|line| line.strip_prefix(names.given_back)?.trim().parse().ok()));
    Some(Share { used: usage.saturating_sub(given_back.unwrap_or(0)), total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_counts_as_free() {
        let text = "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    200 kB\nBuffers: 5 kB\n";
        assert_eq!(of_meminfo(text), Some(Share { used: 800 << 10, total: 1_000 << 10 }));
        assert_eq!(of_meminfo("MemTotal: 1000 kB\n"), None, "a kernel before 3.14");
        assert!(host_memory().is_some_and(|share| share.used > 0 && share.total > share.used));
    }

    #[test]
    fn what_is_nearly_full_counts_and_not_what_is_large() {
        let [host, full, roomy, beyond] = [(500, 1_000), (90, 100), (300, 900), (1_999, 2_000)].map(|(used, total)| Share { used, total });
        assert_eq!(tightest(host, [roomy, full, beyond].into_iter()), full);
        assert_eq!(tightest(host, [roomy, beyond].into_iter()), host);
    }

    #[test]
    fn the_limit_of_each_cgroup_above_counts() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        fs::create_dir_all(&place).unwrap();
        let put = |place: &Path, limit: &str, usage: &str, stat: &str| {
            fs::write(place.join("memory.max"), limit).unwrap();
            fs::write(place.join("memory.current"), usage).unwrap();
            fs::write(place.join("memory.stat"), stat).unwrap();
        };
        put(&place, "max\n", "50\n", "");
        put(&dir.path().join("a"), "100\n", "90\n", "anon 1\ninactive_file 30\nactive_file 3\n");
        let own = "4:memory:/x\n1:name=systemd:/y\n0::/a/b\n";
        assert_eq!(of_cgroups(dir.path(), V2, own), [Share { used: 60, total: 100 }], "no limit is none");
        assert_eq!(of_cgroups(dir.path(), V2, "0::/elsewhere\n"), [], "which is not to be seen");
        assert_eq!((path_of(own, "memory"), path_of("9:cpu,memory:/z\n", "memory"), path_of(own, "pids")), (Some("/x"), Some("/z"), None));
    }
}
