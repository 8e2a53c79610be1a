//! The schema, the table of keys and the parser say the same.

use std::{fs, path::Path, sync::LazyLock};

use regex::Regex;
use toml::de::DeTable;

use super::*;
use crate::desired::{parse, tests::good};

/// Why `value` does not satisfy `schema`: as much of JSON Schema as ours uses; a word that is not known here fails.
fn breach(root: &Json, schema: &Json, value: &Json) -> Option<String> {
    for (word, rule) in schema.as_object()? {
        let fault = match word.as_str() {
            "$schema" | "title" | "description" | "$defs" | "default" | "examples" | "format" => None,
            "$ref" => breach(root, root.pointer(rule.as_str()?.strip_prefix('#')?)?, value),
            "type" => (rule != kind_of(value)).then(|| format!("{value} is no {rule}")),
            "pattern" => (!Regex::new(rule.as_str()?).unwrap().is_match(value.as_str().unwrap_or_default()))
                .then(|| format!("{value} is not {rule}")),
            "const" => (rule != value).then(|| format!("{value} is not {rule}")),
            "anyOf" => rule.as_array()?.iter().map(|rule| breach(root, rule, value)).min().flatten(),
            "enum" => (!rule.as_array()?.contains(value)).then(|| format!("{value} is none of {rule}")),
            "minLength" => (value.as_str().map(str::len) < rule.as_u64().map(|n| n as usize)).then(|| "too short".into()),
            "maxLength" => (value.as_str().map(str::len) > rule.as_u64().map(|n| n as usize)).then(|| "too long".into()),
            "minimum" => (value.as_i64() < rule.as_i64()).then(|| format!("{value} below {rule}")),
            "maximum" => (value.as_i64() > rule.as_i64()).then(|| format!("{value} above {rule}")),
            "items" => value.as_array()?.iter().find_map(|item| breach(root, rule, item)),
            "required" => rule.as_array()?.iter().find(|name| value.get(name.as_str().unwrap()).is_none()).map(|name| format!("no {name}")),
            "properties" => value.as_object()?.iter().find_map(|(name, value)| breach(root, rule.get(name)?, value)),
            "propertyNames" => value.as_object()?.keys().find_map(|name| breach(root, rule, &name.as_str().into())),
            "additionalProperties" => {
                value.as_object()?.iter().filter(|(name, _)| schema["properties"].get(name).is_none()).find_map(|(name, value)| {
                    if rule == &Json::Bool(false) { Some(format!("unknown {name}")) } else { breach(root, rule, value) }
                })
            }
            other => Some(format!("the test does not know {other:?}")),
        };
        if fault.is_some() {
            return fault;
        }
    }
    None
}

fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(number) if number.is_f64() => "number",
        Json::Number(_) => "integer",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

fn in_schema(text: &str) -> Option<String> {
    static ROOT: LazyLock<Json> = LazyLock::new(schema);
    breach(&ROOT, &ROOT, &to_json(&DeValue::Table(DeTable::parse(text).unwrap().into_inner())))
}

/// A small good file that holds `key = value` in `section`, and what else that section needs.
fn file_with(section: &Section, key: &Key, value: &str) -> String {
    let header = section.header.replace("NAME", "free");
    let needed = |other: &Key| match section.name {
        // One of three ways to name a key; the first two belong together.
        "jwt" => ["alg", "secret_file"].contains(&other.name) && !key.name.starts_with("jwks_"),
        _ => matches!(other.need, Need::Required),
    };
    let rest = section.keys().filter(|other| needed(other) && other.name != key.name);
    let rest: String = rest.map(|other| format!("{} = {}\n", other.name, other.example)).collect();
    // Keys that mean nothing without another one.
    let beside = match key.name {
        "proxy_protocol" => "trusted_proxies = [\"10.0.0.0/8\"]\n",
        "eab_kid" => "eab_key_file = \"eab.key\"\n",
        "eab_key_file" => "eab_kid = \"kid-1\"\n",
        _ => "",
    };
    let before = if key.name == "challenge" { "[proxy]\nhttp_listen = [\"127.0.0.1:80\"]\n" } else { "" };
    format!("{before}{header}\n{rest}{beside}{} = {value}\n", key.name)
}

fn leaves() -> impl Iterator<Item = (&'static Section, &'static Key)> {
    SECTIONS[1..].iter().flat_map(|section| section.keys().map(|key| (*section, key))).filter(|(_, key)| !key.example.is_empty())
}

#[test]
fn every_key_is_read_and_changes_what_is_desired() {
    for (section, key) in leaves() {
        let text = file_with(section, key, key.example);
        assert_eq!(in_schema(&text), None, "{text}");
        let with = good(&text);
        // Another value, or the key left out, must mean something else; else the key is accepted and ignored.
        let other = match (key.name, key.kind) {
            ("version", _) => "\"0.6.1\"",
            (
                "binary"
                | "state_dir"
                | "cert"
                | "key"
                | "secret_file"
                | "key_file"
                | "webhook_file"
                | "password_file"
                | "env_file"
                | "restic"
                | "ssh_key_file"
                | "known_hosts_file"
                | "token_file"
                | "webhook_secret_file"
                | "verify"
                | "signing_key_file"
                | "git"
                | "jwks_file"
                | "ca_file"
                | "eab_key_file"
                | "url_file"
                | "program",
                _,
            ) => "\"elsewhere\"",
            ("tier", _) => continue,
            (_, Kind::Text | Kind::Name | Kind::Id | Kind::Repository | Kind::GitUrl | Kind::Branch | Kind::RepositoryPath) => "\"other\"",
            (_, Kind::Duration { .. } | Kind::DurationOrOff { .. }) => "\"7h\"",
            (_, Kind::Size { .. } | Kind::SizeOrNone { .. }) => "\"7M\"",
            (_, Kind::Percent) => "\"85%\"",
            (_, Kind::CpuOrNone) => "\"7%\"",
            (_, Kind::RateOrNone) => "\"7/h\"",
            ("port", _) => "10007",
            (_, Kind::Integer { .. } | Kind::IntegerOrNone { .. } | Kind::IntegerAllNone { .. }) => "7",
            (_, Kind::Flag) => "false",
            (_, Kind::Moment) => "2020-01-01T00:00:00Z",
            (_, Kind::Ports) => "\"2000-3000\"",
            (_, Kind::Address) => "\"127.0.0.1:7\"",
            (_, Kind::List(_)) if key.name == "listen" => "[\"127.0.0.1:7\"]",
            (_, Kind::List(_)) if key.name == "domains" => "[\"other\"]",
            (_, Kind::List(_)) => "[]",
            (_, Kind::Email) => "\"other@example.com\"",
            (_, Kind::Challenge) => "\"tls-alpn-01\"",
            (_, Kind::Url) => "\"https://other\"",
            (_, Kind::Isolation | Kind::Durability) => "\"off\"",
            (_, Kind::Algorithm) => "\"EdDSA\"",
            (name, kind) => panic!("no other value for {name}: {kind:?}"),
        };
        let mut changed = good(&file_with(section, key, other));
        changed.hash.clone_from(&with.hash);
        assert_ne!(changed, with, "{text}");
    }
}

#[test]
fn a_default_written_out_means_the_same_as_left_out() {
    for (section, key) in leaves() {
        let Need::Default(literal) = key.need else { continue };
        if section.name == "tenant" && section.also.iter().any(|other| other.name == key.name) {
            continue; // the tier's value goes before it
        }
        let with = file_with(section, key, literal);
        let mut desired = good(&with);
        let without = good(&with.replace(&format!("\n{} = {literal}\n", key.name), "\n"));
        desired.hash.clone_from(&without.hash);
        assert_eq!(desired, without, "{with}");
    }
}

#[test]
fn the_schema_knows_the_keys_of_the_parser_and_no_others() {
    let root = schema();
    for section in SECTIONS {
        let defs = if section.name == "file" { &root } else { &root["$defs"][section.name] };
        let listed: Vec<&String> = defs["properties"].as_object().unwrap().keys().collect();
        let mut known: Vec<&str> = section.keys().map(|key| key.name).collect();
        known.sort_unstable();
        assert_eq!(listed, known, "{}", section.header);
    }
    assert!(in_schema("[agent]\nportz = 1\n").is_some());
}

#[test]
fn what_the_schema_refuses_the_parser_refuses_too() {
    let values = [
        "\"\"",
        "\"0\"",
        "\"none\"",
        "\"20M\"",
        "\"0/m\"",
        "\"007/s\"",
        "\"1/w\"",
        "\"100%\"",
        "\"0%\"",
        "\"101%\"",
        "\"99999%\"",
        "\"~/x\"",
        "\"A b\"",
        "\"1-2\"",
        "\"[::1]:80\"",
        "\"1.2.3.4:5\"",
        "\"HTTPS://x\"",
        "\"http://x\"",
        "\"1.2.3\"",
        "\"1.2.3-rc.1\"",
        "\"HS256\"",
        "-1",
        "0",
        "1",
        "513",
        "99999",
        "1.5",
        "true",
        "[]",
        "[\"x\"]",
        "2026-02-09T22:32:00Z",
        "{}",
        "\".x\"",
        "\"free\"",
    ];
    let mut refused = 0;
    for (section, key) in leaves() {
        for value in values {
            let text = file_with(section, key, value);
            if let Some(fault) = in_schema(&text) {
                refused += 1;
                assert!(parse(&text, Path::new("t.toml")).is_err(), "the schema says {fault}, the parser takes\n{text}");
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn the_examples_satisfy_the_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let examples = fs::read_dir(root.join("examples")).unwrap().map(|entry| entry.unwrap().path());
    for file in examples.filter(|path| path.extension().is_some_and(|ext| ext == "toml")).chain([root.join("tenants.toml")]) {
        assert_eq!(in_schema(&fs::read_to_string(&file).unwrap()), None, "{}", file.display());
    }
}

#[test]
fn the_reference_has_a_row_a_key() {
    let table = reference_markdown();
    let rows = SECTIONS[1..].iter().flat_map(|section| section.keys).filter(|key| !key.example.is_empty()).count();
    assert_eq!(table.lines().count(), rows + 2);
    assert!(table.lines().all(|line| line.matches('|').count() == 5), "{table}");
    assert!(table.contains("| `[agent]` `ports` | `\"10001-19999\"` | `\"10001-19999\"` |"), "{table}");
}
