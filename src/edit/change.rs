//! What may be asked of tenants.toml, as values and as sentences.

use std::{collections::HashMap, fmt};

use crate::{
    desired::{Desired, FREE, Tenant, TenantId},
    store::rfc3339,
};

/// One change of who is served, or how. Each is a wish about how things stand afterwards, so making it twice is making it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A place for `id`.
    Provision {
        /// Who.
        id: TenantId,
        /// Its tier; `None`: that of a tenant that names none.
        tier: Option<String>,
    },
    /// No place for `id` any more; its data stay.
    Remove {
        /// Who.
        id: TenantId,
    },
    /// 403 and no instance, or served again.
    Suspend {
        /// Who.
        id: TenantId,
        /// Whether it is to be suspended.
        suspended: bool,
    },
    /// Another tier.
    Tier {
        /// Who.
        id: TenantId,
        /// Its name.
        tier: String,
    },
    /// One API key more.
    AddApiKey {
        /// Whose.
        id: TenantId,
        /// SHA-256 of the key.
        digest: [u8; 32],
    },
    /// One API key less.
    RemoveApiKey {
        /// Whose.
        id: TenantId,
        /// SHA-256 of the key.
        digest: [u8; 32],
    },
    /// Tokens issued before `at` are refused from now on. What was revoked stays revoked, so it never goes back.
    RevokeTokens {
        /// Whose.
        id: TenantId,
        /// Seconds since 1970.
        at: u64,
    },
}

/// `at`, or the last second that TOML can write, the end of the year 9999.
pub(super) fn representable(at: u64) -> u64 {
    at.min(253_402_300_799)
}

impl Change {
    /// Whom it concerns.
    pub fn id(&self) -> &TenantId {
        match self {
            Self::Provision { id, .. }
            | Self::Remove { id }
            | Self::Suspend { id, .. }
            | Self::Tier { id, .. }
            | Self::AddApiKey { id, .. }
            | Self::RemoveApiKey { id, .. }
            | Self::RevokeTokens { id, .. } => id,
        }
    }

    /// Whether it is so in `desired`: whoever asked for it waits for that.
    pub fn holds(&self, desired: &Desired) -> bool {
        let tenant = desired.tenants.get(self.id());
        match self {
            Self::Provision { tier, .. } => tenant.is_some_and(|tenant| tier.as_ref().is_none_or(|tier| *tier == tenant.tier)),
            Self::Remove { .. } => tenant.is_none(),
            Self::Suspend { suspended, .. } => tenant.is_some_and(|tenant| tenant.suspended == *suspended),
            Self::Tier { tier, .. } => tenant.is_some_and(|tenant| tenant.tier == *tier),
            Self::AddApiKey { digest, .. } => tenant.is_some_and(|tenant| tenant.api_keys.contains(digest)),
            Self::RemoveApiKey { digest, .. } => tenant.is_some_and(|tenant| !tenant.api_keys.contains(digest)),
            Self::RevokeTokens { at, .. } => tenant.is_some_and(|tenant| tenant.tokens_valid_after >= representable(*at)),
        }
    }

    /// Whether `new` is what this change makes of its tenant as `old` has it. What a tier limits is the parser's to say.
    fn makes(&self, old: Option<&Tenant>, new: Option<&Tenant>) -> bool {
        match (self, old, new) {
            (Self::Remove { .. }, _, new) => new.is_none(),
            (Self::Provision { tier, .. }, None, Some(new)) => {
                let bare = !new.suspended && new.api_keys.is_empty() && new.tokens_valid_after == 0 && new.port.is_none();
                bare && tier.as_deref().unwrap_or(FREE) == new.tier
            }
            (Self::Provision { .. }, old, new) => old == new,
            (_, Some(old), Some(new)) => {
                let mut wished = old.clone();
                match self {
                    Self::Suspend { suspended, .. } => wished.suspended = *suspended,
                    Self::Tier { tier, .. } => (wished.tier, wished.limits) = (tier.clone(), new.limits.clone()),
                    Self::AddApiKey { digest, .. } if !wished.api_keys.contains(digest) => wished.api_keys.push(*digest),
                    Self::RemoveApiKey { digest, .. } => wished.api_keys.retain(|key| key != digest),
                    Self::RevokeTokens { at, .. } => wished.tokens_valid_after = wished.tokens_valid_after.max(representable(*at)),
                    _ => {}
                }
                wished == *new
            }
            _ => false,
        }
    }
}

/// Whether `new` is `old` with these `changes` made, no two of one tenant, and nothing else.
pub(super) fn leads(changes: &[&Change], old: &Desired, new: &Desired) -> bool {
    let concerned: HashMap<&TenantId, &Change> = changes.iter().map(|change| (change.id(), *change)).collect();
    let rest = |desired: &Desired| {
        let mut rest = desired.clone();
        rest.tenants.retain(|id, _| !concerned.contains_key(id));
        rest.hash.clear();
        rest
    };
    concerned.iter().all(|(id, change)| change.makes(old.tenants.get(*id), new.tenants.get(*id))) && rest(old) == rest(new)
}

/// As the subject of a commit has it. Digests of keys stay out: they stand in the file.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provision { id, tier: Some(tier) } => write!(f, "Provision {id} (tier {tier})"),
            Self::Provision { id, tier: None } => write!(f, "Provision {id}"),
            Self::Remove { id } => write!(f, "Remove {id}"),
            Self::Suspend { id, suspended: true } => write!(f, "Suspend {id}"),
            Self::Suspend { id, suspended: false } => write!(f, "Resume {id}"),
            Self::Tier { id, tier } => write!(f, "Move {id} to tier {tier}"),
            Self::AddApiKey { id, .. } => write!(f, "Add an API key of {id}"),
            Self::RemoveApiKey { id, .. } => write!(f, "Remove an API key of {id}"),
            Self::RevokeTokens { id, at } => write!(f, "Revoke the tokens of {id} issued before {}", rfc3339(representable(*at))),
        }
    }
}
