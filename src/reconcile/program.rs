//! The sq program: found or installed off the loop; nothing starts without it, nothing stops for want of it.

use std::time::Duration;

use super::{core::Core, world::World};
use crate::instance::binary::SqBinary;

/// Between two tries to get a program that cannot be had.
const RETRY: Duration = Duration::from_secs(60);

impl<W: World> Core<W> {
    /// The program is there.
    pub fn set_program(&mut self, program: SqBinary) {
        tracing::info!(path = %program.path.display(), version = %program.version, "sq is there");
        self.observed.program = self.desired.sq.identity();
        self.program = Some(program);
        self.replan = true;
    }

    /// Looks for the desired program, or installs it; what runs goes on meanwhile.
    pub fn find_program(&mut self) {
        self.world.find_program(&self.desired.sq, Duration::ZERO);
    }

    /// The search for the program named `identity` ended; one that is not desired any more is no news.
    pub(super) fn program_found(&mut self, identity: &str, found: Result<SqBinary, String>) {
        if identity != self.desired.sq.identity() {
            return;
        }
        match found {
            Ok(program) => self.set_program(program),
            Err(error) => {
                tracing::error!(error, "sq cannot be had: what runs goes on, nothing is started; tried again in a minute");
                self.note_event(None, "sq_missing", &error);
                self.world.find_program(&self.desired.sq, RETRY);
            }
        }
    }

    /// Keeps `text`, the tenants.toml in force, for a restart that finds a bad one.
    pub fn save_last_good(&mut self, text: &str) {
        if let Err(error) = self.world.save_last_good(text) {
            tracing::error!(%error, "a restart depends on tenants.toml itself being good");
        }
    }
}
