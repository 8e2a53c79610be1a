//! Secrets as a type: whatever prints one prints `[redacted]`.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};

/// Bytes that must never reach a log, an error, a metric or a command line.
///
/// `Debug` and `Display` are redacted by type, not by care. `Serialize` is deliberate: it carries a secret from the
/// agent to the proxy over their private socket, and nowhere else.
#[derive(Clone, Eq, Serialize, Deserialize)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes ownership of raw secret bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// In constant time for secrets of one length, so that nobody who can ask and measure learns a secret byte by byte.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        assert_eq!(format!("{:?}", Secret::new(*b"hunter2")), "[redacted]");
    }

    #[test]
    fn secrets_are_the_same_only_if_every_byte_is() {
        assert!(Secret::new(*b"hunter2") == Secret::new(*b"hunter2"));
        for other in ["hunter3", "hunter", "hunter22", ""] {
            assert!(Secret::new(*b"hunter2") != Secret::new(other), "{other}");
        }
    }
}
