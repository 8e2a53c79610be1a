//! Which limit is written into which file, as text.

use crate::{
    desired::{Limits, TenantId},
    instance::limits::MAX_THREADS,
};

/// What one tenant may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupLimits {
    /// Bytes; `None` is no limit.
    pub memory_max: Option<u64>,
    /// Percent of one core; `None` is no limit.
    pub cpu_quota: Option<u32>,
}

/// What became of limits for an instance that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// They are in force.
    Now,
    /// It uses more than 90 % of a lowered memory limit, which would get it killed: it keeps the old one until it is
    /// restarted, drained. The other limits are in force.
    NeedsRestart,
}

/// A file of a cgroup and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) controller: &'static str,
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Kernels without swap have no such file.
    pub(super) may_be_missing: bool,
}

/// From here on the kernel slows an instance down and takes its caches, before it comes to a kill: percent of the limit.
const HIGH_PERCENT: u64 = 90;
/// Of `cpu.max`, µs: the kernel's own default.
const CPU_PERIOD: u64 = 100_000;

impl CgroupLimits {
    /// From a tenant's limits.
    pub fn of(limits: &Limits) -> Self {
        Self { memory_max: limits.memory_max, cpu_quota: limits.cpu_quota }
    }

    /// `memory.high`, bytes.
    pub(super) fn memory_high(&self) -> Option<u64> {
        // Divided first: a limit is far above 100 bytes and may be near the largest number.
        self.memory_max.map(|max| max / 100 * HIGH_PERCENT)
    }

    /// Everything that holds memory.
    pub(super) fn memory(&self) -> Vec<Setting> {
        let setting = |file, value| Setting { controller: "memory", file, value, may_be_missing: false };
        vec![
            setting("memory.max", number(self.memory_max)),
            setting("memory.high", number(self.memory_high())),
            // Its memory would only go elsewhere, slowly.
            Setting { may_be_missing: true, ..setting("memory.swap.max", "0".into()) },
            // sq is one process; half of it is of no use.
            setting("memory.oom.group", "1".into()),
        ]
    }

    /// Everything else.
    pub(super) fn others(&self) -> Vec<Setting> {
        let quota = self.cpu_quota.map(|percent| u64::from(percent) * CPU_PERIOD / 100);
        vec![
            Setting { controller: "cpu", file: "cpu.max", value: format!("{} {CPU_PERIOD}", number(quota)), may_be_missing: false },
            Setting { controller: "pids", file: "pids.max", value: MAX_THREADS.to_string(), may_be_missing: false },
        ]
    }

    /// Whether an instance that now uses `current` bytes can be given this limit where it is.
    pub(super) fn leaves_room_for(&self, current: u64) -> bool {
        self.memory_high().is_none_or(|high| current <= high)
    }
}

fn number(limit: Option<u64>) -> String {
    limit.map_or_else(|| "max".into(), |limit| limit.to_string())
}

/// The name of a tenant's cgroup.
pub(super) fn directory_name(id: &TenantId) -> String {
    format!("{PREFIX}{id}")
}

/// Whose cgroup bears this name.
pub(super) fn id_of(name: &str) -> Option<TenantId> {
    TenantId::parse(name.strip_prefix(PREFIX)?).ok()
}

const PREFIX: &str = "tenant-";

#[cfg(test)]
mod tests {
    use super::*;

    fn values(settings: &[Setting]) -> Vec<(&str, &str)> {
        settings.iter().map(|setting| (setting.file, setting.value.as_str())).collect()
    }

    #[test]
    fn the_free_tier_gets_20_mib_and_a_tenth_of_a_core() {
        let free = CgroupLimits { memory_max: Some(20 << 20), cpu_quota: Some(10) };
        assert_eq!(
            values(&free.memory()),
            [("memory.max", "20971520"), ("memory.high", "18874350"), ("memory.swap.max", "0"), ("memory.oom.group", "1")]
        );
        assert_eq!(values(&free.others()), [("cpu.max", "10000 100000"), ("pids.max", "1024")]);
    }

    #[test]
    fn no_limit_is_max() {
        let none = CgroupLimits::default();
        assert_eq!(values(&none.memory())[..2], [("memory.max", "max"), ("memory.high", "max")]);
        assert_eq!(values(&none.others())[0], ("cpu.max", "max 100000"));
        assert!(none.leaves_room_for(u64::MAX));
    }

    #[test]
    fn a_lowered_limit_needs_a_restart_beyond_nine_tenths_of_it() {
        let limit = CgroupLimits { memory_max: Some(1_000), cpu_quota: None };
        assert!(limit.leaves_room_for(900));
        assert!(!limit.leaves_room_for(901));
    }

    #[test]
    fn a_name_gives_the_id_back_and_no_other_name_does() {
        for id in ["user+x@example.com", "cgroup.procs", "tenant-a"] {
            let id = TenantId::parse(id).unwrap();
            assert_eq!(id_of(&directory_name(&id)), Some(id));
        }
        assert_eq!((id_of("cgroup.procs"), id_of("tenant-"), id_of("tenant-a b")), (None, None, None));
    }
}
