//! The guard around sq's writes: an answer of 200 that left the proxy stays true, whatever dies next.
//!
//! sq rewrites a phext in place, without a sync: killed between a request and its answer it leaves an empty or a cut file, and it answers 200 for
//! what a full disk did not take (sq-facts). So each write passes through the tenant's lane alone, with a good copy and a marker beside it: see
//! [`write`]. `users/<id>/guard/` holds the lane, the marker and the copies, out of the instance's reach.
//!
//! Who does what: the proxy, which reads no file, asks its guard ([`process`]) before and after each write; the agent puts back what is in
//! doubt before it starts an instance ([`recover`]). The lane keeps the two apart.
#![forbid(unsafe_code)]

mod complaints;
mod directory;
mod group_sync;
mod keeper;
mod lane;
pub mod process;
mod sandbox;
mod target;
mod turn;
pub(crate) mod wire;
pub mod write;

use std::{io, path::Path, time::Duration};

pub use directory::{Directory, GUARD_DIR};
pub use lane::Lane;
pub use target::{BadName, Call, Target};
pub use write::{Durability, Marker, Recovered};

use crate::{file::FileError, instance::process::boot_id};
use directory::Guarded;

/// How long a recovery waits for a proxy that may be about to finish a write: sq has 35 s to answer one.
const PATIENCE: Duration = Duration::from_secs(40);

/// Why a doubt could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Somebody holds the lane.
    #[error("a write of this tenant is still under way after {} s; the proxy that holds it shows in /proc/locks", PATIENCE.as_secs())]
    Busy,
    /// The lane's or the marker's file, or the host's boot id.
    #[error("in {GUARD_DIR}/, or asking which boot this is: {0}")]
    Lane(#[from] io::Error),
    /// The files.
    #[error("{0}; mend that, and the file is put back at the next try")]
    Files(#[from] FileError),
}

/// Puts back what a broken write left in doubt in `user_dir`. Nothing that writes there may live. Blocks, as a rule for some 50 µs.
pub fn recover(user_dir: &Path) -> Result<Option<Recovered>, RecoverError> {
    if !Directory::is_marked_in(user_dir)? {
        return Ok(None);
    }
    let directory = Directory::open(user_dir)?;
    let _lane = Lane::take(&directory, PATIENCE)?.ok_or(RecoverError::Busy)?;
    // Whoever held it may have finished.
    let Some(marker) = directory.marker()? else {
        // One that cannot be read would refuse every write from here on.
        directory.unmark()?;
        return Ok(None);
    };
    let mut guarded = Guarded::new(&directory, &marker.file, None, None);
    Ok(write::recover(&mut guarded, &boot_id()?)?)
}

/// Whether a write broke off in `user_dir` and waits to be put back: a marker stands, and nobody is about to finish.
pub fn is_in_doubt(user_dir: &Path) -> Result<bool, FileError> {
    let failed = |source| FileError { doing: "looking for a marker in", path: GUARD_DIR.into(), source };
    if !Directory::is_marked_in(user_dir).map_err(failed)? {
        return Ok(false);
    }
    let directory = Directory::open(user_dir)?;
    let lane = Lane::try_take(&directory).map_err(failed)?;
    Ok(lane.is_some() && directory.is_marked().map_err(failed)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Of a write, the marker had reached the disk in part when the power ended; sq never saw its request.
    #[test]
    fn a_marker_that_cannot_be_read_is_cleared_and_the_text_stays() {
        for half in [&b"{\"file\": \"a.phext\", "[..], b"\xff", b"{}"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("phext-data")).unwrap();
            fs::write(dir.path().join("phext-data/a.phext"), "text").unwrap();
            Directory::open(dir.path()).unwrap();
            fs::write(dir.path().join("guard/marker"), half).unwrap();
            assert!(is_in_doubt(dir.path()).unwrap());
            assert_eq!(recover(dir.path()).unwrap(), None);
            assert!(!is_in_doubt(dir.path()).unwrap(), "{half:?}");
            assert_eq!(fs::read_to_string(dir.path().join("phext-data/a.phext")).unwrap(), "text");
        }
    }
}
