//! A tenants.toml from arbitrary bytes: it is accepted, or refused with something that can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sq_agent::desired;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = Path::new("/etc/sq-agent/tenants.toml");
    match desired::parse(text, file) {
        Ok(read) => assert!(desired::parse(text, file).is_ok_and(|again| again == read)),
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
});
