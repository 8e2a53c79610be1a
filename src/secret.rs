//! Secrets as a type: whatever prints one prints `[redacted]`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes that must never reach a log, an error, a metric or a command line.
///
/// `Debug` and `Display` are redacted by type, not by care. `Serialize` is deliberate: it carries a secret from the
/// agent to the proxy over their private socket, and nowhere else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}
