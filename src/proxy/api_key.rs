//! API keys: for programs that cannot fetch tokens. `pmb-v1-` and 128 random bits in hex; tenants.toml and the route table hold their SHA-256.
//!
//! A key is looked up by its digest, in an index that is no secret (it stands in tenants.toml, so in git): how long a look takes tells at most
//! something about digests, and from a digest there is no way to 128 random bits. So neither a slow hash nor a comparison in constant time would add
//! anything; both are for secrets that can be guessed.

use crate::digest::{hex, sha256};

/// How every key begins.
pub(crate) const PREFIX: &[u8] = b"pmb-v1-";
/// Random bytes in a key; two lower-case hex digits each.
const RANDOM: usize = 16;

/// A key that was just made. It is shown once and kept by nobody.
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// A new one, from the system's random numbers.
    ///
    /// # Errors
    /// There are none to be had.
    pub(crate) fn make() -> Result<Self, getrandom::Error> {
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random)?;
        Ok(Self(format!("{}{}", String::from_utf8_lossy(PREFIX), hex(&random))))
    }

    /// The key itself, for its owner.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// What stands in `api_keys`: `sha256:` and 64 hex digits.
    pub(crate) fn digest(&self) -> String {
        digest_text(&sha256(self.0.as_bytes()))
    }
}

/// A digest as `api_keys` has it.
pub(crate) fn digest_text(digest: &[u8; 32]) -> String {
    format!("sha256:{}", hex(digest))
}

/// Longest key, bytes. Ours have 39; those of an sq gateway, which may be kept (see `import`), are what somebody once chose.
const LONGEST: usize = 256;
/// Shortest: nothing that can be guessed is looked up.
const SHORTEST: usize = 8;

/// Whether `text` may be a key: the letters of a credential (token68, RFC 9110 section 11.2) but the dot, which stands in tokens.
pub(crate) fn may_be_one(text: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_~+/=".contains(byte);
    (SHORTEST..=LONGEST).contains(&text.len()) && text.iter().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_another_one_of_the_right_form() {
        let (one, other) = (ApiKey::make().unwrap(), ApiKey::make().unwrap());
        assert_ne!(one.text(), other.text());
        let random = one.text().strip_prefix("pmb-v1-").unwrap();
        assert!(random.len() == 32 && random.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{}", one.text());
        assert!(may_be_one(one.text().as_bytes()) && may_be_one(b"user-api-key-1") && may_be_one(b"Zm9v+bar/baz="));
        for bad in ["", "short-1", "two words", "header.claims.signature", "a,b,c,d,e", "\u{e9}\u{e9}\u{e9}\u{e9}", &"a".repeat(257)] {
            assert!(!may_be_one(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn its_digest_is_what_tenants_toml_takes() {
        let key = ApiKey("pmb-v1-00112233445566778899aabbccddeeff".into());
        // printf pmb-v1-00112233445566778899aabbccddeeff | sha256sum
        assert_eq!(key.digest(), "sha256:a7175ea0fe9483f932c63b4ee6fc5bfa38079c1e1326aea51698850099e67b93");
        let text = format!("[[tenants]]\nid = 'a'\napi_keys = ['{}']\n", key.digest());
        let desired = crate::desired::parse(&text, std::path::Path::new("t.toml")).unwrap();
        let digest = sha256(key.text().as_bytes());
        assert_eq!(desired.tenants.values().next().unwrap().api_keys, [digest]);
    }
}
