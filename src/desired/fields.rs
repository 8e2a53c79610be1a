//! A table of the file after reading: known keys with good values, each with its place.

use std::{net::SocketAddr, path::PathBuf};

use toml::de::DeTable;

use super::{
    PortRange, Rate, TenantId,
    keys::{self, Need, Section},
    kind::{Value, read},
    problem::{Finding, Show, Span},
};

/// The good keys of one table.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    /// Where the table stands: its header.
    pub(crate) span: Span,
    section: &'static Section,
    good: Vec<(&'static str, Value, Span)>,
    /// Keys that are written but hold nothing usable; each is reported already.
    bad: Vec<&'static str>,
}

/// How far a misspelt key may be from the one that is suggested.
const NEAR: usize = 2;

/// Checks `table` against `section`: unknown keys, wrong values and missing keys go to `found`.
pub(crate) fn read_table(section: &'static Section, table: &DeTable<'_>, span: Span, found: &mut Vec<Finding>) -> Fields {
    let mut fields = Fields { span, section, good: Vec::with_capacity(table.len()), bad: Vec::new() };
    for (name, value) in table {
        match section.key(name.get_ref()) {
            None => found.push(unknown(section, name.get_ref(), name.span())),
            Some(key) => match read(key, key.kind, value, found) {
                Some(good) => fields.good.push((key.name, good, value.span())),
                None => fields.bad.push(key.name),
            },
        }
    }
    for key in section.keys().filter(|key| matches!(key.need, Need::Required) && !table.contains_key(key.name)) {
        let message = format!("{} needs `{}`", section.header, key.name);
        found.push(Finding::new(fields.span.clone(), message, key.expected()).echo());
    }
    fields
}

fn unknown(section: &'static Section, name: &str, span: Span) -> Finding {
    let near = section.keys().map(|key| (strsim::damerau_levenshtein(name, key.name), key.name)).min();
    let elsewhere = keys::SECTIONS.iter().find(|other| other.key(name).is_some());
    let help = match (near, elsewhere) {
        (Some((distance, near)), _) if distance <= NEAR.min(near.len() / 2) => format!("did you mean `{near}`?"),
        (_, Some(other)) => format!("`{name}` belongs under {}", other.header),
        _ => format!("known here: {}", section.keys().map(|key| key.name).collect::<Vec<_>>().join(", ")),
    };
    let message = match section.header {
        "the file" => format!("unknown key `{}`", name.escape_debug()),
        header => format!("unknown key `{}` in {header}", name.escape_debug()),
    };
    Finding::new(span, message, help).show(Show::UpToSpan)
}

impl Fields {
    /// The table that is not there: no keys, at the start of the file.
    pub(crate) fn none(section: &'static Section) -> Self {
        Self { span: 0..0, section, good: Vec::new(), bad: Vec::new() }
    }

    /// Where the value of `name` stands, if it is there and good.
    pub(crate) fn span_of(&self, name: &str) -> Option<Span> {
        self.good.iter().find(|(key, ..)| *key == name).map(|(_, _, span)| span.clone())
    }

    /// Whether `name` is written but holds nothing usable.
    pub(crate) fn is_bad(&self, name: &str) -> bool {
        self.bad.contains(&name)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        debug_assert!(self.section.key(name).is_some(), "{name} is not a key of {}", self.section.name);
        self.good.iter().find(|(key, ..)| *key == name).map(|(_, value, _)| value)
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        if let Some(Value::Text(text)) = self.get(name) { Some(text.clone()) } else { None }
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    pub(crate) fn id(&self, name: &str) -> Option<TenantId> {
        if let Some(Value::Id(id)) = self.get(name) { Some(id.clone()) } else { None }
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        if let Some(Value::Number(number)) = self.get(name) { Some(*number) } else { None }
    }

    /// `Some(None)` is `"none"`.
    pub(crate) fn number_or_none(&self, name: &str) -> Option<Option<u64>> {
        match self.get(name) {
            Some(Value::Unlimited) => Some(None),
            _ => self.number(name).map(Some),
        }
    }

    /// `Some(None)` is `"none"`.
    pub(crate) fn rate_or_none(&self, name: &str) -> Option<Option<Rate>> {
        match self.get(name) {
            Some(Value::Unlimited) => Some(None),
            Some(Value::Rate(rate)) => Some(Some(*rate)),
            _ => None,
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        if let Some(Value::Flag(flag)) = self.get(name) { Some(*flag) } else { None }
    }

    pub(crate) fn ports(&self, name: &str) -> Option<PortRange> {
        if let Some(Value::Ports(ports)) = self.get(name) { Some(*ports) } else { None }
    }

    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        if let Some(Value::Address(address)) = self.get(name) { Some(*address) } else { None }
    }

    /// Each entry of a list of networks.
    pub(crate) fn networks(&self, name: &str) -> Vec<ipnet::IpNet> {
        let entries = self.list(name).unwrap_or_default().iter();
        entries.filter_map(|(value, _)| if let Value::Network(network) = value { Some(*network) } else { None }).collect()
    }

    /// Each entry of a list of texts, with its place.
    pub(crate) fn texts(&self, name: &str) -> Vec<(String, Span)> {
        let entries = self.list(name).unwrap_or_default().iter();
        entries.filter_map(|(value, span)| if let Value::Text(text) = value { Some((text.clone(), span.clone())) } else { None }).collect()
    }

    pub(crate) fn durability(&self, name: &str) -> Option<crate::guard::Durability> {
        if let Some(Value::Durability(durability)) = self.get(name) { Some(*durability) } else { None }
    }

    pub(crate) fn isolation(&self, name: &str) -> Option<super::IsolationMode> {
        if let Some(Value::Isolation(mode)) = self.get(name) { Some(*mode) } else { None }
    }

    pub(crate) fn algorithm(&self, name: &str) -> Option<super::Algorithm> {
        if let Some(Value::Algorithm(algorithm)) = self.get(name) { Some(*algorithm) } else { None }
    }

    pub(crate) fn list(&self, name: &str) -> Option<&[(Value, Span)]> {
        if let Some(Value::List(list)) = self.get(name) { Some(list) } else { None }
    }

    pub(crate) fn table(&self, name: &str) -> Option<&Fields> {
        if let Some(Value::Table(table)) = self.get(name) { Some(table) } else { None }
    }

    pub(crate) fn tables(&self, name: &str) -> &[Fields] {
        if let Some(Value::Tables(tables)) = self.get(name) { tables } else { &[] }
    }

    pub(crate) fn named(&self, name: &str) -> Option<&[(String, Fields)]> {
        if let Some(Value::Named(named)) = self.get(name) { Some(named) } else { None }
    }
}
