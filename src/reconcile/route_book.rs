//! The rows as they were published last, so that a round that changed one tenant writes one row.

use std::collections::{BTreeSet, HashMap};

use super::rows;
use crate::{
    desired::TenantId,
    observed::{Moment, Observed},
    route::Row,
};

/// Rows, and whose may have changed.
#[derive(Debug, Default)]
pub struct RouteBook {
    rows: Vec<Row>,
    index: HashMap<TenantId, usize>,
    dirty: BTreeSet<TenantId>,
    pending: Pending,
}

/// What of the rows is not in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Pending {
    Nothing,
    /// As at the start: what stands in the table is an earlier agent's, also where no tenant is left.
    #[default]
    Changed,
    /// And writing it failed.
    Failed,
}

impl RouteBook {
    /// The row of `id` may have changed.
    pub fn touch(&mut self, id: &TenantId) {
        self.dirty.insert(id.clone());
    }

    /// All rows as they are now, where they differ from what was published last.
    pub fn unpublished(&mut self, observed: &Observed, now: Moment) -> Option<&[Row]> {
        for id in std::mem::take(&mut self.dirty) {
            let changed = match observed.known.get(&id) {
                Some(known) => self.put(&id, rows::row(&id, known, observed.disk_low, now)),
                None => self.remove(&id),
            };
            if changed {
                self.pending = self.pending.max(Pending::Changed);
            }
        }
        (self.pending > Pending::Nothing).then_some(&self.rows)
    }

    /// The rows stand in the table.
    pub fn published(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// Whether the rows as they are now stand in the table.
    pub fn is_published(&self) -> bool {
        self.pending == Pending::Nothing && self.dirty.is_empty()
    }

    /// The table could not be written; whether that is news.
    pub fn failed(&mut self) -> bool {
        std::mem::replace(&mut self.pending, Pending::Failed) != Pending::Failed
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
}
