//! What a snapshot is called: the time in UTC and the reason, as `2026-11-24T18-00-00Z.hourly`. Pure.
//!
//! Dashes where RFC 3339 has colons: tar takes what stands before a colon for the name of another host.

use std::{fmt, time::UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::store::rfc3339;

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// An hour is over, and something changed.
    Hourly,
    /// The tenant left tenants.toml.
    BeforeRemoval,
    /// It is suspended.
    BeforeSuspension,
    /// It is to run on another sq.
    BeforeProgramChange,
    /// A restore is about to replace it.
    BeforeRestore,
    /// `sq-agent snapshot`.
    Asked,
}

impl Reason {
    const ALL: [Self; 6] =
        [Self::Hourly, Self::BeforeRemoval, Self::BeforeSuspension, Self::BeforeProgramChange, Self::BeforeRestore, Self::Asked];

    /// Whether it is taken while nothing of the tenant runs.
    pub(crate) fn is_at_rest(self) -> bool {
        matches!(self, Self::BeforeRemoval | Self::BeforeSuspension | Self::BeforeProgramChange | Self::BeforeRestore)
    }

    /// As names and people have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::BeforeRemoval => "before-removal",
            Self::BeforeSuspension => "before-suspension",
            Self::BeforeProgramChange => "before-program-change",
            Self::BeforeRestore => "before-restore",
            Self::Asked => "asked",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The name of a snapshot. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    /// When it was taken, seconds since 1970; no two of a tenant share one.
    pub at: u64,
    /// Why.
    pub reason: Reason,
}

impl Name {
    /// The time as RFC 3339 has it.
    pub fn time(&self) -> String {
        rfc3339(self.at)
    }

    /// What `text` names, if it is such a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (time, reason) = text.split_once('.')?;
        let reason = Reason::ALL.into_iter().find(|known| known.word() == reason)?;
        let at = seconds(&with_colons(time))?;
        let name = Self { at, reason };
        // One spelling a name.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.time().replace(':', "-"), self.reason)
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not the name of a snapshot"))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

fn seconds(rfc3339: &str) -> Option<u64> {
    Some(humantime::parse_rfc3339(rfc3339).ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// `18-00-00` after the `T` as RFC 3339 has it.
fn with_colons(time: &str) -> String {
    match time.split_once('T') {
        Some((day, clock)) => format!("{day}T{}", clock.replace('-', ":")),
        None => time.to_owned(),
    }
}

/// A time that names no snapshot; the text says which ones there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTime {
    /// There are none at all.
    #[error("there is no snapshot")]
    None,
    /// Neither a time nor the beginning of one.
    #[error("{0:?} is no time: write it as `sq-agent snapshots` shows it, such as 2026-11-24T18:00:00Z, or the beginning of it")]
    NotATime(String),
    /// The oldest one is younger.
    #[error("there is no snapshot as old as {wanted}: the oldest is of {oldest}")]
    TooOld {
        /// What was asked for.
        wanted: String,
        /// What there is.
        oldest: String,
    },
    /// Several begin so.
    #[error("{wanted} may be any of {among}: write more of it")]
    Several {
        /// What was asked for.
        wanted: String,
        /// What it may be.
        among: String,
    },
}

/// The snapshot that a person means by `at`: a whole time names the newest one at or before it, the beginning of a time the only one that begins so.
/// Left out, it is the newest one that no restore made: else a restore that is repeated would undo itself.
pub fn choose(names: &[Name], at: Option<&str>) -> Result<Name, BadTime> {
    let oldest = names.iter().min().ok_or(BadTime::None)?;
    let Some(at) = at else {
        let newest = names.iter().filter(|name| name.reason != Reason::BeforeRestore).max();
        return newest.or_else(|| names.iter().max()).copied().ok_or(BadTime::None);
    };
    if let Some(name) = Name::parse(at) {
        return names.iter().find(|known| **known == name).copied().ok_or_else(|| BadTime::NotATime(at.into()));
    }
    let wanted = with_colons(at);
    if let Some(at) = seconds(&wanted) {
        let before = names.iter().filter(|name| name.at <= at).max();
        return before.copied().ok_or_else(|| BadTime::TooOld { wanted, oldest: oldest.time() });
    }
    let begins: Vec<&Name> = names.iter().filter(|name| !wanted.is_empty() && name.time().starts_with(&wanted)).collect();
    match begins[..] {
        [] => Err(BadTime::NotATime(at.into())),
        [name] => Ok(*name),
        _ => {
            let among = begins.iter().map(|name| name.time()).collect::<Vec<_>>().join(", ");
            Err(BadTime::Several { wanted: at.into(), among })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn a_name_is_read_as_it_is_written_and_nothing_else_is_one() {
        for reason in Reason::ALL {
            let name = Name { at: 1_795_543_200, reason };
            assert_eq!(name.to_string(), format!("2026-11-24T18-00-00Z.{reason}"));
            assert_eq!(Name::parse(&name.to_string()), Some(name));
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{:?}", reason.word()));
        }
        for other in ["", ".new", "2026-11-24T18-00-00Z", "2026-11-24T18:00:00Z.hourly", "2026-11-24T18-00-00Z.often", "x.hourly"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
        assert_eq!(name("2026-11-24T18-00-00Z.asked").time(), "2026-11-24T18:00:00Z");
    }

    #[test]
    fn a_time_names_the_newest_one_at_or_before_it_and_the_beginning_of_a_time_the_only_one_that_begins_so() {
        let all = [
            "2026-11-23T09-30-00Z.hourly",
            "2026-11-24T17-00-05Z.asked",
            "2026-11-24T18-00-00Z.hourly",
            "2026-11-24T18-10-00Z.before-restore",
        ];
        let all = all.map(name);
        let at = |at: &str| choose(&all, Some(at)).map(|found| all.iter().position(|name| *name == found).unwrap());
        assert_eq!(choose(&all, None), Ok(all[2]), "not what a restore made");
        assert_eq!(choose(&all[3..], None), Ok(all[3]), "unless that is all there is");
        assert_eq!(at("2026-11-24T18:00:00Z"), Ok(2));
        assert_eq!(at("2026-11-24T17:59:59Z"), Ok(1));
        assert_eq!(at("2027-01-01T00:00:00Z"), Ok(3));
        assert_eq!(at("2026-11-24T18-00-00Z"), Ok(2), "as directories have it");
        assert_eq!(at("2026-11-24T18-00-00Z.hourly"), Ok(2));
        assert_eq!(at("2026-11-23"), Ok(0));
        assert_eq!(at("2026-11-24T18:1"), Ok(3));
        assert!(matches!(at("2026-11-24T18"), Err(BadTime::Several { among, .. }) if among.contains("18:00:00Z, 2026-11-24T18:10:00Z")));
        assert!(matches!(at("2026-11-01T00:00:00Z"), Err(BadTime::TooOld { .. })));
        assert!(matches!(at("yesterday"), Err(BadTime::NotATime(_))));
        assert!(matches!(at(""), Err(BadTime::NotATime(_))));
        assert_eq!(choose(&[], None), Err(BadTime::None));
    }
}
