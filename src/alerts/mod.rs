//! Alerts: what of a host's state needs somebody, said once, where people look.
//!
//! `facts -> book -> outbox -> channel`. The [`Book`] takes the facts of each moment and says what is raised, resolved or reminded of; it is
//! level-triggered, so that a restarted agent neither repeats nor forgets anything. The [`Outbox`] has what is to be said on each channel and when
//! the next try is. Both are pure, live in the loop and are kept in instances.db together, before anything is sent. `message` and `answer` say what
//! goes out and what comes back means, `send` is the way out, `memory` what the host has.
#![forbid(unsafe_code)]

mod alert;
mod answer;
mod book;
#[cfg(test)]
mod book_tests;
mod kind;
mod level;
mod memory;
mod message;
mod neutral;
mod outbox;
pub(crate) mod send;
mod storm;

pub use alert::{Alert, Item, News};
pub use answer::Outcome;
pub use book::{Book, Facts, Life};
pub use kind::{Condition, Key, Kind, Severity};
pub use level::Share;
pub(crate) use memory::host_memory;
pub use message::Sender;
pub use outbox::{Channel, Outbox, Tried};
