//! A connection of HTTP/1.1 from arbitrary bytes; the first says in pieces of which length they come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sq_agent::fuzzing::head;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    head::connection(bytes, usize::from(step));
    head::connection(bytes, usize::MAX);
    head::alone(bytes);
});
