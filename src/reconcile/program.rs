//! The sq program: found or installed off the loop; nothing starts without it, nothing stops for want of it.

use std::{sync::Arc, time::Duration};

use super::{agent::Agent, event::Event};
use crate::{
    desired,
    instance::binary::{self, SqBinary},
};

/// Between two tries to get a program that cannot be had.
const RETRY: Duration = Duration::from_secs(60);

impl Agent {
    /// The program is there.
    pub fn set_program(&mut self, program: SqBinary) {
        tracing::info!(path = %program.path.display(), version = %program.version, "sq is there");
        self.observed.program = self.desired.sq.identity();
        self.program = Some(program);
        self.replan = true;
    }

    /// Looks for the desired program, or installs it; what runs goes on meanwhile.
    pub fn find_program(&self) {
        self.find_program_after(Duration::ZERO);
    }

    pub(super) fn find_program_after(&self, wait: Duration) {
        let (desired, reports) = (Arc::clone(&self.desired), self.reports.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let found = binary::ensure(&desired.sq, &desired.state_dir, &|line| tracing::info!("{line}")).await;
            let _ = reports.send(Event::Program(desired.sq.identity(), found.map_err(|error| error.to_string())));
        });
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
                self.find_program_after(RETRY);
            }
        }
    }

    /// Keeps `text`, the tenants.toml in force, for a restart that finds a bad one.
    pub fn save_last_good(&self, text: &str) {
        if let Err(error) = desired::save_last_good(self.intake.file(), text, &self.desired.state_dir) {
            tracing::error!(%error, "a restart depends on tenants.toml itself being good");
        }
    }
}
