//! What survives the agent: each call reaches it, is refused, or is the agent's last.

use std::{cell::RefMut, collections::HashMap, io, panic};

use sq_agent::{
    admin::page::Begun,
    desired::TenantId,
    history::{
        sample::Sample,
        usage::{Addition, Seen},
    },
    reconcile::world::{Memo, Records},
    store::{self, InstanceRecord, StoreError, TenantRecord},
};

use crate::{
    calls::Call,
    state::{Shared, State, trace},
};

/// With this the agent's turn ends where it dies.
pub(crate) struct AgentDied;

/// What survives the agent.
pub(crate) struct SimRecords(pub(crate) Shared);

impl SimRecords {
    /// What each call of the agent goes through.
    pub(crate) fn call<R>(&self, call: Call, changes: bool, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.0.borrow_mut();
        let fate = state.fate(call);
        if fate == Some(false) {
            die(state, call, "before");
        }
        if changes {
            state.changes += 1;
            if state.frozen {
                state.broken(format!("{call:?} though everything is as desired"));
            }
        }
        let result = act(&mut state);
        if fate == Some(true) {
            die(state, call, "after");
        }
        result
    }

    /// Also where everything is as desired: what happened is over some time later.
    fn keep_alerts(&mut self, kept: &str) -> Result<(), StoreError> {
        self.call(Call::KeepAlerts, false, |state| {
            if state.until.records_fail > state.now && state.rng.one_in(2) {
                state.unkept.get_or_insert_default();
                return Err(full());
            }
            state.unkept = None;
            state.alerts = Some(kept.to_owned());
            Ok(())
        })
    }

    /// A call to instances.db, which may refuse it.
    fn write<R>(&self, call: Call, act: impl FnOnce(&mut State) -> Result<R, StoreError>) -> Result<R, StoreError> {
        self.call(call, true, |state| {
            if state.until.records_fail > state.now && state.rng.one_in(2) {
                trace!(state, "{call:?} is refused");
                state.coverage.hit("records_failed");
                return Err(full());
            }
            act(state)
        })
    }
}

impl Records for SimRecords {
    fn load(&mut self) -> Result<Vec<TenantRecord>, StoreError> {
        self.call(Call::LoadRecords, false, |state| Ok(state.records.values().cloned().collect()))
    }

    fn put_back(&mut self, _tenants: &[TenantRecord]) -> Result<(), StoreError> {
        unreachable!("no simulated host loses its records");
    }

    fn is_corrupt(&self) -> bool {
        false
    }

    fn start_anew(&mut self, _tenants: &[TenantRecord]) -> Result<String, StoreError> {
        unreachable!("no simulated host loses its records");
    }

    fn quarantined(&mut self, now: u64) -> Result<HashMap<u16, u64>, StoreError> {
        self.call(Call::Quarantined, false, |state| {
            state.quarantine.retain(|_, until| *until > now);
            if !state.quarantine.is_empty() {
                state.coverage.hit("port_rested");
            }
            Ok(state.quarantine.clone().into_iter().collect())
        })
    }

    fn take_in(&mut self, id: &TenantId, spec: &str) -> Result<u32, StoreError> {
        self.write(Call::TakeIn, |state| {
            if let Some(record) = state.records.get_mut(id) {
                record.removed_at = None;
                record.spec = Some(spec.to_owned());
                return Ok(record.slot.unwrap_or(0));
            }
            let slot = state.next_slot;
            state.next_slot += 1;
            let record = TenantRecord {
                id: id.clone(),
                slot: Some(slot),
                port: None,
                epoch: 0,
                program: None,
                spec: Some(spec.to_owned()),
                removed_at: None,
                instance: None,
            };
            state.records.insert(id.clone(), record);
            Ok(slot)
        })
    }

    fn begin_start(&mut self, id: &TenantId, port: u16, program: &str, until: u64) -> Result<u64, StoreError> {
        self.write(Call::BeginStart, |state| {
            if let Some(owner) = state.records.values().find(|record| record.port == Some(port) && record.id != *id) {
                return Err(StoreError::PortOwned { port, owner: owner.id.to_string() });
            }
            let record = known(state, id)?;
            record.epoch += 1;
            record.program = Some(program.to_owned());
            let epoch = record.epoch;
            if let Some(former) = record.port.replace(port) {
                state.quarantine.insert(former, until);
            }
            state.quarantine.remove(&port);
            Ok(epoch)
        })
    }

    fn record_instance(&mut self, id: &TenantId, instance: &InstanceRecord) -> Result<(), StoreError> {
        self.write(Call::RecordInstance, |state| {
            known(state, id)?.instance = Some(instance.clone());
            Ok(())
        })
    }

    fn clear_instance(&mut self, id: &TenantId) -> Result<(), StoreError> {
        self.write(Call::ClearInstance, |state| {
            if let Some(record) = state.records.get_mut(id) {
                record.instance = None;
            }
            Ok(())
        })
    }

    fn set_spec(&mut self, id: &TenantId, spec: &str) -> Result<(), StoreError> {
        self.write(Call::SetSpec, |state| {
            known(state, id)?.spec = Some(spec.to_owned());
            Ok(())
        })
    }

    fn let_go(&mut self, id: &TenantId, at: u64, until: u64) -> Result<(), StoreError> {
        self.write(Call::LetGo, |state| {
            trace!(state, "{id} is let go");
            let record = known(state, id)?;
            record.removed_at = Some(at);
            if let Some(port) = record.port.take() {
                state.quarantine.insert(port, until);
            }
            Ok(())
        })
    }

    fn kept(&mut self, memo: Memo) -> Result<Option<String>, StoreError> {
        match memo {
            Memo::Programs => self.call(Call::Programs, false, |state| Ok(state.programs.clone())),
            Memo::Alerts => self.call(Call::Alerts, false, |state| Ok(state.alerts.clone())),
            Memo::Backups | Memo::GitOps => Ok(None),
        }
    }

    fn keep(&mut self, memo: Memo, value: &str) -> Result<(), StoreError> {
        match memo {
            Memo::Programs => self.write(Call::KeepPrograms, |state| {
                state.programs = Some(value.to_owned());
                Ok(())
            }),
            Memo::Alerts => self.keep_alerts(value),
            Memo::Backups | Memo::GitOps => Ok(()),
        }
    }

    fn events(
        &mut self,
        _id: Option<&TenantId>,
        _kind: Option<&str>,
        _before: Option<u64>,
        _limit: u32,
    ) -> Result<Vec<store::Event>, StoreError> {
        Ok(Vec::new())
    }

    fn begin_request(&mut self, _lookup: &str, _fingerprint: &str, _now: u64) -> Result<Begun, StoreError> {
        Ok(Begun::First)
    }

    fn end_request(&mut self, _lookup: &str, _answer: Option<&[u8]>) -> Result<(), StoreError> {
        Ok(())
    }

    fn usage_seen(&mut self) -> Result<HashMap<TenantId, Seen>, StoreError> {
        Ok(HashMap::new())
    }

    fn peaks_since(&mut self, _day: u32) -> Result<HashMap<TenantId, u64>, StoreError> {
        Ok(HashMap::new())
    }

    // By the minute also where everything is as desired.
    fn add_usage(&mut self, _additions: &[Addition]) -> Result<(), StoreError> {
        self.call(Call::AddUsage, false, |_| Ok(()))
    }

    fn keep_sample(&mut self, _sample: &Sample) -> Result<(), StoreError> {
        self.call(Call::KeepSample, false, |_| Ok(()))
    }

    fn samples(&mut self, _step: u32, _since: u64) -> Result<Vec<Sample>, StoreError> {
        Ok(Vec::new())
    }

    fn event(&mut self, _at: u64, id: Option<&TenantId>, kind: &str, detail: &str) -> Result<(), StoreError> {
        self.write(Call::Event, |state| {
            let whose = id.map_or("", TenantId::as_str);
            trace!(state, "event {kind} {whose}: {detail}");
            match kind {
                "removals_held" => state.coverage.hit("held"),
                "removals_confirmed" => state.coverage.hit("confirmed"),
                "rollout_complete" => state.coverage.hit("roll_out_complete"),
                "rollout_went_back" => state.coverage.hit("roll_out_went_back"),
                "crash_loop" => state.coverage.hit("crash_loop"),
                "port_skipped" => state.coverage.hit("port_skipped"),
                "stopped" => {
                    let hit = match detail {
                        "removed from tenants.toml" => "stopped_removed",
                        "suspended" => "stopped_suspended",
                        "its memory limit was lowered below what it uses" => "stopped_for_lowered_limit",
                        "a snapshot is put back" => "stopped_for_restore",
                        "a write broke off: the text is put back as it was" => "stopped_in_doubt",
                        "three probes in a row failed" => "stopped_for_failed_probes",
                        "another sq program is desired" => {
                            if !state.has_program {
                                state.broken(format!("{whose} is stopped for a program that is not there"));
                            }
                            "another_program_rolled_out"
                        }
                        _ => "stopped_otherwise",
                    };
                    state.coverage.hit(hit);
                }
                _ => {}
            }
            Ok(())
        })
    }
}

/// Ends the agent's turn `when` it makes the call.
fn die(mut state: RefMut<'_, State>, call: Call, when: &str) -> ! {
    state.coverage.crashed_at(call);
    trace!(state, "the agent dies {when} {call:?}");
    drop(state);
    panic::resume_unwind(Box::new(AgentDied))
}

fn full() -> StoreError {
    StoreError::File { what: "writing", path: "instances.db".into(), error: io::ErrorKind::StorageFull.into() }
}

fn known<'a>(state: &'a mut State, id: &TenantId) -> Result<&'a mut TenantRecord, StoreError> {
    state.records.get_mut(id).ok_or_else(|| StoreError::UnknownTenant(id.to_string()))
}
