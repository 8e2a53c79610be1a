//! instances.db was lost: what it knew is had back from what goes on all the same. The route table says who has which slot, port and epoch, /proc says
//! what runs, and the key of each instance proves the one by the other. So nobody is stopped for it.

use std::collections::BTreeSet;

use super::{
    core::Core,
    world::{Handle, Records, World},
};
use crate::{
    desired::{Desired, Limits, Tenant, TenantId},
    instance::scan::Found,
    observed::{Known, State},
    store::{InstanceRecord, StoreError, TenantRecord},
};

/// Writes down again what the route table of an earlier agent knows and the records do not. Returns how many tenants those are.
///
/// A row is published only after its record is kept, so where there is one without the other, records were lost. What was in force for the tenant is
/// lost with them; what is desired now takes its place, and is held against what runs as after any edit. One that runs and is not desired any more
/// comes back as well: its removal may be held, and that is not decided by a disk.
pub(super) fn take_back(world: &mut impl World, desired: &Desired, records: &[TenantRecord], found: &[Found]) -> Result<usize, StoreError> {
    let is_known = |id: &TenantId| records.binary_search_by(|record| record.id.cmp(id)).is_ok();
    let running: BTreeSet<&TenantId> = found.iter().map(|found| &found.id).filter(|id| !desired.tenants.contains_key(*id)).collect();
    let wanted = desired.tenants.values().cloned().chain(running.into_iter().map(unwanted));
    let mut back = Vec::new();
    for tenant in wanted.filter(|tenant| !is_known(&tenant.id)) {
        let id = &tenant.id;
        let (Some(route), Ok(spec)) = (world.published(id), serde_json::to_string(&tenant)) else { continue };
        back.push(TenantRecord {
            id: id.clone(),
            slot: Some(route.slot),
            port: Some(route.port).filter(|&port| port > 0),
            epoch: route.epoch,
            program: Some(desired.sq.identity()),
            spec: Some(spec),
            removed_at: None,
            instance: None,
        });
    }
    if !back.is_empty() {
        world.records().put_back(&back)?;
    }
    Ok(back.len())
}

/// A tenant of which nothing is known but that it runs.
fn unwanted(id: &TenantId) -> Tenant {
    let limits = Limits::BASE;
    Tenant { id: id.clone(), tier: String::new(), limits, suspended: false, api_keys: vec![], tokens_valid_after: 0, port: None }
}

impl<W: World> Core<W> {
    /// Says once that the records were lost. `aside` is where a corrupt file was moved.
    pub(super) fn tell_of_rebuild(&mut self, aside: Option<&str>, back: usize) {
        let lost = match aside {
            Some(aside) => format!("instances.db was corrupt and is kept as {aside}"),
            None if back > 0 => "instances.db was missing".to_owned(),
            None => return,
        };
        let text = format!("{lost}: {back} tenants are taken back from what runs, nothing is restarted; usage and events begin anew");
        tracing::error!(back, aside, "the records were lost and are rebuilt from what runs");
        self.note_event(None, "records_rebuilt", &text);
    }

    /// Begins the records anew where SQLite found them corrupt under way: the loop knows all that matters.
    pub(super) fn mend_records(&mut self) {
        if !self.world.records().is_corrupt() {
            return;
        }
        let all: Vec<TenantRecord> = self.observed.known.iter().filter_map(|(id, known)| self.record_of(id, known)).collect();
        match self.world.records().start_anew(&all) {
            Ok(aside) => {
                self.history.write_anew();
                self.tell_of_rebuild(Some(&aside), all.len());
            }
            Err(error) => tracing::error!(%error, "the records are corrupt and cannot be begun anew; tried again at the next tick"),
        }
    }

    fn record_of(&self, id: &TenantId, known: &Known) -> Option<TenantRecord> {
        let instance = self.processes.get(id).map(|process| InstanceRecord {
            epoch: known.epoch,
            pid: process.pid(),
            start_time: process.start_time(),
            boot_id: self.boot_id.clone(),
            port: known.port.unwrap_or(0),
            program: known.launched.clone(),
            started_at: match &known.state {
                State::Running(running) => running.started_at,
                _ => 0,
            },
        });
        Some(TenantRecord {
            id: id.clone(),
            slot: Some(known.slot),
            port: known.port,
            epoch: known.epoch,
            program: Some(known.launched.clone()),
            spec: Some(serde_json::to_string(&known.spec).ok()?),
            removed_at: None,
            instance,
        })
    }
}
