//! The four steps around each write, and what is done where they broke off. Pure: what they do to files goes through [`Files`].
//!
//! ```text
//! 1  a good copy of the file as it stands
//! 2  a marker                                <- from here on the file is in doubt
//!        the request goes to sq, sq answers
//! 3  the file was rewritten, and sq complained of nothing
//! 4  the marker is removed                   <- from here on the write holds
//!        the client is told
//! ```
//!
//! A marker that stands while nobody is in the lane means: nobody was told that this write is done. So the copy is put back, and whoever asked is
//! told that nothing of it was applied. Removing the marker after the answer would undo writes that somebody was told of.

use serde::{Deserialize, Serialize};

/// What a write has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: writes go to sq as they come.
    Off,
    /// The death of any process.
    Process,
    /// The end of the host's power, too.
    Power,
}

/// Everything the steps do to a tenant's files. Each call is done whole or, where its process dies, perhaps in part.
pub trait Files {
    /// Why a call failed.
    type Error;

    /// Makes the copy the same as the file as it stands, unless it is known to be. Returns whether there is a file at all.
    fn copy(&mut self) -> Result<bool, Self::Error>;
    /// Sets the marker.
    fn mark(&mut self, marker: &Marker) -> Result<(), Self::Error>;
    /// The marker, where one stands.
    fn marker(&mut self) -> Result<Option<Marker>, Self::Error>;
    /// Removes the marker.
    fn unmark(&mut self) -> Result<(), Self::Error>;
    /// Puts the copy in the file's place in one step, or removes the file where there was none.
    fn put_back(&mut self, marker: &Marker) -> Result<(), Self::Error>;
    /// Whether the copy is what it was when the marker was set, as far as can be told. Only a loss of power makes it something else.
    fn copy_is_whole(&mut self, marker: &Marker) -> Result<bool, Self::Error>;
    /// Returns once everything done so far survives the end of the host's power.
    fn sync(&mut self) -> Result<(), Self::Error>;
}

/// What stands in `guard/marker` while a file is in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The file, below the tenant's data.
    pub file: String,
    /// X-Request-ID of the request that writes it.
    pub request_id: String,
    /// The start of sq that it was sent to.
    pub epoch: u64,
    /// Whether there was such a file, and with it a copy.
    pub existed: bool,
    /// Length of the copy, bytes.
    pub size: u64,
    /// Whether the copy was on the disk before the marker was.
    pub durable: bool,
    /// The boot of the host during which it was set.
    pub boot_id: String,
}

/// Steps 1 and 2. `marker` is made once the copy is there; it is told whether there was anything to copy.
pub fn begin<F: Files>(files: &mut F, durability: Durability, marker: impl FnOnce(bool) -> Marker) -> Result<Marker, F::Error> {
    let existed = files.copy()?;
    if durability == Durability::Power {
        // Before the marker: one that outlived the power while its copy did not would put rubbish back.
        files.sync()?;
    }
    let marker = marker(existed);
    files.mark(&marker)?;
    if durability == Durability::Power {
        files.sync()?;
    }
    Ok(marker)
}

/// Step 4, after a step 3 that found the write to be whole.
pub fn keep<F: Files>(files: &mut F, durability: Durability) -> Result<(), F::Error> {
    if durability == Durability::Power {
        // The file before the end of its marker, and that before the answer.
        files.sync()?;
    }
    files.unmark()?;
    if durability == Durability::Power {
        files.sync()?;
    }
    Ok(())
}

/// What [`recover`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// The copy is back: the write was not applied.
    PutBack(Marker),
    /// The host lost its power, and the copy with it, which was never said to survive that: the file was left as it is.
    LeftAsItIs(Marker),
}

impl Recovered {
    /// As a person reads it.
    pub fn text(&self) -> &'static str {
        match self {
            Self::PutBack(_) => "the text is as it was before; whoever sent it was not told that it was done, and may send it again",
            Self::LeftAsItIs(_) => {
                "the host lost its power, and the copy with it: the text stays as it was found; durability = \"power\" prevents that"
            }
        }
    }
}

/// Ends the doubt that a broken write left. The caller is alone in the lane, and nothing that could still write the file lives.
/// `boot_id` is the host's present one.
pub fn recover<F: Files>(files: &mut F, boot_id: &str) -> Result<Option<Recovered>, F::Error> {
    let Some(marker) = files.marker()? else { return Ok(None) };
    let whole = marker.durable || marker.boot_id == boot_id || !marker.existed || files.copy_is_whole(&marker)?;
    if whole {
        files.put_back(&marker)?;
        if marker.durable {
            // Else the power could end with the marker gone and the copy not yet in its place.
            files.sync()?;
        }
    }
    files.unmark()?;
    if marker.durable {
        files.sync()?;
    }
    Ok(Some(if whole { Recovered::PutBack(marker) } else { Recovered::LeftAsItIs(marker) }))
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
