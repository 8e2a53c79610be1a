//! A change made in the text of a tenants.toml. Pure.
//!
//! toml_edit says where everything stands; the text itself is spliced, so that whatever is not concerned stays the same to the byte: comments,
//! order, quotes, line ends (which toml_edit would write as `\n`).

use std::ops::Range;

use toml_edit::{Array, Document, Item, TableLike, Value};

use super::{
    change::{Change, representable},
    lines::{Splice, blank_above, blank_below, comments_above, comments_below, indent, line_break, line_end, line_start, spliced},
    list,
};
use crate::{
    desired::{FREE, TenantId, parse_digest, parse_moment},
    digest::hex,
    store::rfc3339,
};

/// What a change makes of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edited {
    /// It says so already.
    Unchanged,
    /// The text that does.
    Changed(String),
}

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no TOML, or not as a tenants.toml is built; whoever loads it is told where and why.
    #[error("tenants.toml cannot be edited as it stands: {0}; see `sq-agent check`")]
    Unreadable(String),
    /// There is nobody of that name.
    #[error("there is no tenant {0}")]
    UnknownTenant(TenantId),
    /// There is no tier of that name.
    #[error("there is no tier {tier:?}; tiers of this host: {}", known.join(", "))]
    UnknownTier {
        /// What was asked for.
        tier: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A tenant of that name is there, with another tier.
    #[error("{id} is there already, in tier {has:?}: change its tier instead")]
    OtherTier {
        /// Who.
        id: TenantId,
        /// Its tier.
        has: String,
    },
    /// One key names one tenant.
    #[error("that API key is {owner}'s: make another one")]
    KeyTaken {
        /// Whose it is.
        owner: String,
    },
}

/// `text` with `change` made.
///
/// # Errors
/// The change cannot be made; the text stays as it is.
pub fn apply(text: &str, change: &Change) -> Result<Edited, Refused> {
    let (new, mut outcomes) = apply_all(text, &[change]);
    let changed = outcomes.pop().unwrap_or(Ok(false))?;
    Ok(if changed { Edited::Changed(new) } else { Edited::Unchanged })
}

/// `text` with all of `changes` made that can be, no two of one tenant; of each, whether it was not so before, or why it cannot be.
pub(super) fn apply_all(text: &str, changes: &[&Change]) -> (String, Vec<Result<bool, Refused>>) {
    let mut text = text.to_owned();
    let mut outcomes: Vec<Result<bool, Refused>> = changes.iter().map(|_| Ok(false)).collect();
    let mut waiting: Vec<usize> = (0..changes.len()).collect();
    // To take the text apart costs most, so that is done once for all that do not touch each other.
    while !waiting.is_empty() {
        (text, waiting) = match Document::parse(text.as_str()) {
            Ok(document) => pass(&text, &document, changes, &waiting, &mut outcomes),
            Err(error) => {
                let unreadable = Refused::Unreadable(error.message().to_owned());
                waiting.iter().for_each(|&at| outcomes[at] = Err(unreadable.clone()));
                break;
            }
        };
    }
    (text, outcomes)
}

/// Makes those of the `waiting` changes that can be made side by side. Returns the text with them, and those that still wait.
fn pass(
    text: &str,
    document: &Document<&str>,
    changes: &[&Change],
    waiting: &[usize],
    outcomes: &mut [Result<bool, Refused>],
) -> (String, Vec<usize>) {
    let file = match File::of(text, document) {
        Ok(file) => file,
        Err(refused) => {
            waiting.iter().for_each(|&at| outcomes[at] = Err(refused.clone()));
            return (text.to_owned(), Vec::new());
        }
    };
    let (mut all, mut left) = (Vec::<Splice>::new(), Vec::new());
    // The new blocks follow on each other in one splice.
    let mut block = None;
    for &at in waiting {
        let splices = match file.splices(changes[at]) {
            Ok(splices) => splices,
            Err(refused) => {
                outcomes[at] = Err(refused);
                continue;
            }
        };
        outcomes[at] = Ok(!splices.is_empty());
        let is_block = file.list.is_none() && matches!(changes[at], Change::Provision { .. }) && !splices.is_empty();
        if let (true, Some(block)) = (is_block, block) {
            let another: &mut Splice = &mut all[block];
            another.with.push_str(splices[0].with.strip_prefix(file.missing_end(splices[0].range.start)).unwrap_or_default());
        } else if splices.iter().any(|splice| all.iter().any(|other| other.touches(splice))) {
            left.push(at);
        } else {
            block = if is_block { Some(all.len()) } else { block };
            all.extend(splices);
        }
    }
    (spliced(text, all), left)
}

/// A tenants.toml, taken apart.
struct File<'a> {
    text: &'a str,
    document: &'a Document<&'a str>,
    tenants: Vec<Entry<'a>>,
    /// `tenants = […]`, where it is written so.
    list: Option<&'a Array>,
}

/// What the file says of one tenant.
struct Entry<'a> {
    id: &'a str,
    table: &'a dyn TableLike,
    /// Its header or, in a list, all of it.
    span: Range<usize>,
    /// Where what belongs to the table before it ends; only of `[[tenants]]`.
    top: usize,
    inline: bool,
}

impl<'a> File<'a> {
    fn of(text: &'a str, document: &'a Document<&'a str>) -> Result<Self, Refused> {
        let broken = || Refused::Unreadable("`tenants` is no list of tenants".into());
        let entry = |table: &'a dyn TableLike, span: Option<Range<usize>>, top: Option<usize>, inline| {
            let id = table.get("id").and_then(Item::as_str)?;
            let span = span?;
            Some(Entry { id, table, top: top.unwrap_or(span.start), span, inline })
        };
        let item = document.get("tenants");
        let (list, tenants): (_, Option<Vec<_>>) = match item {
            None => (None, Some(Vec::new())),
            Some(Item::ArrayOfTables(tables)) => {
                let top = |table: &toml_edit::Table| table.decor().prefix().and_then(|prefix| prefix.span()).map(|span| span.start);
                (None, tables.iter().map(|table| entry(table, table.span(), top(table), false)).collect())
            }
            Some(Item::Value(Value::Array(list))) => {
                let entries = list.iter().map(|value| entry(value.as_inline_table()?, value.span(), None, true));
                (Some(list), entries.collect())
            }
            Some(_) => return Err(broken()),
        };
        Ok(Self { text, document, tenants: tenants.ok_or_else(broken)?, list })
    }

    fn splices(&self, change: &Change) -> Result<Vec<Splice>, Refused> {
        let found = self.tenants.iter().position(|entry| entry.id == change.id().as_str());
        let entry = match (change, found) {
            (Change::Provision { tier, id }, None) => return self.provision(id, tier.as_deref()),
            (Change::Provision { tier, .. }, Some(at)) => return self.is_provisioned(&self.tenants[at], tier.as_deref(), change.id()),
            (_, None) => return Err(Refused::UnknownTenant(change.id().clone())),
            (Change::Remove { .. }, Some(at)) => return Ok(self.removal(at)),
            (_, Some(at)) => &self.tenants[at],
        };
        match change {
            Change::Suspend { suspended, .. } => {
                let is = entry.value("suspended").and_then(Value::as_bool).unwrap_or(false);
                Ok(self.set(entry, "suspended", &suspended.to_string(), is == *suspended))
            }
            Change::Tier { tier, .. } => {
                self.check_tier(tier)?;
                Ok(self.set(entry, "tier", &self.quoted_as(entry.value("tier"), tier), entry.tier() == tier))
            }
            Change::RevokeTokens { at, .. } => {
                let at = representable(*at);
                let before = entry.value("tokens_valid_after").and_then(Value::as_datetime).and_then(parse_moment).unwrap_or(0);
                Ok(self.set(entry, "tokens_valid_after", &rfc3339(at), before >= at))
            }
            Change::AddApiKey { digest, .. } => self.add_key(entry, *digest),
            Change::RemoveApiKey { digest, .. } => Ok(self.remove_key(entry, *digest)),
            Change::Provision { .. } | Change::Remove { .. } => Ok(Vec::new()),
        }
    }

    fn check_tier(&self, tier: &str) -> Result<(), Refused> {
        let known: Vec<String> = match self.document.get("tiers").and_then(Item::as_table_like) {
            Some(tiers) => tiers.iter().map(|(name, _)| name.to_owned()).collect(),
            None => vec![FREE.to_owned()],
        };
        if known.iter().any(|name| name == tier) { Ok(()) } else { Err(Refused::UnknownTier { tier: tier.to_owned(), known }) }
    }

    fn is_provisioned(&self, entry: &Entry<'_>, tier: Option<&str>, id: &TenantId) -> Result<Vec<Splice>, Refused> {
        match tier {
            Some(tier) if tier != entry.tier() => {
                self.check_tier(tier)?;
                Err(Refused::OtherTier { id: id.clone(), has: entry.tier().to_owned() })
            }
            _ => Ok(Vec::new()),
        }
    }

    fn provision(&self, id: &TenantId, tier: Option<&str>) -> Result<Vec<Splice>, Refused> {
        self.check_tier(tier.unwrap_or(FREE))?;
        if let Some(list) = self.list {
            let tier = tier.map_or(String::new(), |tier| format!(", tier = {tier:?}"));
            return Ok(list::append(self.text, list, &format!("{{ id = \"{id}\"{tier} }}")));
        }
        let nl = line_break(self.text);
        let (at, outer, inner, gap) = match self.tenants.last() {
            Some(last) => self.below(last),
            None => {
                (self.text.len(), "", "", self.text.len() > self.start() && blank_above(self.text, self.start(), self.text.len()).1 == 0)
            }
        };
        let mut with = self.missing_end(at).to_owned();
        if gap {
            with.push_str(nl);
        }
        with.push_str(&format!("{outer}[[tenants]]{nl}{inner}id = \"{id}\"{nl}"));
        if let Some(tier) = tier {
            with.push_str(&format!("{inner}tier = {tier:?}{nl}"));
        }
        Ok(vec![Splice::insert(at, with)])
    }

    /// The end of the line before the byte `at`, where it lacks one.
    fn missing_end(&self, at: usize) -> &'static str {
        if at > self.start() && !self.text[..at].ends_with('\n') { line_break(self.text) } else { "" }
    }

    /// Where another block would stand below `last`, with the white before its header and its keys, and whether a blank line comes first.
    fn below(&self, last: &Entry<'a>) -> (usize, &'a str, &'a str, bool) {
        let block = self.block(last);
        let outer = indent(self.text, last.span.start).unwrap_or_default();
        let inner = last.table.get_key_value("id").and_then(|(key, _)| indent(self.text, key.span()?.start)).unwrap_or_default();
        let tight = self.tenants.len() > 1 && blank_above(self.text, last.top, block.start).1 == 0;
        (comments_below(self.text, block.end), outer, inner, !tight)
    }

    /// The lines of a `[[tenants]]`: the comments directly above it, its header, its keys and all between them.
    fn block(&self, entry: &Entry<'_>) -> Range<usize> {
        let top = entry.top.max(self.start());
        let start = comments_above(self.text, top, line_start(self.text, entry.span.start).max(top));
        let keys = entry.table.iter().filter_map(|(_, item)| Some(item.span()?.end));
        start..line_end(self.text, keys.fold(entry.span.end, usize::max))
    }

    /// Behind a byte order mark.
    fn start(&self) -> usize {
        if self.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 }
    }

    fn removal(&self, at: usize) -> Vec<Splice> {
        if let Some(list) = self.list {
            return list::remove(self.text, list, at);
        }
        let entry = &self.tenants[at];
        let block = self.block(entry);
        let (above, blank) = blank_above(self.text, entry.top.max(self.start()), block.start);
        let (below, blank_after) = blank_below(self.text, block.end);
        // Of the blank lines above and below it the more stay, and none at the top or the end of the file that was not there.
        let keeps_above = above == self.start() || below < self.text.len() && blank >= blank_after;
        let range = if keeps_above { block.start..below } else { above..block.end };
        vec![Splice::remove(range)]
    }

    /// Has `key` say `value`, unless it does.
    fn set(&self, entry: &Entry<'_>, key: &str, value: &str, is_so: bool) -> Vec<Splice> {
        if is_so {
            return Vec::new();
        }
        match entry.value(key).and_then(Value::span) {
            Some(range) => vec![Splice { range, with: value.to_owned() }],
            None => self.insert(entry, key, value),
        }
    }

    /// Writes a key that is not there: the tier below the id, others below all.
    fn insert(&self, entry: &Entry<'_>, key: &str, value: &str) -> Vec<Splice> {
        let ends = entry.table.iter().filter(|(name, _)| key != "tier" || *name == "id").filter_map(|(_, item)| Some(item.span()?.end));
        let after = ends.fold(0, usize::max);
        if entry.inline {
            return vec![Splice::insert(after, format!(", {key} = {value}"))];
        }
        let nl = line_break(self.text);
        let inner = entry.table.get_key_value("id").and_then(|(key, _)| indent(self.text, key.span()?.start)).unwrap_or_default();
        let at = line_end(self.text, after);
        let before = if self.text[..at].ends_with('\n') { "" } else { nl };
        vec![Splice::insert(at, format!("{before}{inner}{key} = {value}{nl}"))]
    }

    /// `text` in the quotes that `before` has. It holds nothing that would need an escape.
    fn quoted_as(&self, before: Option<&Value>, text: &str) -> String {
        let literal = before.and_then(Value::span).is_some_and(|span| self.text[span].starts_with('\''));
        if literal { format!("'{text}'") } else { format!("{text:?}") }
    }

    fn add_key(&self, entry: &Entry<'_>, digest: [u8; 32]) -> Result<Vec<Splice>, Refused> {
        match self.tenants.iter().find(|entry| entry.keys().any(|key| key == digest)) {
            Some(owner) if owner.id == entry.id => return Ok(Vec::new()),
            Some(owner) => return Err(Refused::KeyTaken { owner: owner.id.to_owned() }),
            None => {}
        }
        let written = format!("\"sha256:{}\"", hex(&digest));
        Ok(match entry.value("api_keys").and_then(Value::as_array) {
            Some(list) => list::append(self.text, list, &written),
            None => self.insert(entry, "api_keys", &format!("[{written}]")),
        })
    }

    fn remove_key(&self, entry: &Entry<'_>, digest: [u8; 32]) -> Vec<Splice> {
        let list = entry.value("api_keys").and_then(Value::as_array);
        let at = entry.keys().position(|key| key == digest);
        list.zip(at).map_or_else(Vec::new, |(list, at)| list::remove(self.text, list, at))
    }
}

impl<'a> Entry<'a> {
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.table.get(key).and_then(Item::as_value)
    }

    fn tier(&self) -> &'a str {
        self.value("tier").and_then(Value::as_str).unwrap_or(FREE)
    }

    /// Its API keys, by their place; what is none has no value.
    fn keys(&self) -> impl Iterator<Item = [u8; 32]> + use<'a> {
        let list = self.value("api_keys").and_then(Value::as_array);
        list.into_iter().flat_map(Array::iter).map(|key| key.as_str().and_then(parse_digest).unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
