//! The kernel's own kill for memory, where cgroups for memory can be had: in cgroup v2 by the limit of the instance's own, else by one of v1.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::support::processes::{ended_within, lives};

/// Less than any sq holds.
const TOO_LITTLE: &str = "262144";
/// sq needs more at its next write.
const WITHIN: Duration = Duration::from_millis(500);

/// Takes memory away from a process. Whether the kernel killed it for that; `None` where that is not to be had here.
pub(crate) fn starve(pid: u32) -> Option<bool> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).filter(|path| !path.is_empty());
    let unified = own.map(|path| PathBuf::from("/sys/fs/cgroup").join(path)).filter(|path| path.join("memory.max").exists());
    match unified {
        Some(group) => {
            let before = fs::read_to_string(group.join("memory.max")).ok()?;
            let kills = kills(&group.join("memory.events"));
            fs::write(group.join("memory.max"), TOO_LITTLE).ok()?;
            ended_within(pid, WITHIN);
            let _ = fs::write(group.join("memory.max"), before.trim());
            Some(self::kills(&group.join("memory.events")) > kills)
        }
        None => {
            let group = PathBuf::from(format!("/sys/fs/cgroup/memory/sq-torture-{pid}"));
            fs::create_dir(&group).ok()?;
            let moved = fs::write(group.join("memory.limit_in_bytes"), TOO_LITTLE)
                .and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
            if moved.is_ok() {
                ended_within(pid, WITHIN);
            }
            let killed = kills(&group.join("memory.oom_control")) > 0;
            if lives(pid) {
                let _ = fs::write("/sys/fs/cgroup/memory/cgroup.procs", pid.to_string());
            }
            // It is empty once who died in it has been reaped.
            let began = Instant::now();
            while fs::remove_dir(&group).is_err() && began.elapsed() < WITHIN {
                std::thread::yield_now();
            }
            moved.ok().map(|()| killed)
        }
    }
}

fn kills(file: &std::path::Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}
