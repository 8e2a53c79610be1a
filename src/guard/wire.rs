//! What a proxy and its guard say to each other: one datagram a message, JSON.

use serde::{Deserialize, Serialize};

use super::{target::Call, write::Durability};
use crate::desired::TenantId;

/// Longest message, bytes: two names of 255 bytes, an id and a reason.
pub(crate) const LONGEST: usize = 8 * 1024;

/// Proxy to guard. `ticket` numbers a write, and is never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToGuard {
    /// A write is about to be sent: take the lane, make the copy, set the marker.
    Begin { ticket: u64, write: Write },
    /// How it went.
    End { ticket: u64, sent: Sent },
    /// sq was told to read the file again after it was put back, and did, or not.
    Reloaded { ticket: u64, done: bool },
}

/// A write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) id: TenantId,
    /// The phext's file name.
    pub(crate) phext: String,
    pub(crate) call: Call,
    /// Of the instance.
    pub(crate) epoch: u64,
    pub(crate) request_id: String,
    /// Length of the request's body, bytes.
    pub(crate) body: u64,
    /// The tenant's memory limit, bytes; `None` where there is none.
    pub(crate) memory_max: Option<u64>,
    pub(crate) durability: Durability,
    /// The file may be larger behind it than before.
    pub(crate) may_grow: bool,
}

/// What became of a write's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sent {
    /// sq answered.
    Answered {
        /// With 2xx.
        success: bool,
        /// Length of the answer's body, bytes.
        length: u64,
    },
    /// Nothing of it reached an instance that would act on it.
    Not,
    /// It may have been acted on, and no answer tells.
    Unknown,
}

/// Guard to proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToProxy {
    /// The write may be sent; where `reload`, sq has to read the phext again before.
    Begun { ticket: u64, reload: bool },
    /// It may not.
    Refused { ticket: u64, why: Refusal },
    /// What holds of it.
    Verdict { ticket: u64, verdict: Verdict },
    /// Answers [`ToGuard::Reloaded`]: all is as it was before the write.
    Settled { ticket: u64, undone: bool },
}

impl ToProxy {
    pub(crate) fn ticket(&self) -> u64 {
        match *self {
            Self::Begun { ticket, .. } | Self::Refused { ticket, .. } | Self::Verdict { ticket, .. } | Self::Settled { ticket, .. } => {
                ticket
            }
        }
    }
}

/// Why a write may not be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// The file system has not the room that a rewrite may need.
    NoRoom { needs: u64, free: u64 },
    /// sq would need more memory than its tenant has.
    NoMemory { needs: u64, limit: u64 },
    /// The file would be larger than before, which it may not.
    Grows,
    /// An earlier write broke off, and its file has not been put back yet.
    InDoubt,
    /// Somebody else kept the lane for too long: a snapshot, another proxy.
    Busy,
    /// The tenant's files are not as they should be.
    Files(String),
}

/// What holds of a write that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// It holds, whatever dies next.
    Kept,
    /// Nothing was written: sq refused it, or never got it.
    Untouched,
    /// sq said that it was written, and it was not, or not whole: the file is as it was before, and sq has to read it again.
    PutBack { why: String },
    /// It was written, and the file was larger than before, which it may not: the file is as it was before, and sq has to read it again.
    Outgrown,
    /// Its marker stands: it is put back before the next start.
    InDoubt { why: Option<String> },
}
