//! What this host permits and what is wrong with it, as findings: each says what was found and what to do about it.
//!
//! Where an agent runs, it is asked: what it may do depends on how it was started. Else the host is tried as far as that can be done
//! without starting anything that stays.
#![forbid(unsafe_code)]

mod agent;
mod host;
mod why;

use serde::{Deserialize, Serialize};

pub use agent::findings as of_agent;
#[cfg(test)]
pub(crate) use agent::tests as fixture;
pub use host::{findings as of_host, isolation as try_isolation};
pub use why::{Known, Why, why};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Somebody is not served, or soon will not be.
    Problem,
    /// It works, with less than there could be.
    Notice,
    /// As it should be.
    Ok,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do; empty where nothing is to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(subject: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, subject: subject.into(), text: text.into(), remedy: String::new() }
    }

    /// Less than there could be, and what would give more.
    pub fn notice(subject: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, subject: subject.into(), text: text.into(), remedy: remedy.into() }
    }

    /// Somebody is not served, and what to do.
    pub fn problem(subject: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, subject: subject.into(), text: text.into(), remedy: remedy.into() }
    }
}
