//! What lies in a repository, and which of it is meant.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use toml::value::{Datetime, Offset};

use super::{
    TAG,
    fault::ResticError,
    restic::{QUESTION, Restic},
};
use crate::store::rfc3339;

/// One snapshot of one host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Snapshot {
    /// Whole id.
    pub(super) id: String,
    #[serde(default)]
    pub(super) hostname: String,
    #[serde(rename = "time")]
    written: String,
}

impl Snapshot {
    /// When it was taken, seconds since 1970, rounded down.
    fn at(&self) -> Option<u64> {
        seconds(&self.written)
    }

    /// When it was taken, for people.
    pub(super) fn when(&self) -> String {
        self.at().map_or_else(|| self.written.clone(), rfc3339)
    }
}

/// Every snapshot that an agent took.
pub(super) fn list(restic: &Restic) -> Result<Vec<Snapshot>, ResticError> {
    let listed = restic.run(&["snapshots", "--json", "--no-lock", "--tag", TAG], None, QUESTION)?;
    // An empty repository says null.
    let parsed: Result<Option<Vec<Snapshot>>, _> = serde_json::from_str(&listed);
    parsed.map(Option::unwrap_or_default).map_err(|error| ResticError::Other { command: "snapshots".into(), said: error.to_string() })
}

/// The one to restore: of `host`, else of this one, else of the only one that there is; the newest, or the newest of `until` and before.
///
/// # Errors
/// There is none, or it is not clear whose is meant; in words.
pub(super) fn choose(all: Vec<Snapshot>, host: Option<&str>, this_host: &str, until: Option<u64>) -> Result<Snapshot, String> {
    let mut hosts: Vec<String> = all.iter().map(|snapshot| snapshot.hostname.clone()).collect();
    hosts.sort();
    hosts.dedup();
    let host = match (host, hosts.as_slice()) {
        (_, []) => return Err("the repository holds no backup by sq-agent".into()),
        (Some(host), _) => host.to_owned(),
        (None, [only]) => only.clone(),
        (None, several) if several.iter().any(|name| name == this_host) => this_host.to_owned(),
        (None, several) => {
            return Err(format!("the repository holds backups of several hosts: name one by --host ({})", several.join(", ")));
        }
    };
    let of_host: Vec<Snapshot> = all.into_iter().filter(|snapshot| snapshot.hostname == host).collect();
    let oldest = of_host.iter().min_by_key(|snapshot| snapshot.at()).map(Snapshot::when);
    let Some(oldest) = oldest else { return Err(format!("there is no backup of {host}; there are some of {}", hosts.join(", "))) };
    let early_enough = |snapshot: &Snapshot| until.is_none_or(|until| snapshot.at().is_some_and(|at| at <= until));
    let newest = of_host.into_iter().filter(early_enough).max_by_key(Snapshot::at);
    newest.ok_or_else(|| format!("there is no backup of {host} that early: the oldest is of {oldest}"))
}

/// A moment as a person writes it, seconds since 1970: `2026-02-09T22:32:00Z`, the same without seconds, a day (its end), or `2h` for two hours ago.
///
/// # Errors
/// It is none of these.
pub(super) fn moment(text: &str, now: SystemTime) -> Result<u64, String> {
    let text = text.trim();
    if let Ok(ago) = humantime::parse_duration(text) {
        return now
            .checked_sub(ago)
            .and_then(|then| then.duration_since(UNIX_EPOCH).ok())
            .map(|then| then.as_secs())
            .ok_or("too long ago".into());
    }
    let whole = match text.len() {
        10 => format!("{text}T23:59:59Z"),
        _ => text.to_owned(),
    };
    seconds(&whole).ok_or_else(|| format!("{text:?} is no moment: write 2026-02-09T22:32:00Z, 2026-02-09, or 2h for two hours ago"))
}

/// Seconds since 1970 of an RFC 3339 time in any zone, rounded down.
fn seconds(text: &str) -> Option<u64> {
    let parsed: Datetime = text.parse().ok()?;
    let minutes = match parsed.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let time = toml::value::Time { nanosecond: None, ..parsed.time? };
    let utc = Datetime { offset: Some(Offset::Z), time: Some(time), ..parsed }.to_string();
    let since = humantime::parse_rfc3339(&utc).ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(i64::try_from(since.as_secs()).ok()? - minutes * 60).ok()
}

/// As much of an id as people are shown, and as restic takes.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Restores the whole of a snapshot, or what lies below `part` of it, into `target`.
///
/// The whole without a lock: it must also come from a repository that can only be read, or that a lost host left locked.
pub(super) fn restore(restic: &Restic, id: &str, part: Option<&str>, target: &Path) -> Result<(), ResticError> {
    let target = target.to_string_lossy();
    let mut arguments = vec!["restore", id, "--quiet", "--target", &target];
    match part {
        Some(part) => arguments.extend(["--include", part]),
        None => arguments.push("--no-lock"),
    }
    restic.run(&arguments, None, super::restic::LONGEST).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn snapshot(id: &str, host: &str, time: &str) -> Snapshot {
        Snapshot { id: id.into(), hostname: host.into(), written: time.into() }
    }

    fn some() -> Vec<Snapshot> {
        vec![
            snapshot("1", "a", "2026-11-24T18:12:26.217764675Z"),
            snapshot("2", "a", "2026-11-24T20:12:26.217764675+01:00"),
            snapshot("3", "b", "2026-11-25T00:00:00Z"),
        ]
    }

    #[test]
    fn the_newest_of_this_host_is_meant_unless_another_is_named() {
        let id = |host, this, until: Option<&str>| {
            choose(some(), host, this, until.map(|at| moment(at, SystemTime::now()).unwrap())).map(|snapshot| snapshot.id)
        };
        assert_eq!(id(None, "a", None), Ok("2".into()));
        assert_eq!(id(Some("b"), "a", None), Ok("3".into()));
        assert_eq!(id(None, "a", Some("2026-11-24T19:00:00Z")), Ok("1".into()));
        assert_eq!(id(None, "a", Some("2026-11-24")), Ok("2".into()));
        assert!(id(None, "new", None).unwrap_err().contains("--host (a, b)"));
        assert!(id(None, "a", Some("2026-11-01")).unwrap_err().contains("the oldest is of 2026-11-24T18:12:26Z"));
        assert!(choose(vec![], None, "a", None).unwrap_err().contains("no backup"));
        let only: Vec<Snapshot> = some().into_iter().take(2).collect();
        assert_eq!(choose(only, None, "new", None).unwrap().id, "2", "a new machine takes the only host's");
    }

    #[test]
    fn moments_are_read_as_people_write_them() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(moment("2h", now), Ok(1_800_000_000 - 7_200));
        assert_eq!(moment("1970-01-01T01:00:00+01:00", now), Ok(0));
        assert_eq!(moment("1970-01-02", now), Ok(2 * 86_400 - 1));
        assert!(moment("yesterday", now).is_err() && moment("2026-02-09T22:32:00", now).is_err());
    }
}
