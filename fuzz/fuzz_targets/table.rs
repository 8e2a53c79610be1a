//! The route table with arbitrary words in arbitrary places.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sq_agent::fuzzing::table;

fuzz_target!(|data: &[u8]| table::overwritten(data));
