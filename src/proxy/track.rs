//! What follows a request from its first byte to the last byte of its answer, and settles everything when it is dropped: the access log
//! line, the tenant's counters, the connection's count of requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    access_log::{AccessLog, Entry},
    connection::Busy,
    live::Live,
    service::Shared,
};
use crate::route::SlotActivity;

/// A request under way.
pub(crate) struct Track {
    /// `None` once the line is written.
    entry: Option<Entry>,
    log: AccessLog,
    started: Instant,
    slot: Option<(Arc<Live>, u32)>,
    finished: bool,
    busy: Busy,
}

impl Track {
    pub(crate) fn new(entry: Entry, log: AccessLog, busy: Busy) -> Self {
        Self { entry: Some(entry), log, started: Instant::now(), slot: None, finished: false, busy }
    }

    /// What the line will say, while there is still something to add.
    pub(crate) fn entry(&mut self) -> Option<&mut Entry> {
        self.entry.as_mut()
    }

    /// The request belongs to the tenant in `slot`.
    pub(crate) fn belongs_to(&mut self, live: &Arc<Live>, slot: u32) {
        self.slot = Some((Arc::clone(live), slot));
    }

    /// The proxy answers it itself. One of nobody known is counted as such.
    pub(crate) fn refused(&mut self, shared: &Shared, reason: &'static str) {
        if let Some(entry) = &mut self.entry {
            entry.refused = Some(reason);
        }
        if self.slot.is_none() {
            shared.live.get().meters.note_refusal(reason);
        }
    }

    /// The answer's body goes out from here on.
    pub(crate) fn streams(&mut self) {
        self.busy.stream();
    }

    /// Bytes of the answer's body went out.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.busy.progress();
        if let Some(entry) = &mut self.entry {
            entry.bytes_out += bytes as u64;
        }
    }

    /// It took so long to know who asks.
    pub(crate) fn authorized(&mut self, time: Duration) {
        if let Some(entry) = &mut self.entry {
            entry.auth = time;
        }
    }

    /// The request waited so long for its instance or its turn.
    pub(crate) fn parked(&mut self, time: Duration) {
        if let Some(entry) = &mut self.entry {
            entry.parked += time;
        }
    }

    /// The answer has reached its end.
    pub(crate) fn finished(&mut self) {
        self.finished = true;
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        let Some(mut entry) = self.entry.take() else {
            return;
        };
        entry.total = self.started.elapsed();
        entry.cut = !self.finished;
        if entry.cut && self.busy.is_cut() {
            let tenant = entry.tenant.as_ref().map(ToString::to_string);
            let (method, path, age_ms) = (entry.method.as_str(), entry.uri.path(), entry.total.as_millis());
            tracing::warn!(tenant, request_id = entry.request_id.as_str(), method, path, age_ms, "cut: it did not finish in time");
        }
        if let Some((live, slot)) = &self.slot {
            live.activity.slot(*slot).into_iter().for_each(|slot| settle(slot, &entry));
            live.meters.slot(*slot).into_iter().for_each(|meters| meters.note_answer(entry.total, entry.status, entry.refused));
        }
        self.log.log(entry);
    }
}

fn settle(slot: &SlotActivity, entry: &Entry) {
    if entry.bytes_in > 0 {
        slot.add_bytes_in(entry.bytes_in);
    }
    if entry.bytes_out > 0 {
        slot.add_bytes_out(entry.bytes_out);
    }
    if entry.refused.is_some() && entry.status >= 500 {
        slot.note_error();
    }
}
