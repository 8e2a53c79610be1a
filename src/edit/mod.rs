//! tenants.toml edited by program, beside the people who edit it.
//!
//! `apply` (pure) makes one change in a text and leaves everything else in it as it was. [`Editor`] has one queue for all changes: without
//! `[gitops]` they go into the file itself (`plain`, by `place`), with it each becomes a commit on the branch (`repository`), which a look at the
//! repository then puts in place.
#![forbid(unsafe_code)]

mod apply;
mod change;
mod editor;
mod lines;
mod list;
mod place;
mod plain;
mod repository;

pub use apply::{Edited, Refused, apply};
pub use change::Change;
pub use editor::{Author, EditError, Editor, EditorParts, Made};
