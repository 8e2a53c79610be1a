//! Doors for the fuzz targets (`fuzz/`) to what reads the words of strangers. Only a fuzzing build has them.

pub mod client;
pub mod head;
pub mod table;
pub mod token;
