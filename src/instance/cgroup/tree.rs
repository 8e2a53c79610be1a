//! The agent's part of the tree: opened once at the start, with the controllers that this host lets it hand on.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CgroupError, file_error,
    place::{self, InKernel},
};
use crate::instance::isolation::Part;

/// Where the tenants' cgroups lie. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// The agent's own cgroup, or the one that was delegated to it.
    base: PathBuf,
    /// `<base>/tenants-<name>`.
    pub(super) tenants: PathBuf,
    controllers: Controllers,
    /// The agent lives in a leaf, so the proxy has to as well.
    leaves: bool,
}

/// What can be limited here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controllers {
    /// `memory_max`.
    pub memory: Part,
    /// `cpu_quota`.
    pub cpu: Part,
    /// Threads.
    pub pids: Part,
}

/// Why there are no cgroups for tenants here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Unavailable {
    /// What stands in the way.
    pub reason: String,
    /// What a person can do about it.
    pub remedy: String,
}

impl From<Unavailable> for Part {
    fn from(Unavailable { reason, remedy }: Unavailable) -> Self {
        Self::Off { reason, remedy }
    }
}

/// How a cgroup comes to be ours.
const DELEGATE: &str =
    "run the agent as the unit in contrib/systemd does (Delegate=yes), or by `systemd-run --user --scope -p Delegate=yes`";
/// How version 2 comes to have the controllers.
const UNIFY: &str = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";

/// The leaf in which the agent and the launcher live; systemd's DelegateSubgroup= may have put them there already.
const AGENT: &str = "agent";
/// The leaf of the proxy.
const PROXY: &str = "proxy";
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

impl Cgroups {
    /// Finds the agent's cgroup and makes the one for tenants of the agent `name` in it; moves the agent into a leaf where that
    /// is needed. Call it before anything is started.
    ///
    /// # Errors
    /// With the reason and the remedy, for `doctor`.
    pub fn open(name: &str) -> Result<Self, Unavailable> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let own = place::own_directory(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
            .ok_or_else(|| Unavailable { reason: "no cgroup hierarchy of version 2 is mounted here".into(), remedy: UNIFY.into() })?;
        Self::open_in(&own, name)
    }

    /// [`Self::open`], in the cgroup `own`.
    fn open_in(own: &Path, name: &str) -> Result<Self, Unavailable> {
        let base = match own.parent() {
            Some(parent) if own.ends_with(AGENT) => parent,
            _ => own,
        };
        let tenants = base.join(format!("tenants-{name}"));
        make(&tenants).map_err(|error| Unavailable {
            reason: format!("cgroups cannot be made in {}: {error}", base.display()),
            remedy: DELEGATE.into(),
        })?;
        let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let wanted: Vec<&str> = CONTROLLERS.into_iter().filter(|controller| names(&offered, controller)).collect();
        // The root of the whole tree is exempt from the rule that forbids processes beside controllers; it alone has no type.
        let is_root = !base.join("cgroup.type").exists();
        let leaves = own != base || (!wanted.is_empty() && !is_root);
        if leaves {
            // What comes of a failure stands below, with each controller.
            let _ = make(&base.join(AGENT)).and_then(|()| fs::write(base.join(AGENT).join("cgroup.procs"), "0"));
        }
        let part = |controller: &str| match wanted.contains(&controller) {
            true => enable(base, &tenants, controller),
            false => why_not_offered(base, controller),
        };
        let controllers = Controllers { memory: part("memory"), cpu: part("cpu"), pids: part("pids") };
        Ok(Self { base: base.into(), tenants, controllers, leaves })
    }

    /// What can be limited here.
    pub fn controllers(&self) -> &Controllers {
        &self.controllers
    }

    /// Moves the proxy into its leaf, where the agent lives in one.
    pub fn place_proxy(&self, pid: u32) -> Result<(), CgroupError> {
        if !self.leaves {
            return Ok(());
        }
        let leaf = self.base.join(PROXY);
        make(&leaf).map_err(file_error("making", &leaf))?;
        let procs = leaf.join("cgroup.procs");
        fs::write(&procs, pid.to_string()).map_err(file_error("moving the proxy into", procs))
    }

    /// Removes what is empty, when the agent has ended everything it started.
    pub fn clear(&self) {
        for id in self.list().unwrap_or_default() {
            let _ = self.remove(&id);
        }
        // They stay as long as anything is in them: the agent is in its own.
        for directory in [self.tenants.clone(), self.base.join(PROXY)] {
            let _ = fs::remove_dir(directory);
        }
    }

    /// One line on what is limited.
    pub fn part(&self) -> Part {
        let Controllers { memory, cpu, pids } = &self.controllers;
        let (on, off): (Vec<_>, Vec<_>) = CONTROLLERS.into_iter().zip([memory, cpu, pids]).partition(|(_, part)| part.is_on());
        let names = |parts: &[(&str, &Part)]| parts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let detail = match (on.as_slice(), off.as_slice()) {
            ([], _) => "no limits".into(),
            (on, []) => format!("limits of {}", names(on)),
            (on, off) => format!("limits of {}, not of {}", names(on), names(off)),
        };
        Part::On { detail }
    }
}

pub(super) fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether a list of controllers names this one.
fn names(list: &str, controller: &str) -> bool {
    list.split_ascii_whitespace().any(|name| name == controller)
}

fn enable(base: &Path, tenants: &Path, controller: &str) -> Part {
    for directory in [base, tenants] {
        let file = directory.join("cgroup.subtree_control");
        if fs::read_to_string(&file).is_ok_and(|list| names(&list, controller)) {
            continue;
        }
        if let Err(error) = fs::write(&file, format!("+{controller}")) {
            let busy = error.raw_os_error() == Some(libc::EBUSY);
            let why = if busy { "other processes live in this cgroup beside the agent".into() } else { error.to_string() };
            return Part::off(format!("{controller} cannot be handed on by {}: {why}", directory.display()), DELEGATE);
        }
    }
    Part::on()
}

fn why_not_offered(base: &Path, controller: &str) -> Part {
    match place::in_kernel(&fs::read_to_string("/proc/cgroups").unwrap_or_default(), controller) {
        InKernel::VersionOne => Part::off(format!("the {controller} controller belongs to cgroup version 1 on this host"), UNIFY),
        InKernel::Disabled => Part::off(
            format!("the {controller} controller is switched off in this kernel"),
            format!("take cgroup_disable={controller} off the kernel's command line, or add cgroup_enable={controller}"),
        ),
        _ => Part::off(format!("the {controller} controller is not handed on to {}", base.display()), DELEGATE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_a_controller_by_its_whole_name() {
        assert!(names("cpuset cpu io\n", "cpu"));
        assert!(!names("cpuset io\n", "cpu"));
    }

    #[test]
    fn a_cgroup_that_is_not_ours_is_refused_with_the_remedy() {
        let error = Cgroups::open_in(Path::new("/proc/self"), "a").unwrap_err();
        assert!(error.reason.contains("/proc/self") && error.remedy.contains("Delegate=yes"), "{error}");
    }
}
