//! What the loop keeps, in instances.db.

use std::collections::HashMap;

use super::world::{Memo, Records};
use crate::{
    admin::page::Begun,
    crash_point,
    desired::TenantId,
    history::{
        sample::Sample,
        usage::{Addition, Seen},
    },
    route,
    store::{self, InstanceRecord, Store, StoreError, TenantRecord},
};

impl Records for Store {
    fn load(&mut self) -> Result<Vec<TenantRecord>, StoreError> {
        self.watched(Self::load)
    }

    fn put_back(&mut self, tenants: &[TenantRecord]) -> Result<(), StoreError> {
        self.watched(|store| store.put_back(tenants))
    }

    fn is_corrupt(&self) -> bool {
        Self::is_corrupt(self)
    }

    fn start_anew(&mut self, tenants: &[TenantRecord]) -> Result<String, StoreError> {
        let aside = self.replace()?;
        self.put_back(tenants)?;
        Ok(aside.display().to_string())
    }

    fn quarantined(&mut self, now: u64) -> Result<HashMap<u16, u64>, StoreError> {
        self.watched(|store| store.quarantined(now))
    }

    fn take_in(&mut self, id: &TenantId, spec: &str) -> Result<u32, StoreError> {
        self.watched(|store| {
            let slot = store.assign_slot(id)?;
            store.set_spec(id, spec)?;
            Ok(slot)
        })
        .inspect(|_| crash_point::reached("take_in.noted"))
    }

    fn begin_start(&mut self, id: &TenantId, port: u16, program: &str, until: u64) -> Result<u64, StoreError> {
        self.watched(|store| {
            let epoch = store.next_epoch(id)?;
            store.release_port(id, until)?;
            store.set_port(id, port)?; // which ends the quarantine, if it is the same one
            store.set_program(id, program)?;
            Ok(epoch)
        })
        .inspect(|_| crash_point::reached("start.noted"))
    }

    fn record_instance(&mut self, id: &TenantId, instance: &InstanceRecord) -> Result<(), StoreError> {
        self.watched(|store| store.record_instance(id, instance)).inspect(|()| crash_point::reached("start.recorded"))
    }

    fn clear_instance(&mut self, id: &TenantId) -> Result<(), StoreError> {
        self.watched(|store| store.clear_instance(id)).inspect(|()| crash_point::reached("stop.cleared"))
    }

    fn set_spec(&mut self, id: &TenantId, spec: &str) -> Result<(), StoreError> {
        self.watched(|store| store.set_spec(id, spec)).inspect(|()| crash_point::reached("apply.noted"))
    }

    fn kept(&mut self, memo: Memo) -> Result<Option<String>, StoreError> {
        self.watched(|store| store.note(memo.name()))
    }

    fn keep(&mut self, memo: Memo, value: &str) -> Result<(), StoreError> {
        self.watched(|store| store.set_note(memo.name(), value)).inspect(|()| match memo {
            Memo::Programs => crash_point::reached("roll_out.kept"),
            Memo::Alerts => crash_point::reached("alerts.kept"),
            Memo::Backups | Memo::GitOps => {}
        })
    }

    fn let_go(&mut self, id: &TenantId, at: u64, until: u64) -> Result<(), StoreError> {
        self.watched(|store| {
            store.release_port(id, until)?;
            store.tombstone(id, at)
        })
        .inspect(|()| crash_point::reached("remove.noted"))
    }

    fn usage_seen(&mut self) -> Result<HashMap<TenantId, Seen>, StoreError> {
        self.watched(Self::usage_seen)
    }

    fn peaks_since(&mut self, day: u32) -> Result<HashMap<TenantId, u64>, StoreError> {
        self.watched(|store| store.peaks_since(day))
    }

    fn add_usage(&mut self, additions: &[Addition]) -> Result<(), StoreError> {
        self.watched(|store| store.add_usage(additions))
    }

    fn keep_sample(&mut self, sample: &Sample) -> Result<(), StoreError> {
        self.watched(|store| {
            store.keep_sample(sample)?;
            store.thin_usage(route::day(sample.at))?;
            store.thin_events(sample.at)
        })
    }

    fn samples(&mut self, step: u32, since: u64) -> Result<Vec<Sample>, StoreError> {
        self.watched(|store| store.samples(step, since))
    }

    fn events(
        &mut self,
        id: Option<&TenantId>,
        kind: Option<&str>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<store::Event>, StoreError> {
        self.watched(|store| store.events_of(id, kind, before, limit))
    }

    fn begin_request(&mut self, lookup: &str, fingerprint: &str, now: u64) -> Result<Begun, StoreError> {
        self.watched(|store| store.begin_request(lookup, fingerprint, now))
    }

    fn end_request(&mut self, lookup: &str, answer: Option<&[u8]>) -> Result<(), StoreError> {
        self.watched(|store| store.end_request(lookup, answer))
    }

    fn event(&mut self, at: u64, id: Option<&TenantId>, kind: &str, detail: &str) -> Result<(), StoreError> {
        self.watched(|store| store.event(at, id, kind, detail))
    }
}
