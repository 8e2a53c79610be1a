//! Where in the tree of cgroups this process stands: read from the text of two files in /proc.

use std::path::{Path, PathBuf};

/// The directory of this process's own cgroup, version 2, from /proc/self/cgroup and /proc/self/mountinfo (cgroups(7),
/// proc_pid_mountinfo(5)). `None` where no such hierarchy is mounted, or where it does not show this process's part.
pub(super) fn own_directory(cgroup: &str, mountinfo: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (root, point) = cgroup2_mount(line)?;
        // A container may see only a part of the tree: the part below `root`.
        let below = Path::new(own).strip_prefix(&root).ok()?;
        Some(if below.as_os_str().is_empty() { point } else { point.join(below) })
    })
}

/// Root and mount point of a line, if it is a cgroup2 mount.
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, file_system) = line.split_once(" - ")?;
    (file_system.split(' ').next()? == "cgroup2").then_some(())?;
    let mut fields = mount.split(' ').skip(3);
    Some((unescape(fields.next()?).into(), unescape(fields.next()?).into()))
}

/// Space, tab, newline and backslash stand as octal numbers there.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// What /proc/cgroups says of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InKernel {
    /// Belongs to a version 1 hierarchy here.
    VersionOne,
    /// Switched off on the kernel's command line.
    Disabled,
    /// There, for version 2.
    Free,
    /// Not built in. (Newer kernels do not list those of version 2 alone.)
    Unknown,
}

pub(super) fn in_kernel(proc_cgroups: &str, controller: &str) -> InKernel {
    let fields = |line: &str| -> Option<(u32, u32)> {
        let mut fields = line.split_ascii_whitespace();
        (fields.next()? == controller).then_some(())?;
        Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
    };
    match proc_cgroups.lines().find_map(fields) {
        Some((_, 0)) => InKernel::Disabled,
        Some((0, _)) => InKernel::Free,
        Some(_) => InKernel::VersionOne,
        None => InKernel::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn the_own_cgroup_is_found_in_the_one_tree_and_beside_version_1() {
        let unit = "0::/system.slice/sq-agent.service\n";
        assert_eq!(own_directory(unit, UNIFIED), Some("/sys/fs/cgroup/system.slice/sq-agent.service".into()));
        let hybrid = "8:pids:/\n4:memory:/a/b\n0::/\n";
        assert_eq!(own_directory(hybrid, HYBRID), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(own_directory("4:memory:/\n", HYBRID), None, "version 1 alone");
        assert_eq!(own_directory(unit, ""), None, "nothing mounted");
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_tree_sees_its_own_part() {
        let mount = "30 23 0:26 /docker/abc /sys/fs/cgroup\\040x ro - cgroup2 cgroup rw\n";
        assert_eq!(own_directory("0::/docker/abc/agent\n", mount), Some("/sys/fs/cgroup x/agent".into()));
        assert_eq!(own_directory("0::/docker/other\n", mount), None);
    }

    #[test]
    fn a_controller_is_free_taken_by_version_1_or_off() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t10\t1\nmemory\t4\t10\t1\npids\t0\t10\t0\n";
        assert_eq!(in_kernel(text, "cpu"), InKernel::Free);
        assert_eq!(in_kernel(text, "memory"), InKernel::VersionOne);
        assert_eq!(in_kernel(text, "pids"), InKernel::Disabled);
        assert_eq!(in_kernel(text, "io"), InKernel::Unknown);
    }
}
