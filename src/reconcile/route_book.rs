//! The rows as they were published last, so that a round that changed one tenant writes one row.

use std::collections::{BTreeSet, HashMap};

use super::rows;
use crate::{
    desired::TenantId,
    observed::{Moment, Observed, monotonic},
    route::{Row, TableWriter},
};

/// Rows and the table they go to.
pub struct RouteBook {
    table: TableWriter,
    rows: Vec<Row>,
    index: HashMap<TenantId, usize>,
    dirty: BTreeSet<TenantId>,
}

impl RouteBook {
    /// A book without rows; the table keeps what it holds until the first [`Self::publish`] with a change.
    pub fn new(table: TableWriter) -> Self {
        Self { table, rows: Vec::new(), index: HashMap::new(), dirty: BTreeSet::new() }
    }

    /// The row of `id` may have changed.
    pub fn touch(&mut self, id: &TenantId) {
        self.dirty.insert(id.clone());
    }

    /// Publishes what changed; nothing where nothing did.
    pub fn publish(&mut self, observed: &Observed, now: Moment) {
        let mut changed = false;
        for id in std::mem::take(&mut self.dirty) {
            changed |= match observed.known.get(&id) {
                Some(known) => self.put(&id, rows::row(&id, known, now)),
                None => self.remove(&id),
            };
        }
        if changed && let Err(error) = self.table.publish(&self.rows) {
            tracing::error!(%error, "the route table cannot be written");
        }
    }

    fn put(&mut self, id: &TenantId, row: Row) -> bool {
        match self.index.get(id) {
            Some(&at) if self.rows[at] == row => false,
            Some(&at) => {
                self.rows[at] = row;
                true
            }
            None => {
                self.index.insert(id.clone(), self.rows.len());
                self.rows.push(row);
                true
            }
        }
    }

    fn remove(&mut self, id: &TenantId) -> bool {
        let Some(at) = self.index.remove(id) else { return false };
        self.rows.swap_remove(at);
        if let Some(moved) = self.rows.get(at).and_then(|row| TenantId::parse(&row.id).ok()) {
            self.index.insert(moved, at);
        }
        true
    }

    /// Shows readers that the agent lives.
    pub fn heartbeat(&self) {
        self.table.heartbeat(u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX));
    }

    /// See [`TableWriter::generation`].
    pub fn generation(&self) -> u64 {
        self.table.generation()
    }
}
