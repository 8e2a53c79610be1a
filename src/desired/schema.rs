//! The JSON Schema of tenants.toml, made from the table of keys.

use serde_json::{Map, Value as Json, json};
use toml::de::DeValue;

use super::{
    keys::{Key, Need, ROOT, SECTIONS, Section},
    kind::{Kind, duration_text, size_text},
};

/// JSON Schema (2020-12) of tenants.toml, for editors.
///
/// It knows the form of every value; what holds between values (two equal ids, an unknown tier) and the exact bounds of
/// sizes is known to `sq-agent check` alone.
pub fn schema() -> Json {
    let defs: Map<String, Json> = SECTIONS[1..].iter().map(|section| (section.name.to_owned(), of_section(section))).collect();
    let mut root = of_section(&ROOT);
    let head = [
        ("$schema", json!("https://json-schema.org/draft/2020-12/schema")),
        ("title", json!("tenants.toml")),
        ("description", json!("The desired state of one host of sq-agent")),
        ("$defs", Json::Object(defs)),
    ];
    if let Json::Object(root) = &mut root {
        root.extend(head.map(|(key, value)| (key.to_owned(), value)));
    }
    root
}

fn of_section(section: &Section) -> Json {
    let required: Vec<&str> = section.keys().filter(|key| matches!(key.need, Need::Required)).map(|key| key.name).collect();
    let properties: Map<String, Json> = section.keys().map(|key| (key.name.to_owned(), of_key(section, key))).collect();
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

fn of_key(section: &Section, key: &Key) -> Json {
    let mut schema = of_kind(key.kind);
    let Json::Object(fields) = &mut schema else { return schema };
    // A tenant's limits left out are its tier's, not the tier's own defaults.
    let inherits = !std::ptr::eq(section.keys, section.also) && section.also.iter().any(|other| std::ptr::eq(other, key));
    let left_out = match key.need {
        Need::Required => String::new(),
        _ if inherits => "; left out: as its tier".into(),
        Need::Default(literal) => {
            fields.extend(literal_json(literal).map(|value| ("default".into(), value)));
            String::new()
        }
        Need::Optional(meaning) => format!("; left out: {meaning}"),
    };
    fields.insert("description".into(), format!("{}{left_out}", key.doc).into());
    fields.extend(literal_json(key.example).map(|value| ("examples".into(), json!([value]))));
    schema
}

fn of_kind(kind: Kind) -> Json {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    let reference = |section: &Section| json!({ "$ref": format!("#/$defs/{}", section.name) });
    match kind {
        Kind::Text => json!({ "type": "string", "minLength": 1, "maxLength": 256 }),
        Kind::Path => text("^[^~]"),
        Kind::Repository => json!({ "type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[^~]" }),
        Kind::GitUrl => json!({ "type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[^~-]" }),
        Kind::Branch => text("^[A-Za-z0-9_+@][A-Za-z0-9._+@/-]*$"),
        Kind::RepositoryPath => text("^[^/]"),
        Kind::Duration { .. } => text("^[0-9]+[smhd]$"),
        Kind::DurationOrOff { .. } => text("^([0-9]+[smhd]|off)$"),
        Kind::Network => text("^[0-9A-Fa-f.:]+(/[0-9]+)?$"),
        Kind::Domain => text("^[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)*$"),
        Kind::Email => text("^[^@ ]+@[A-Za-z0-9.-]+$"),
        Kind::Challenge => json!({ "type": "string", "enum": ["tls-alpn-01", "http-01"] }),
        Kind::Name => text("^[a-z0-9-]{1,64}$"),
        Kind::Id => text("^[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,127}$"),
        Kind::TierName => text(TIER_NAME),
        Kind::Size { .. } => text("^[0-9]+[KMG]$"),
        Kind::SizeOrNone { .. } => text("^([0-9]+[KMG]|none)$"),
        Kind::Percent => text("^0*([1-9][0-9]?|100)%$"),
        Kind::CpuOrNone => text("^(0*[1-9][0-9]*%|none)$"),
        Kind::RateOrNone => text("^(0*[1-9][0-9]*/[smhd]|none)$"),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::IntegerOrNone { min, max } => {
            json!({ "anyOf": [{ "type": "integer", "minimum": min, "maximum": max }, { "const": "none" }] })
        }
        Kind::IntegerAllNone { min, max } => {
            json!({ "anyOf": [{ "type": "integer", "minimum": min, "maximum": max }, { "enum": ["all", "none"] }] })
        }
        Kind::Flag => json!({ "type": "boolean" }),
        // JSON has no date; editors hand a TOML date over as a string of this format.
        Kind::Moment => json!({ "type": "string", "format": "date-time" }),
        Kind::Ports => text("^[0-9]+-[0-9]+$"),
        Kind::Address => text("^([0-9.]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]+$"),
        Kind::Url => text("^[Hh][Tt][Tt][Pp][Ss]://[^/]"),
        Kind::Version => text("^[0-9]+\\.[0-9]+\\.[0-9]+(-[0-9A-Za-z.-]+)?$"),
        Kind::Durability => json!({ "type": "string", "enum": ["off", "process", "power"] }),
        Kind::Isolation => json!({ "type": "string", "enum": ["auto", "required", "off"] }),
        Kind::Algorithm => json!({ "type": "string", "enum": ["HS256", "ES256", "EdDSA", "RS256"] }),
        Kind::Digest => text("^sha256:[0-9A-Fa-f]{64}$"),
        Kind::List(kind) => json!({ "type": "array", "items": of_kind(*kind) }),
        Kind::Table(section) => reference(section),
        Kind::Tables(section) => json!({ "type": "array", "items": reference(section) }),
        Kind::Named(section) => json!({
            "type": "object", "propertyNames": { "pattern": TIER_NAME }, "additionalProperties": reference(section),
        }),
    }
}

const TIER_NAME: &str = "^[A-Za-z0-9_-]{1,32}$";

fn literal_json(literal: &str) -> Option<Json> {
    DeValue::parse(literal).ok().map(|value| to_json(value.get_ref()))
}

/// A TOML value as JSON has it; dates become strings.
fn to_json(value: &DeValue<'_>) -> Json {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).map_or(Json::Null, Json::from),
        DeValue::Float(float) => float.as_str().parse::<f64>().map_or(Json::Null, Json::from),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Datetime(datetime) => datetime.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            Json::Object(table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref()))).collect())
        }
    }
}

/// The reference of tenants.toml as one Markdown table, one row a key; it stands in README.md.
pub fn reference_markdown() -> String {
    let mut out = String::from("| key | example | left out | what it does |\n|---|---|---|---|\n");
    for section in &SECTIONS[1..] {
        for key in section.keys.iter().filter(|key| !key.example.is_empty()) {
            let left_out = match key.need {
                Need::Required => "required".to_owned(),
                Need::Default(literal) => format!("`{literal}`"),
                Need::Optional(meaning) => meaning.to_owned(),
            };
            let doc = match key.kind {
                Kind::Size { min, max } | Kind::SizeOrNone { min, max } => {
                    format!("{}; {} to {}", key.doc, size_text(min), size_text(max))
                }
                Kind::Integer { min, max } | Kind::IntegerOrNone { min, max } | Kind::IntegerAllNone { min, max } => {
                    format!("{}; {min} to {max}", key.doc)
                }
                Kind::Duration { min, max } | Kind::DurationOrOff { min, max } => {
                    format!("{}; {} to {}", key.doc, duration_text(min), duration_text(max))
                }
                _ => key.doc.to_owned(),
            };
            out += &format!("| `{}` `{}` | `{}` | {left_out} | {doc} |\n", section.header, key.name, key.example);
        }
    }
    out
}

#[cfg(test)]
mod tests;
