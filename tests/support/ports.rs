//! Ports that no other test uses: each host of a test holds a block of them, locked across threads and processes.

use std::{
    fs::{self, File, OpenOptions},
    path::Path,
};

use sq_agent::instance::{
    network::Network,
    ports::{PortState, probe_free},
};

/// A block of ports, this test's as long as it lives.
pub struct PortBlock {
    /// For instances: the first of them.
    pub first: u16,
    /// For instances: the last of them.
    pub last: u16,
    /// For the proxy.
    pub https: u16,
    _lock: File,
}

/// Where blocks of a hundred lie. The kernel gives outgoing connections ports from 32,768 on, other tests use 20,000 to 30,000.
const SMALL: Pool = Pool { first: 10_000, blocks: 100, size: 100 };
/// Where blocks of a thousand lie, for tests that use up ports: one is in quarantine for a minute after use.
const LARGE: Pool = Pool { first: 3_000, blocks: 7, size: 1_000 };

struct Pool {
    first: u16,
    blocks: u16,
    size: u16,
}

impl PortBlock {
    /// A block of 99 ports for instances and one for the proxy.
    pub fn small() -> Self {
        SMALL.claim()
    }

    /// A block of 999 ports for instances and one for the proxy.
    pub fn large() -> Self {
        LARGE.claim()
    }
}

impl Pool {
    fn claim(&self) -> PortBlock {
        let locks = Path::new(env!("CARGO_TARGET_TMPDIR")).join("port-blocks");
        fs::create_dir_all(&locks).unwrap();
        // Each process begins elsewhere: the same tests may run from another checkout beside this one, with locks of its own.
        let start = std::process::id();
        for offset in 0..u32::from(self.blocks) {
            let block = u16::try_from((start + offset) % u32::from(self.blocks)).unwrap();
            let first = self.first + block * self.size;
            let https = first + self.size - 1;
            let lock = OpenOptions::new().write(true).create(true).truncate(false).open(locks.join(first.to_string())).unwrap();
            if lock.try_lock().is_ok() && [first, https].iter().all(|&port| probe_free(&Network::host(), port) == PortState::Free) {
                return PortBlock { first, last: https - 1, https, _lock: lock };
            }
        }
        panic!("no block of {} ports is free from {} on", self.size, self.first);
    }
}
