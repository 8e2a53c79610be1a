//! What keeps instances apart on this host, each part on or off, and if off then why and what would turn it on.

use serde::{Deserialize, Serialize};

/// One means of isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Part {
    /// In force for every instance started from now on.
    On {
        /// What it does here; empty where that is all of it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// Not in force.
    Off {
        /// What stands in the way.
        reason: String,
        /// What a person can do about it.
        remedy: String,
    },
}

impl Part {
    /// In force, all of it.
    pub fn on() -> Self {
        Self::On { detail: String::new() }
    }

    /// Not in force.
    pub fn off(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Off { reason: reason.into(), remedy: remedy.into() }
    }

    /// Whether it is in force.
    pub fn is_on(&self) -> bool {
        matches!(self, Self::On { .. })
    }

    /// Off because tenants.toml says so.
    pub fn unwanted() -> Self {
        Self::off("isolation = \"off\" in tenants.toml", "write isolation = \"auto\"")
    }

    /// Only root can start a process as another user.
    pub(super) fn not_root() -> Self {
        Self::off("the agent is not root, so all instances run as its own user", "run the agent as root for a user of its own each")
    }
}

/// Which parts are to be tried: `isolation` in tenants.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// A network of the instances' own.
    pub network: bool,
    /// Landlock.
    pub landlock: bool,
    /// The system call filter.
    pub seccomp: bool,
    /// No new privileges, no capabilities.
    pub privileges: bool,
    /// A user of its own for each instance.
    pub user: bool,
}

impl Wanted {
    /// "auto" and "required".
    pub const EVERYTHING: Self = Self { network: true, landlock: true, seccomp: true, privileges: true, user: true };
    /// "off".
    pub const NOTHING: Self = Self { network: false, landlock: false, seccomp: false, privileges: false, user: false };
}

/// All of them. `doctor` and status show it; `isolation = "required"` wants [`Isolation::missing`] to be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// A network of the instances' own: their ports are out of reach of everything but agent and proxy.
    pub network: Part,
    /// Files, ports, signals by Landlock.
    pub landlock: Part,
    /// A list of the system calls that sq needs; all others fail.
    pub seccomp: Part,
    /// No new privileges, no capabilities.
    pub privileges: Part,
    /// A user of its own for each instance.
    pub user: Part,
    /// A cgroup of its own for each instance.
    pub cgroup: Part,
}

impl Isolation {
    /// The parts with their names, in the order in which they are shown.
    pub fn parts(&self) -> [(&'static str, &Part); 6] {
        [
            ("network", &self.network),
            ("landlock", &self.landlock),
            ("seccomp", &self.seccomp),
            ("privileges", &self.privileges),
            ("user", &self.user),
            ("cgroup", &self.cgroup),
        ]
    }

    /// What `isolation = "required"` misses here, with the reasons. Limits are not a part of it, and users of their own only where the
    /// agent is root, who alone can give them.
    pub fn missing_of_required(&self, root: bool) -> Vec<String> {
        let wanted = self.parts().into_iter().filter(|(name, _)| *name != "cgroup" && (root || *name != "user"));
        let why = |(name, part): (&str, &Part)| match part {
            Part::On { .. } => None,
            Part::Off { reason, remedy } => Some(format!("{name}: {reason} ({remedy})")),
        };
        wanted.filter_map(why).collect()
    }

    /// The parts that are off.
    pub fn missing(&self) -> Vec<&'static str> {
        self.parts().into_iter().filter(|(_, part)| !part.is_on()).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_reads_in_json_as_on_or_off_with_reason_and_remedy() {
        let json = |part: &Part| serde_json::to_string(part).unwrap();
        assert_eq!(json(&Part::on()), r#"{"state":"on"}"#);
        assert_eq!(json(&Part::off("no", "do")), r#"{"state":"off","reason":"no","remedy":"do"}"#);
        assert_eq!(serde_json::from_str::<Part>(r#"{"state":"on"}"#).unwrap(), Part::on());
    }

    #[test]
    fn what_is_off_is_missing() {
        let (on, off) = (Part::on(), Part::unwanted());
        let isolation =
            Isolation { network: off.clone(), landlock: on.clone(), seccomp: on.clone(), privileges: on.clone(), user: off, cgroup: on };
        assert_eq!(isolation.missing(), ["network", "user"]);
    }
}
