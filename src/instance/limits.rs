//! Resource limits the agent sets on itself once, so that every child inherits them.
//!
//! That leaves an instance less to do between fork and exec.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Fewest descriptors an instance may have: out of them, sq reads a phext as empty and the next update wipes the file.
/// sq serves up to 512 connections.
pub const MIN_DESCRIPTORS: u64 = 4096;

/// Most threads of an instance: twice the 512 connections that sq serves with a thread each, since one that has given its
/// connection back may not have ended yet, and a thread that cannot be started panics sq.
pub const MAX_THREADS: u64 = 1_024;

/// Largest file an instance may write, bytes. sq holds a whole phext in memory, several times over, and rewrites it at each
/// change, so one of this size can hardly be served any more. Beyond it SIGXFSZ ends sq in the middle of a write, which is
/// noticed and mended; a full disk is not: sq answers 200 and the text is cut.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// How far an instance stands back where more wants to run than the cores can: with a tenth of the weight of the proxy, by which everybody is served.
pub const NICE: i32 = 10;

/// Why the agent cannot start its instances safely on this host.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The hard limit stands too low and only root may raise it.
    #[error(
        "at most {hard} open files are allowed here, an instance needs {MIN_DESCRIPTORS}; raise it with LimitNOFILE= in the \
         service's unit, `ulimit -n`, or /etc/security/limits.conf"
    )]
    TooFewDescriptors {
        /// RLIMIT_NOFILE, hard.
        hard: u64,
    },
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Sets what instances inherit: no core dumps (they would hold users' text), all descriptors the hard limit allows,
/// and none of the agent's own. Call once, before the first spawn. Returns the number of descriptors.
pub fn prepare_agent_limits() -> Result<u64, LimitError> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| LimitError::System { what: "turning core dumps off", error: error.into() })?;
    let hard = getrlimit(Resource::Nofile).maximum;
    let descriptors = enough(hard)?;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
        .map_err(|error| LimitError::System { what: "raising the limit of open files", error: error.into() })?;
    crate::sys::close_inherited_on_exec()
        .map_err(|error| LimitError::System { what: "marking inherited descriptors close-on-exec (Linux 5.11 or later)", error })?;
    Ok(descriptors)
}

/// The hard limit as a number, if it is high enough (`None` is no limit).
fn enough(hard: Option<u64>) -> Result<u64, LimitError> {
    match hard.unwrap_or(u64::MAX) {
        hard if hard < MIN_DESCRIPTORS => Err(LimitError::TooFewDescriptors { hard }),
        hard => Ok(hard),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_low_a_hard_limit_is_refused_with_the_remedy() {
        assert!(enough(None).is_ok());
        assert_eq!(enough(Some(4096)).unwrap(), 4096);
        let text = enough(Some(1024)).unwrap_err().to_string();
        assert!(text.contains("1024") && text.contains("LimitNOFILE"), "{text}");
    }
}
