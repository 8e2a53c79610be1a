//! Tokens that were verified once, so that a busy client costs one digest a request instead of one signature check.

use quick_cache::sync::Cache;

use super::Identity;

/// How many tokens are remembered: one a tenant of a full host (9,999) and several devices each; about 15 MB when full.
const CAPACITY: usize = 65_536;

/// Verified tokens by the full SHA-256 of the token: a shortened digest could be made to collide.
pub(super) struct TokenCache(Cache<[u8; 32], Identity>);

impl TokenCache {
    pub(super) fn new() -> Self {
        Self(Cache::new(CAPACITY))
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Identity> {
        self.0.get(digest)
    }

    pub(super) fn insert(&self, digest: [u8; 32], identity: Identity) {
        self.0.insert(digest, identity);
    }
}
