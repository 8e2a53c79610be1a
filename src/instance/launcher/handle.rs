//! The agent's end of the launcher: starts it, starts it again when it died, and asks.

use std::{
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, openat},
};

use super::{
    line::{LauncherError, Line, io_error, namespaces_of},
    wire::{Enter, Launch, MAX_DESCRIPTORS, Ready as Found, Reply, Request},
};
use crate::instance::{
    cgroup::{CgroupError, Cgroups},
    isolation::{Isolation, Part, Wanted},
    network::Network,
    owner,
    process::Process,
    sandbox::Parts,
    scan,
    spawn::{self, Ready, SpawnError, SpawnSpec, file_error},
};

/// What a launcher is started with.
pub struct LauncherConfig {
    /// This program. `/proc/self/exe` is the very one that runs, though its file may have been replaced meanwhile.
    pub exe: PathBuf,
    /// Holds `users/`.
    pub state_dir: PathBuf,
    /// How instances are to be kept apart, as far as the host permits.
    pub wanted: Wanted,
    /// An instance of an earlier agent that goes on: its network is the one to live in, be it the host's. `None` makes a new one.
    pub like: Option<u32>,
    /// Where tenants have cgroups; else why not.
    pub cgroups: Result<Cgroups, Part>,
}

/// Why an instance could not be started. sq's own failures come later, as an exit.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its directory is not as it has to be.
    #[error(transparent)]
    Directory(#[from] SpawnError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The launcher.
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// A step between fork and exec failed.
    #[error("starting {}: {why}", binary.display())]
    Exec {
        /// The program.
        binary: PathBuf,
        /// Which step, and what the system said.
        why: String,
    },
}

/// Starts instances and makes sockets in their network. Cheap to clone.
#[derive(Clone)]
pub struct Launcher(Arc<Shared>);

struct Shared {
    config: LauncherConfig,
    line: Mutex<Line>,
    pid: AtomicU32,
    /// User namespace, where there is one of its own, then network namespace; empty for the host's.
    namespaces: Vec<OwnedFd>,
    isolation: Mutex<Isolation>,
    parts: Parts,
    /// Sockets made in advance: one trip for many.
    stock: Mutex<Vec<OwnedFd>>,
}

/// How long a child may take from fork to exec; it takes under a millisecond.
const EXEC_WITHIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Of -1000 (never) to 1000 (first): far above what else runs on the host.
const OOM_SCORE: &str = "500";

impl Launcher {
    /// Starts the launcher process. Call [`crate::instance::limits::prepare_agent_limits`] before: what is limited there is
    /// inherited. Blocks for some 20 ms, while the launcher tries what this host permits.
    pub fn start(config: LauncherConfig) -> Result<Self, LauncherError> {
        let Wanted { network, landlock, seccomp, privileges, .. } = config.wanted;
        let parts = Parts { privileges, landlock, seccomp };
        let existing = config.like.map(|pid| namespaces_of(pid).map_err(|error| LauncherError::Network { pid, why: error.to_string() }));
        let existing = existing.transpose()?;
        let enter = match &existing {
            None if !network => Enter::Host,
            Some(namespaces) if namespaces.is_empty() => Enter::Host,
            Some(_) => Enter::Join,
            None => Enter::New,
        };
        let user = own_user(&config);
        let try_user = user.is_on().then_some(owner::FIRST_USER);
        let (mut line, mut found, mut namespaces) =
            Line::begin(&config.exe, enter, existing.as_deref().unwrap_or_default(), parts, try_user)?;
        match (enter, &found.network, config.like) {
            (Enter::Join, Part::Off { reason, .. }, Some(pid)) => return Err(LauncherError::Network { pid, why: reason.clone() }),
            // Half of it may be done: another process starts afresh, in the host's network.
            (Enter::New, Part::Off { .. }, _) => {
                let why = found.network;
                (line, found, namespaces) = Line::begin(&config.exe, Enter::Host, &[], parts, try_user)?;
                found.network = why;
            }
            (Enter::Host, _, Some(_)) if network => {
                found.network =
                    Part::off("instances of an earlier agent live in the host's network", "stop the agent with its instances once");
            }
            _ => {}
        }
        let cgroup = config.cgroups.as_ref().map_or_else(Clone::clone, Cgroups::part);
        let Found { network, privileges, landlock, seccomp, user: tried } = found;
        let isolation = Isolation { network, landlock, seccomp, privileges, user: if user.is_on() { tried } else { user }, cgroup };
        // What this host cannot do is not asked of each start.
        let parts =
            Parts { privileges: isolation.privileges.is_on(), landlock: isolation.landlock.is_on(), seccomp: isolation.seccomp.is_on() };
        let pid = AtomicU32::new(line.pid());
        let (line, isolation, stock) = (Mutex::new(line), Mutex::new(isolation), Mutex::default());
        Ok(Self(Arc::new(Shared { config, line, pid, namespaces, isolation, parts, stock })))
    }

    /// What keeps instances apart here.
    pub fn isolation(&self) -> Isolation {
        lock(&self.0.isolation).clone()
    }

    /// The network of the instances.
    pub fn network(&self) -> Network {
        if self.0.namespaces.is_empty() { Network::host() } else { Network::apart(self.clone()) }
    }

    /// What the proxy needs to enter that network by setns, in this order: its user namespace, where it has one of its own, and
    /// its network namespace. Empty for the host's.
    pub fn namespaces(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.namespaces.iter().map(OwnedFd::try_clone).collect()
    }

    /// The tenants' cgroups, where there are any.
    pub fn cgroups(&self) -> Option<&Cgroups> {
        self.0.config.cgroups.as_ref().ok()
    }

    /// The launcher's process id.
    pub fn pid(&self) -> u32 {
        self.0.pid.load(Ordering::Relaxed)
    }

    /// Starts sq as `spec` says: in its cgroup, as its user, in its sandbox. Returns once sq's image runs, not once it listens:
    /// wait with [`crate::instance::probe::until_ready`]. Blocks for about 2 ms; must run inside a tokio runtime
    /// (`spawn_blocking` will do).
    pub fn launch(&self, spec: &SpawnSpec) -> Result<Process, LaunchError> {
        let ready = Ready::make(spec)?;
        crate::crash_point::reached("start.directory");
        let args = ready.command_line(spec)?;
        let user = self.user_for(spec);
        let directory = open_directory(&ready.user_dir)?;
        let data = prepare_data(&ready, &directory, user)?;
        let cgroup = self.cgroups().map(|cgroups| cgroups.prepare(&spec.id, &spec.limits)).transpose()?;
        crate::crash_point::reached("start.cgroup");
        let (errors, theirs) = io::pipe().map_err(|error| io_error("making a pipe", error))?;

        let launch = Launch {
            program: spec.binary.clone(),
            args,
            user,
            parts: self.0.parts,
            port: spec.port,
            data: data.len(),
            cgroup: cgroup.is_some(),
        };
        let mut fds = vec![directory.as_fd(), ready.log.as_fd(), theirs.as_fd()];
        fds.extend(data.iter().map(AsFd::as_fd));
        fds.extend(cgroup.iter().map(AsFd::as_fd));
        let asked = self.ask(&Request::Launch(launch), &fds);
        drop(theirs);
        let (reply, mut received) = match asked {
            Ok(answered) => answered,
            Err(error) => {
                self.end_unheard(spec, errors);
                return Err(error.into());
            }
        };
        let (Reply::Launched { pid }, Some(pidfd)) = (reply, received.pop()) else { return Err(LauncherError::OutOfTurn.into()) };
        // Where /proc hides what may not be traced (ProtectProc=invisible), it shows the child only once that is sq.
        if let Some(why) = failure(errors) {
            Process::end_newborn(&pidfd);
            return Err(LaunchError::Exec { binary: spec.binary.clone(), why });
        }
        let process = Process::from_birth(pid, pidfd).map_err(|error| io_error("watching the new process", error))?;
        // A host that is out of memory takes an instance rather than the agent, whose unit stands far below. Where it cannot be
        // written, the kernel chooses by size alone.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        spawn::note(&process, &ready.user_dir);
        crate::crash_point::reached("start.pid_file");
        Ok(process)
    }

    /// A TCP socket in the instances' network.
    pub(in crate::instance) fn socket(&self) -> io::Result<OwnedFd> {
        let mut stock = lock(&self.0.stock);
        if stock.is_empty() {
            let more = || self.ask(&Request::Sockets { count: MAX_DESCRIPTORS }, &[]);
            // Sockets can be asked for again, where it died over the first question.
            match more().or_else(|_| more()).map_err(io::Error::other)? {
                (Reply::Sockets, sockets) => *stock = sockets,
                _ => return Err(io::Error::other(LauncherError::OutOfTurn)),
            }
        }
        stock.pop().ok_or_else(|| io::Error::other(LauncherError::OutOfTurn))
    }

    /// Ends the launcher process; instances go on. A later request starts it again.
    pub fn end(&self) {
        lock(&self.0.line).end();
    }

    /// Asks and hears the answer. A launcher that turns out to be dead is started anew, in the same network, and asked again,
    /// unless it may have done what it was asked to do.
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), LauncherError> {
        let mut line = lock(&self.0.line);
        if let Err(error) = line.say(request, fds) {
            tracing::warn!(%error, "the launcher of instances has died and is started again");
            *line = self.again()?;
            self.0.pid.store(line.pid(), Ordering::Relaxed);
            line.say(request, fds).map_err(|error| io_error("asking it", error))?;
        }
        line.hear()
    }

    fn again(&self) -> Result<Line, LauncherError> {
        let enter = if self.0.namespaces.is_empty() { Enter::Host } else { Enter::Join };
        let (line, found, _) = Line::begin(&self.0.config.exe, enter, &self.0.namespaces, self.0.parts, None)?;
        match found.network {
            Part::Off { reason, .. } if enter == Enter::Join => Err(LauncherError::Refused { what: reason, errno: None }),
            _ => Ok(line),
        }
    }

    /// The launcher died between the question and its answer: it may have started something whose number nobody told us. Nobody
    /// else has this start's key.
    fn end_unheard(&self, spec: &SpawnSpec, errors: io::PipeReader) {
        // At the end of the pipe a child has become sq, or is gone.
        let _ = failure(errors);
        for found in scan::scan(&self.0.config.state_dir).unwrap_or_default() {
            if found.id == spec.id
                && found.key == spec.key
                && let Ok(Some(process)) = Process::adopt(found.pid, found.start_time)
            {
                process.end_now();
            }
        }
    }

    /// The user that this instance runs as, where it has its own.
    fn user_for(&self, spec: &SpawnSpec) -> Option<u32> {
        let mut isolation = lock(&self.0.isolation);
        if !isolation.user.is_on() {
            return None;
        }
        // A missing program is told when it is to run.
        if let Ok(Some(closed)) = owner::closed_to_others(&spec.binary) {
            isolation.user = closed_part(&closed);
            tracing::warn!(closed = %closed.display(), "sq is out of reach of other users: instances run as root, without its privileges");
            return None;
        }
        Some(owner::user_of(spec.slot))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the child wrote into the error pipe; its end alone means that sq's image runs.
fn failure(errors: io::PipeReader) -> Option<String> {
    /// More than one message never comes.
    const LONGEST: u64 = 4_096;
    if matches!(poll(&mut [PollFd::new(&errors, PollFlags::IN)], Some(&EXEC_WITHIN)), Ok(0)) {
        return Some(format!("it did not come to run within {} s", EXEC_WITHIN.tv_sec));
    }
    let mut text = String::new();
    match errors.take(LONGEST).read_to_string(&mut text) {
        Ok(0) => None,
        Ok(_) => Some(text),
        Err(error) => Some(error.to_string()),
    }
}

/// Whether instances can have users of their own, as far as the agent can tell: the rest the launcher tries.
fn own_user(config: &LauncherConfig) -> Part {
    if !config.wanted.user {
        return Part::unwanted();
    }
    if !rustix::process::geteuid().is_root() {
        return Part::not_root();
    }
    match owner::make_passable(&config.state_dir).and_then(|()| owner::closed_to_others(&config.state_dir)) {
        Ok(None) => Part::on(),
        Ok(Some(closed)) => closed_part(&closed),
        Err(error) => Part::off(format!("{}: {error}", config.state_dir.display()), "make the state directory"),
    }
}

fn closed_part(closed: &Path) -> Part {
    Part::off(
        format!("{} is closed to other users, so no user of its own could reach sq or its data", closed.display()),
        format!("chmod o+x {}, or put the state directory and sq elsewhere, such as /var/lib/sq", closed.display()),
    )
}

fn open_directory(path: &Path) -> Result<OwnedFd, SpawnError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty()).map_err(|error| file_error("opening", path)(error.into()))
}

/// The directory that sq makes in its working directory, and needs none of.
const SQ_DIR: &str = ".sq";

/// Opens what the instance may write below, and brings its ownership in line where the agent is root.
fn prepare_data(ready: &Ready, directory: &OwnedFd, user: Option<u32>) -> Result<Vec<OwnedFd>, SpawnError> {
    let sq_dir = ready.user_dir.join(SQ_DIR);
    spawn::make_private_dir(&sq_dir)?;
    let data = vec![open_directory(&ready.data_dir)?, open_directory(&sq_dir)?];
    if rustix::process::geteuid().is_root() {
        if let (Some(_), Some(users)) = (user, ready.user_dir.parent()) {
            owner::make_passable(users).map_err(file_error("letting users through", users))?;
        }
        owner::let_through(directory, user).map_err(file_error("letting its user through", &ready.user_dir))?;
        for (directory, path) in data.iter().zip([&ready.data_dir, &sq_dir]) {
            owner::give(directory, user.unwrap_or(0)).map_err(file_error("giving to its user", path))?;
        }
    }
    Ok(data)
}
