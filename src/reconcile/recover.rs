//! What a starting agent knows: the records of instances.db, held against the processes that really run.

use std::collections::{BTreeMap, HashMap};

use crate::{
    desired::TenantId,
    instance::scan::Found,
    observed::{Known, State},
    store::{InstanceRecord, TenantRecord},
};

/// The observed state at the start, and the processes that still have to be looked at.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Every tenant that has a place.
    pub known: BTreeMap<TenantId, Known>,
    /// Live processes by the tenant in whose directory they run.
    pub found: BTreeMap<TenantId, Vec<Found>>,
    /// What the records say of the latest instances.
    pub instances: HashMap<TenantId, InstanceRecord>,
    /// Processes of tenants that no record knows: they are ended.
    pub strays: Vec<Found>,
}

/// Joins records with processes. A tenant of which something runs is `Unknown` until a look has proved what it is;
/// one of which nothing runs is `Absent`, whatever its record says.
pub fn recover(records: Vec<TenantRecord>, found: Vec<Found>) -> Recovered {
    let mut recovered = Recovered::default();
    let mut processes: BTreeMap<TenantId, Vec<Found>> = BTreeMap::new();
    for found in found {
        processes.entry(found.id.clone()).or_default().push(found);
    }
    for record in records.into_iter().filter(|record| record.removed_at.is_none()) {
        // A removed tenant's slot may be another's by now, and a spec that cannot be read is of another version: it is taken in again.
        let (Some(slot), Some(spec)) = (record.slot, record.spec.as_deref().and_then(|spec| serde_json::from_str(spec).ok())) else {
            continue;
        };
        let program = record.program.unwrap_or_default();
        let latest =
            Known { program: program.clone(), launched: program, epoch: record.epoch, port: record.port, ..Known::new(slot, spec) };
        let mut known = latest;
        if let Some(running) = processes.remove(&record.id) {
            known.state = State::Unknown;
            recovered.found.insert(record.id.clone(), running);
            known.started_before = true;
        } else if record.instance.is_some() {
            known.last_exit = Some("ended while no agent ran".into());
        }
        recovered.instances.extend(record.instance.map(|instance| (record.id.clone(), instance)));
        recovered.known.insert(record.id, known);
    }
    recovered.strays = processes.into_values().flatten().collect();
    recovered
}
