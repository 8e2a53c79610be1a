//! From the configuration of an sq gateway to tenants.toml: `gateway` reads the old file, `convert` decides (pure) what becomes of each of its values.
//!
//! Nothing is lost in silence: what has no place in tenants.toml is listed with what to do about it. No token is ever printed.
#![forbid(unsafe_code)]

mod convert;
mod gateway;

pub use convert::{Imported, LeftOut, Move, Options, convert};
pub use gateway::{Gateway, ImportError};
