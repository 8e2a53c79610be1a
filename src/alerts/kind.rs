//! What there can be an alert about.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::desired::TenantId;

/// What it is about. A user's own fault (a bad token, a quota) is none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The host's memory.
    HostMemory,
    /// The disk where the tenants' files lie.
    Disk,
    /// No proxy serves.
    ProxyDown,
    /// sq itself cannot be had.
    SqMissing,
    /// tenants.toml cannot be applied.
    ConfigRefused,
    /// Removals wait for a person.
    RemovalsHeld,
    /// Another sq was taken back.
    RolloutWentBack,
    /// A key or certificate is no good.
    KeysRefused,
    /// The certificate ends soon, or has ended.
    CertificateEnds,
    /// The repository that tenants.toml comes from is out of reach.
    GitopsFailing,
    /// The head of its branch cannot be applied.
    GitopsRefused,
    /// Its branch was rewritten.
    GitopsRewritten,
    /// Backups are missing.
    BackupMissed,
    /// A backup is not what it should be.
    BackupUntrue,
    /// The agent before this one ended without being told to.
    AgentRestarted,
    /// A tenant's memory.
    TenantMemory,
    /// A tenant's instance crashes again and again.
    CrashLoop,
    /// A tenant's instance was ended for its memory.
    OomKill,
    /// A tenant's instance did not answer.
    HealthChecks,
}

impl Kind {
    /// As scripts see it.
    pub fn word(self) -> &'static str {
        match self {
            Self::HostMemory => "host_memory",
            Self::Disk => "disk",
            Self::ProxyDown => "proxy_down",
            Self::SqMissing => "sq_missing",
            Self::ConfigRefused => "config_refused",
            Self::RemovalsHeld => "removals_held",
            Self::RolloutWentBack => "rollout_went_back",
            Self::KeysRefused => "keys_refused",
            Self::CertificateEnds => "certificate_ends",
            Self::GitopsFailing => "gitops_failing",
            Self::GitopsRefused => "gitops_refused",
            Self::GitopsRewritten => "gitops_rewritten",
            Self::BackupMissed => "backup_missed",
            Self::BackupUntrue => "backup_untrue",
            Self::AgentRestarted => "agent_restarted",
            Self::TenantMemory => "tenant_memory",
            Self::CrashLoop => "crash_loop",
            Self::OomKill => "oom_kill",
            Self::HealthChecks => "health_checks",
        }
    }

    /// As people read it.
    pub fn title(self) -> &'static str {
        match self {
            Self::HostMemory => "Memory of the host",
            Self::Disk => "Disk",
            Self::ProxyDown => "Proxy down",
            Self::SqMissing => "sq cannot be had",
            Self::ConfigRefused => "tenants.toml refused",
            Self::RemovalsHeld => "Removals held",
            Self::RolloutWentBack => "Roll-out taken back",
            Self::KeysRefused => "Key or certificate no good",
            Self::CertificateEnds => "Certificate ends",
            Self::GitopsFailing => "Repository out of reach",
            Self::GitopsRefused => "Commit refused",
            Self::GitopsRewritten => "Branch rewritten",
            Self::BackupMissed => "Backups missing",
            Self::BackupUntrue => "Backup not as it should be",
            Self::AgentRestarted => "Agent restarted",
            Self::TenantMemory => "Memory of a tenant",
            Self::CrashLoop => "Crash loop",
            Self::OomKill => "Killed for memory",
            Self::HealthChecks => "Failed health checks",
        }
    }
}

/// One alert among all: there is one of a kind, or one of a kind and tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What it is about.
    pub kind: Kind,
    /// Whose instance, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
}

impl Key {
    /// About the host.
    pub fn host(kind: Kind) -> Self {
        Self { kind, tenant: None }
    }

    /// About a tenant's instance.
    pub fn tenant(kind: Kind, id: &TenantId) -> Self {
        Self { kind, tenant: Some(id.clone()) }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody should see to it.
    Warning,
    /// Somebody is not served, or soon will not be.
    Critical,
}

impl Severity {
    /// As scripts see it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Something that holds now and needs somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which alert it is.
    pub key: Key,
    /// How bad.
    pub severity: Severity,
    /// What is the matter, in a sentence.
    pub text: String,
    /// What to run.
    pub command: String,
    /// What it is about more closely (a plan's hash, a commit): with another one it is another alert, and is told anew.
    pub about: String,
    /// Since when, seconds since 1970, where that is known; else since it is first seen.
    pub since: Option<u64>,
    /// It has to hold so long before anybody is told.
    pub patience: Duration,
}

impl Condition {
    /// A warning that is told at once.
    pub fn warning(key: Key, text: impl Into<String>, command: impl Into<String>) -> Self {
        let (text, command) = (text.into(), command.into());
        Self { key, severity: Severity::Warning, text, command, about: String::new(), since: None, patience: Duration::ZERO }
    }

    /// The same, critical.
    pub fn critical(key: Key, text: impl Into<String>, command: impl Into<String>) -> Self {
        Self { severity: Severity::Critical, ..Self::warning(key, text, command) }
    }

    /// About this more closely.
    #[must_use]
    pub fn about(self, about: impl Into<String>) -> Self {
        Self { about: about.into(), ..self }
    }

    /// Since then, seconds since 1970.
    #[must_use]
    pub fn since(self, since: Option<u64>) -> Self {
        Self { since, ..self }
    }

    /// Told only once it has held for so long: it may pass by itself.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_kept_under_the_word_that_scripts_see() {
        for kind in [Kind::HostMemory, Kind::RolloutWentBack, Kind::OomKill, Kind::GitopsRewritten, Kind::BackupUntrue] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.word()));
        }
    }
}
