//! tenants.toml: schema, validation, tiers, watching.
#![forbid(unsafe_code)]

mod model;

pub use model::*;
