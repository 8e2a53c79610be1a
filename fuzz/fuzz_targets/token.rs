//! Who asks, from arbitrary bytes: the value of an Authorization header as it stands, then the same bytes as the header and claims of
//! a token that is signed as it should be. Nothing may panic, and what is accepted was signed by the key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sq_agent::fuzzing::token;

fuzz_target!(|data: &[u8]| {
    token::as_sent(data);
    // The first newline parts header from claims.
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    token::signed(&data[..end], data.get(end + 1..).unwrap_or_default());
});
