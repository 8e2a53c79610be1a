//! One tenant's cgroup.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Applied, CgroupError, CgroupLimits, Cgroups, CpuFigures, MemoryEvents, MemoryFigures, PidFigures,
    figures::keyed,
    file_error,
    limits::{Setting, directory_name, id_of},
    tree::make,
};
use crate::desired::TenantId;

/// How long killed processes may take to be gone: freeing some 100 MB takes milliseconds.
const DEATH: Duration = Duration::from_secs(5);

impl Cgroups {
    /// Makes the tenant's cgroup with its limits, for a start into it; what still lives in it is killed first, so that a second
    /// writer is impossible. Returns the open directory. Blocks, for as long as that takes, 5 s at most.
    ///
    /// It is made anew for each start: its counts then belong to that start, and a kernel that confuses a cgroup that was once
    /// killed with one that is being killed (seen in 6.18) does not kill what is born in it.
    pub fn prepare(&self, id: &TenantId, limits: &CgroupLimits) -> Result<OwnedFd, CgroupError> {
        let path = self.path(id);
        if path.exists() {
            if populated(&path)? {
                tracing::warn!(tenant = %id, "processes of an earlier start live in its cgroup and are killed");
                self.kill(id)?;
                await_empty(id, &path)?;
            }
            self.remove(id)?;
        }
        make(&path).map_err(file_error("making", &path))?;
        for setting in limits.memory().iter().chain(&limits.others()) {
            self.write(&path, setting)?;
        }
        File::open(&path).map(OwnedFd::from).map_err(file_error("opening", path))
    }

    /// Changes the limits of one that runs.
    pub fn apply(&self, id: &TenantId, limits: &CgroupLimits) -> Result<Applied, CgroupError> {
        let path = self.path(id);
        limits.others().iter().try_for_each(|setting| self.write(&path, setting))?;
        if self.controllers().memory.is_on() && !limits.leaves_room_for(number(&path, "memory.current")?) {
            return Ok(Applied::NeedsRestart);
        }
        limits.memory().iter().try_for_each(|setting| self.write(&path, setting))?;
        Ok(Applied::Now)
    }

    /// Pids of all that lives in it; none where it has no cgroup.
    pub fn processes(&self, id: &TenantId) -> Result<Vec<u32>, CgroupError> {
        let path = self.path(id).join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(file_error("reading", path)(error)),
        }
    }

    /// What it uses; `None` without the controller.
    pub fn memory(&self, id: &TenantId) -> Result<Option<MemoryFigures>, CgroupError> {
        if !self.controllers().memory.is_on() {
            return Ok(None);
        }
        let path = self.path(id);
        let peak = number(&path, "memory.peak").ok();
        Ok(Some(MemoryFigures {
            current: number(&path, "memory.current")?,
            peak,
            events: MemoryEvents::parse(&text(&path, "memory.events")?),
        }))
    }

    /// The processor time it used. Without the controller it is known, too, but for the throttling.
    pub fn cpu(&self, id: &TenantId) -> Result<CpuFigures, CgroupError> {
        Ok(CpuFigures::parse(&text(&self.path(id), "cpu.stat")?))
    }

    /// Its threads; `None` without the controller.
    pub fn pids(&self, id: &TenantId) -> Result<Option<PidFigures>, CgroupError> {
        if !self.controllers().pids.is_on() {
            return Ok(None);
        }
        let path = self.path(id);
        Ok(Some(PidFigures { current: number(&path, "pids.current")?, refused: keyed(&text(&path, "pids.events")?, "max") }))
    }

    /// Ends all that lives in it at once (Linux 5.14); where it has no cgroup, nothing does.
    pub fn kill(&self, id: &TenantId) -> Result<(), CgroupError> {
        let path = self.path(id).join("cgroup.kill");
        match write_existing(&path, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.path(id).exists() => Ok(()),
            written => written.map_err(file_error("writing", path)),
        }
    }

    /// Removes it; one that is gone already is no error, one in which something lives is.
    pub fn remove(&self, id: &TenantId) -> Result<(), CgroupError> {
        let path = self.path(id);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(file_error("removing", path)),
        }
    }

    /// Every tenant that has one, running or not.
    pub fn list(&self) -> Result<Vec<TenantId>, CgroupError> {
        let entries = fs::read_dir(&self.tenants).map_err(file_error("reading", &self.tenants))?;
        Ok(entries.flatten().filter_map(|entry| id_of(entry.file_name().to_str()?)).collect())
    }

    fn path(&self, id: &TenantId) -> PathBuf {
        self.tenants.join(directory_name(id))
    }

    /// Writes a setting whose controller there is.
    fn write(&self, path: &Path, setting: &Setting) -> Result<(), CgroupError> {
        let controllers = self.controllers();
        let part = match setting.controller {
            "memory" => &controllers.memory,
            "cpu" => &controllers.cpu,
            _ => &controllers.pids,
        };
        if !part.is_on() {
            return Ok(());
        }
        let file = path.join(setting.file);
        match write_existing(&file, &setting.value) {
            Err(error) if setting.may_be_missing && error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written.map_err(file_error("writing", file)),
        }
    }
}

/// Without O_CREAT, which the kernel refuses with a misleading error in a directory of its own.
fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn text(directory: &Path, file: &str) -> Result<String, CgroupError> {
    let path = directory.join(file);
    fs::read_to_string(&path).map_err(file_error("reading", path))
}

fn number(directory: &Path, file: &str) -> Result<u64, CgroupError> {
    let invalid = || file_error("reading", directory.join(file))(io::ErrorKind::InvalidData.into());
    text(directory, file)?.trim().parse().map_err(|_| invalid())
}

fn populated(path: &Path) -> Result<bool, CgroupError> {
    Ok(keyed(&text(path, "cgroup.events")?, "populated") != 0)
}

/// Waits until nothing lives in it. The kernel announces that as an exception on the events file.
fn await_empty(id: &TenantId, path: &Path) -> Result<(), CgroupError> {
    let events = path.join("cgroup.events");
    let failed = |error: io::Error| file_error("watching", &events)(error);
    let mut file = File::open(&events).map_err(failed)?;
    let deadline = Instant::now() + DEATH;
    loop {
        let mut now = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut now)).map_err(failed)?;
        if keyed(&now, "populated") == 0 {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CgroupError::StillAlive { id: id.clone(), path: path.into() });
        }
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}
