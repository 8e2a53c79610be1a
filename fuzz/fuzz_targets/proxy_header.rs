//! Whose connection it is, from arbitrary bytes: a header of the PROXY protocol, and the lines of X-Forwarded-For.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sq_agent::fuzzing::client;

fuzz_target!(|data: &[u8]| {
    client::passed_on(data);
    client::forwarded(data);
});
