//! What a gateway's file says, in any of the three forms in use: TOML with `[gateway]` and `[[tenants]]`, and JSON with `tenants` as an array or as an
//! object by token.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Map, Value};

use crate::secret::Secret;

/// A file that cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Neither TOML nor JSON. The text around the error is not shown: it holds tokens.
    #[error("line {line}: {why}; this should be the TOML or JSON file of an sq gateway")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// No `tenants`.
    #[error("the file has no `tenants`: this should be the TOML or JSON file of an sq gateway")]
    NoTenants,
    /// A value of another type than it should be.
    #[error("{place}: `{key}` should be {should}")]
    Type {
        /// Which tenant, or which table.
        place: String,
        /// The key.
        key: String,
        /// "a text", "a number" …
        should: &'static str,
    },
}

/// One tenant as the old file has it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Where it stands, for people: "tenant 3", counted as the file has them; where they stand by token, in the tokens' order.
    pub(super) place: String,
    pub(super) token: Option<Secret>,
    pub(super) name: Option<String>,
    pub(super) port: Option<u64>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) phext: Option<String>,
    /// Whether the tenant was served; the gateway's provisioning script makes slots that are not yet.
    pub(super) active: Option<bool>,
    /// Keys nobody knows, with their values.
    pub(super) unknown: BTreeMap<String, Value>,
}

/// A gateway's file.
#[derive(Debug, Default)]
pub struct Gateway {
    pub(super) entries: Vec<Entry>,
    /// Everything beside the tenants: names as `gateway.listen_port`, with their values.
    pub(super) settings: BTreeMap<String, Value>,
}

impl Gateway {
    /// Reads `text`.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn parse(text: &str) -> Result<Self, ImportError> {
        let mut root = if text.trim_start().starts_with('{') { json(text)? } else { toml(text)? };
        let tenants = root.remove("tenants").ok_or(ImportError::NoTenants)?;
        let mut settings = BTreeMap::new();
        for (name, value) in root {
            match value {
                Value::Object(table) => settings.extend(table.into_iter().map(|(key, value)| (format!("{name}.{key}"), value))),
                value => _ = settings.insert(name, value),
            }
        }
        Ok(Self { entries: entries(tenants)?, settings })
    }
}

fn json(text: &str) -> Result<Map<String, Value>, ImportError> {
    // Its message has the place beside the line, and nothing of the text.
    serde_json::from_str(text).map_err(|error| ImportError::Syntax { line: error.line(), why: error.to_string() })
}

fn toml(text: &str) -> Result<Map<String, Value>, ImportError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
        ImportError::Syntax { line, why: error.message().to_owned() }
    })
}

fn entries(tenants: Value) -> Result<Vec<Entry>, ImportError> {
    let wrong = |key: &str, should| ImportError::Type { place: "the file".into(), key: key.into(), should };
    match tenants {
        Value::Array(all) => all
            .into_iter()
            .enumerate()
            .map(|(number, value)| match value {
                Value::Object(fields) => entry(number + 1, None, fields),
                _ => Err(wrong("tenants", "tables")),
            })
            .collect(),
        Value::Object(by_token) => by_token
            .into_iter()
            .enumerate()
            .map(|(number, (token, value))| match value {
                Value::Object(fields) => entry(number + 1, Some(token), fields),
                _ => Err(wrong("tenants", "an object of objects")),
            })
            .collect(),
        _ => Err(wrong("tenants", "an array, or an object by token")),
    }
}

fn entry(number: usize, token: Option<String>, fields: Map<String, Value>) -> Result<Entry, ImportError> {
    let mut entry = Entry { place: format!("tenant {number}"), token: token.map(Secret::new), ..Entry::default() };
    for (key, value) in fields {
        let wrong = |should| ImportError::Type { place: entry.place.clone(), key: key.clone(), should };
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong("a text"));
        match key.as_str() {
            "token" => entry.token = Some(Secret::new(text(&value)?)),
            "name" => entry.name = Some(text(&value)?),
            "data_dir" => entry.data_dir = Some(text(&value)?.into()),
            "phext" => entry.phext = Some(text(&value)?),
            "port" => entry.port = Some(value.as_u64().ok_or_else(|| wrong("a number"))?),
            "active" => entry.active = Some(value.as_bool().ok_or_else(|| wrong("true or false"))?),
            _ => _ = entry.unknown.insert(key, value),
        }
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms_say_the_same() {
        let toml = "[gateway]\nlisten_port = 8080\nadmin_key = 'k'\n[[tenants]]\ntoken = 't'\nname = 'alice'\nport = 1337\nphext = 'p'\n";
        let array = r#"{"tenants":[{"token":"t","name":"alice","port":1337,"data_dir":"/d/alice","active":true}]}"#;
        let object = r#"{"tenants":{"t":{"name":"alice","data_dir":"/d/alice"}}}"#;
        for text in [toml, array, object] {
            let gateway = Gateway::parse(text).unwrap();
            let alice = &gateway.entries[0];
            assert_eq!(alice.name.as_deref(), Some("alice"), "{text}");
            assert_eq!(alice.token.as_ref().map(Secret::expose), Some(&b"t"[..]));
            assert_eq!(alice.data_dir.is_some(), text != toml);
            assert_eq!(alice.port, (text != object).then_some(1337));
        }
        let settings = Gateway::parse(toml).unwrap().settings;
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["gateway.admin_key", "gateway.listen_port"]);
    }

    #[test]
    fn an_error_names_the_place_and_shows_no_token() {
        for (text, says) in [
            ("[[tenants]]\ntoken = \"s3cret\nname = 1", "line 2"),
            ("{\"tenants\": [\n{\"token\": \"s3cret\" \"name\": 1}]}", "line 2"),
            ("[[tenants]]\ntoken = 's3cret'\nport = 'x'", "tenant 1: `port` should be a number"),
            ("{\"tenants\": {\"s3cret\": {\"name\": 7}}}", "tenant 1: `name` should be a text"),
            ("{\"tenants\": {\"s3cret\": 7}}", "an object of objects"),
            ("tenants = 3", "an array, or an object by token"),
            ("[gateway]\nlisten_port = 1", "no `tenants`"),
        ] {
            let error = Gateway::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
