//! Instances: spawn, adopt, stop, health, ports, the sq binary.
#![forbid(unsafe_code)]
