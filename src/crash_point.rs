//! Places at which an agent can be made to die, to show that the next one goes on from there.
//!
//! `SQ_AGENT_CRASH_AT=start.launched sq-agent run` kills itself (SIGKILL, as unprepared as any death) when it first gets there. Only in builds
//! with debug assertions; in others this is nothing at all. tests/system/crash_points.rs goes through all of them.
#![forbid(unsafe_code)]

/// The variable that names the place.
pub const VARIABLE: &str = "SQ_AGENT_CRASH_AT";

/// Every place, in the order of a life.
pub const POINTS: [&str; 51] = [
    "file.kept",        // tenants.toml is in force, its last good copy kept
    "take_in.noted",    // a new tenant has its slot and what is in force for it
    "apply.noted",      // a known tenant's limits are noted
    "recover.put_back", // what a broken write left is undone, its marker still stands
    "start.noted",      // port, epoch and program of a start are noted, nothing is started
    "start.directory",  // its directory is made
    "start.cgroup",     // its cgroup, where there is one, is ready
    "start.pid_file",   // its process runs, sq.pid says so
    "start.launched",   // nobody else has noted it
    "start.recorded",   // it is noted
    "start.proved",     // it answers, and no row says so
    "publish.before",   // rows are about to change
    "publish.after",    // they have changed
    "adopt.looked",     // an instance of an earlier agent has proved itself
    "adopt.watched",    // it is watched
    "stop.drained",     // its row says draining, nothing is in flight
    "stop.told",        // its process was told to end
    "stop.ended",       // it has ended
    "stop.cleared",     // that is noted
    "remove.noted",     // a removed tenant has given up its port
    "remove.cgroup",    // its cgroup is gone
    "roll_out.kept",    // where a roll-out stands is kept
    "snapshot.copied",  // a snapshot's files are copied
    "snapshot.packed",  // and packed
    "snapshot.named",   // it counts from here on
    "restore.unpacked", // a snapshot lies beside what it is to replace
    "restore.kept",     // what is there is kept
    "restore.replaced", // one file is replaced
    "restore.done",     // all are
    "restore.told",     // the loop knows
    "alerts.kept",      // what is to be told is kept, and was not sent
    "gitops.fetched",   // the head of the branch is here
    "gitops.judged",    // it is good, and what a person wrote is kept
    "gitops.put",       // its file is in place, the loop does not know
    "gitops.told",      // the loop knows, and has not noted it
    "edit.written",     // an edited tenants.toml lies beside the one in place
    "edit.named",       // under a name that says what is done with it
    "edit.exchanged",   // in place; what stood there has not been looked at
    "edit.restored",    // a person's edit that stood there is back in place
    "edit.placed",      // in place for good, nobody is told
    "edit.fetched",     // the head of the branch is here
    "edit.committed",   // the change is a commit, here alone
    "edit.pushed",      // and pushed, nobody is told
    "proxy.spawned",    // a proxy process exists
    "proxy.serves",     // it serves
    "heir.ready",       // a new program could take over
    "heir.inherited",   // it has the lock
    "heir.settled",     // it has adopted everything
    "heir.done",        // and has said so
    "holder.gave",      // the old program has given the lock away
    "holder.followed",  // and knows that it was taken
];

/// The agent has come to `point`, one of [`POINTS`].
#[cfg(debug_assertions)]
pub(crate) fn reached(point: &str) {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(POINTS.contains(&point), "{point} is not listed");
    if CHOSEN.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref() == Some(point) {
        tracing::error!(point, "dies here, as it was asked to");
        // Nothing of this process runs after it.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// The agent has come to a point at which a build for tests could die.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_point: &str) {}
