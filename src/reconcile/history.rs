//! Keeps what tenants use and how the host stands, a little at each tick, and says what follows from it.
//!
//! Nobody may notice: a twelfth of the tenants at each tick of five seconds, so that each is looked at once a minute and one transaction has at
//! most a twelfth of them. What a slot counted is not lost with the agent; only a boot takes the last minute with it.

use std::collections::HashMap;

use super::{
    core::Core,
    world::{Records, World},
};
use crate::{
    admin::status::{ForecastStatus, ResourceForecast},
    desired::TenantId,
    history::{
        forecast::{self, LOOK_BACK, Measured, Outlook},
        ring::{Point, Ring},
        sample::{COARSE, CpuTicks, FINE, Sample},
        usage::{Addition, Book, Counts, Seen},
    },
    route,
    store::StoreError,
};

/// Ticks in a minute.
const PARTS: u32 = 12;
/// So many days back the peak of an instance counts for what still fits.
const PEAK_DAYS: u32 = 7;

/// What the loop knows of it.
#[derive(Debug)]
pub(super) struct History {
    book: Book,
    /// Whose turn it is.
    part: u32,
    /// The most memory that each instance took in the last days, and the day on which that was asked for.
    peaks: HashMap<TenantId, u64>,
    peaks_of: u32,
    /// The last day of each tenant, by the quarter of an hour.
    rings: HashMap<TenantId, Ring>,
    /// What the processors had done at the last sample.
    cpu: Option<CpuTicks>,
    /// How the host stood last.
    latest: Sample,
    /// What came since.
    since: Counts,
    memory: Outlook,
    disk: Outlook,
    /// It is said that the records cannot take it.
    failing: bool,
}

impl History {
    pub(super) fn new(seen: HashMap<TenantId, Seen>) -> Self {
        let nothing_yet = forecast::outlook(&[], |_| (0, 0));
        Self {
            book: Book::new(seen),
            part: 0,
            peaks: HashMap::new(),
            peaks_of: 0,
            rings: HashMap::new(),
            cpu: None,
            latest: Sample::default(),
            since: Counts::default(),
            memory: nothing_yet,
            disk: nothing_yet,
            failing: false,
        }
    }
}

impl History {
    /// The records were lost: what was seen has to stand in them again.
    pub(super) fn write_anew(&mut self) {
        self.book.write_anew();
    }

    /// The last day of `id`, by the quarter of an hour; as far back as this agent knows.
    pub(super) fn points(&self, id: &TenantId, unix_now: u64) -> Vec<Point> {
        self.rings.get(id).map(|ring| ring.points(unix_now)).unwrap_or_default()
    }

    /// What the host has, as of the last sample: memory and disk, bytes.
    pub(super) fn host(&self) -> (u64, u64) {
        (self.latest.memory_total, self.latest.disk_total)
    }
}

impl<W: World> Core<W> {
    /// To be called at each tick.
    pub(super) fn keep_history(&mut self) {
        let unix_now = self.world.unix_now();
        let part = self.history.part;
        self.history.part = (part + 1) % PARTS;
        self.keep_usage(unix_now, |book, id, slot| slot % PARTS == part || book.is_new(id));
        if unix_now / u64::from(FINE) != self.history.latest.at / u64::from(FINE) {
            self.keep_sample(unix_now);
        }
    }

    /// The agent ends, and with it perhaps what the slots counted: what is not written yet is written now.
    pub fn close_history(&mut self) {
        let unix_now = self.world.unix_now();
        self.keep_usage(unix_now, |_, _, _| true);
    }

    /// `id` has a slot: it counts from here on, unless the records say more.
    pub(super) fn meet(&mut self, id: &TenantId, slot: u32) {
        self.world.reserve_slot(slot);
        let seen = self.seen(slot);
        self.history.book.meet(id, seen);
    }

    /// `id` is let go, and its slot is about to begin anew.
    pub(super) fn close_usage(&mut self, id: &TenantId, slot: u32, storage: Option<u64>) {
        let day = route::day(self.world.unix_now());
        let addition = self.history.book.look(id, day, self.seen(slot), storage);
        self.write_usage(addition.into_iter().collect());
        self.history.book.forget(id);
        self.history.peaks.remove(id);
        self.history.rings.remove(id);
    }

    /// Instances were measured.
    pub(super) fn note_peaks(&mut self) {
        let unix_now = self.world.unix_now();
        let History { book, peaks, rings, .. } = &mut self.history;
        for (id, memory) in &self.memory {
            book.note_memory(id, memory.bytes);
            rings.entry(id.clone()).or_insert_with(|| Ring::new(unix_now)).note_memory(unix_now, memory.bytes);
            match peaks.get_mut(id) {
                Some(peak) => *peak = memory.bytes.max(*peak),
                None => _ = peaks.insert(id.clone(), memory.bytes),
            }
        }
    }

    fn seen(&self, slot: u32) -> Seen {
        let counted = self.world.activity(slot).unwrap_or_default();
        let counts = Counts {
            requests: counted.requests,
            errors: counted.errors,
            writes: counted.writes,
            bytes_in: counted.bytes_in,
            bytes_out: counted.bytes_out,
        };
        Seen { page: self.world.activity_born(), counts }
    }

    fn keep_usage(&mut self, unix_now: u64, whose: impl Fn(&Book, &TenantId, u32) -> bool) {
        let day = route::day(unix_now);
        let known = self.observed.known.iter().filter(|(id, known)| whose(&self.history.book, id, known.slot));
        let additions = known.filter_map(|(id, known)| self.history.book.look(id, day, self.seen(known.slot), known.storage)).collect();
        self.write_usage(additions);
    }

    fn write_usage(&mut self, additions: Vec<Addition>) {
        if additions.is_empty() {
            return;
        }
        let written = self.world.records().add_usage(&additions);
        if self.went_well(written).is_some() {
            self.history.book.written(&additions);
            let unix_now = self.world.unix_now();
            for Addition { id, more, .. } in &additions {
                if more.requests > 0 {
                    self.history.rings.entry(id.clone()).or_insert_with(|| Ring::new(unix_now)).note_requests(unix_now, more.requests);
                }
                self.history.since.requests += more.requests;
                self.history.since.errors += more.errors;
            }
        }
    }

    fn keep_sample(&mut self, unix_now: u64) {
        let memory = self.world.host_memory();
        let disk = self.room.disk;
        let since = std::mem::take(&mut self.history.since);
        let cpu = self.world.host_cpu();
        let before = std::mem::replace(&mut self.history.cpu, cpu);
        let sample = Sample {
            at: unix_now,
            memory_total: memory.map_or(0, |memory| memory.total),
            memory_used: memory.map_or(0, |memory| memory.used),
            disk_total: disk.map_or(0, |disk| disk.total),
            disk_used: disk.map_or(0, |disk| disk.total.saturating_sub(disk.free)),
            instances: self.processes.len() as u64,
            instances_memory: self.memory.values().map(|memory| memory.bytes).sum(),
            requests: since.requests,
            errors: since.errors,
            cpu: cpu.zip(before).and_then(|(now, before)| now.since(before)),
        };
        let kept = self.world.records().keep_sample(&sample);
        self.went_well(kept);
        let new_quarter = unix_now / u64::from(COARSE) != self.history.latest.at / u64::from(COARSE);
        self.history.latest = sample;
        if new_quarter {
            self.foretell(unix_now);
        }
        let day = route::day(unix_now);
        if self.history.peaks_of != day {
            let peaks = self.world.records().peaks_since(day.saturating_sub(PEAK_DAYS));
            if let Some(peaks) = self.went_well(peaks) {
                (self.history.peaks, self.history.peaks_of) = (peaks, day);
                self.note_peaks();
            }
        }
    }

    fn foretell(&mut self, unix_now: u64) {
        let samples = self.world.records().samples(COARSE, unix_now.saturating_sub(LOOK_BACK));
        let Some(mut samples) = self.went_well(samples) else { return };
        samples.push(self.history.latest);
        self.history.memory = forecast::outlook(&samples, |sample| (sample.memory_total, sample.memory_used));
        self.history.disk = forecast::outlook(&samples, |sample| (sample.disk_total, sample.disk_used));
    }

    /// Says once that the records cannot take it, and once that they can again.
    fn went_well<T>(&mut self, outcome: Result<T, StoreError>) -> Option<T> {
        let failing = outcome.is_err();
        match (&outcome, std::mem::replace(&mut self.history.failing, failing)) {
            (Err(error), false) => {
                tracing::error!(%error, "what tenants use cannot be noted; it is counted on, and noted when that is possible")
            }
            (Ok(_), true) => tracing::info!("what tenants use is noted again"),
            _ => {}
        }
        outcome.ok()
    }

    /// What is to come.
    pub(super) fn forecast_status(&self) -> ForecastStatus {
        let Sample { memory_total, memory_used, disk_total, disk_used, .. } = self.history.latest;
        let known = &self.observed.known;
        let stored = || known.values().filter_map(|known| known.storage);
        let measured = Measured {
            instances: self.memory.len() as u64,
            memory: self.memory.values().map(|memory| memory.bytes).sum(),
            peaks: self
                .memory
                .iter()
                .map(|(id, memory)| self.history.peaks.get(id).map_or(memory.bytes, |peak| memory.bytes.max(*peak)))
                .sum(),
            stored: stored().count() as u64,
            storage: stored().sum(),
            ports_free: self.ports.free(),
        };
        ForecastStatus {
            memory: ResourceForecast::new("memory", memory_total, memory_used, self.history.memory),
            disk: ResourceForecast::new("disk", disk_total, disk_used, self.history.disk),
            tenants_fit: forecast::fit(&self.history.latest, &measured),
        }
    }
}
