//! The removal guard: an edit that would remove many tenants at once waits for a person.

use aws_lc_rs::digest;

use crate::{desired::TenantId, digest::hex};

/// So many removals always go through at once.
const ALWAYS: usize = 5;
/// Beyond [`ALWAYS`], this share of the tenants may go at once, percent.
const PERCENT: usize = 2;

/// Removals that wait for `sq-agent confirm HASH`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// Names exactly these removals; another set has another hash, so a new plan voids it.
    pub hash: String,
    /// Who would be removed, sorted.
    pub removals: Vec<TenantId>,
    /// Tenants that have a place now.
    pub of: usize,
}

/// Decides on `removals` (sorted) out of `of` tenants that have a place; `left` remain in the file.
///
/// `None` lets them through: there are at most max(5, 2 %) and not `all` are to be reviewed, or an operator confirmed this very set.
pub fn hold(removals: &[TenantId], of: usize, left: usize, all: bool, confirmed: Option<&str>) -> Option<Held> {
    let many = all || removals.len() > ALWAYS.max(of * PERCENT / 100);
    let emptied = left == 0;
    if removals.is_empty() || !(many || emptied) {
        return None;
    }
    let hash = hash(removals);
    (confirmed != Some(hash.as_str())).then(|| Held { hash, removals: removals.to_vec(), of })
}

/// 12 hex digits of SHA-256 over the ids: short enough to type, long enough not to be met by chance.
pub(super) fn hash(removals: &[TenantId]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for id in removals {
        context.update(id.as_str().as_bytes());
        context.update(b"\n");
    }
    hex(&context.finish().as_ref()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: usize) -> Vec<TenantId> {
        (0..n).map(|i| TenantId::parse(&format!("t{i:05}")).unwrap()).collect()
    }

    #[test]
    fn five_or_two_percent_go_through_and_one_more_is_held() {
        assert_eq!(hold(&ids(5), 10, 5, false, None), None);
        assert!(hold(&ids(6), 10, 4, false, None).is_some());
        assert_eq!(hold(&ids(20), 1_000, 980, false, None), None);
        assert!(hold(&ids(21), 1_000, 979, false, None).is_some());
    }

    #[test]
    fn where_every_removal_is_to_be_reviewed_one_is_held_too() {
        let held = hold(&ids(1), 100, 99, true, None).unwrap();
        assert_eq!(hold(&ids(1), 100, 99, true, Some(&held.hash)), None);
        assert_eq!(hold(&[], 100, 100, true, None), None);
    }

    #[test]
    fn an_empty_file_is_held_even_for_one_tenant() {
        assert!(hold(&ids(1), 1, 0, false, None).is_some());
        assert_eq!(hold(&[], 0, 0, false, None), None);
    }

    #[test]
    fn a_hash_lets_through_its_own_set_and_no_other() {
        let held = hold(&ids(60), 100, 40, false, None).unwrap();
        assert_eq!(hold(&ids(60), 100, 40, false, Some(&held.hash)), None);
        let other = hold(&ids(61), 100, 39, false, Some(&held.hash)).unwrap();
        assert_ne!(other.hash, held.hash);
    }
}
