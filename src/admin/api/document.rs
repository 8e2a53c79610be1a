//! The OpenAPI document: its head, and what is true of every route, said once.

use axum::{extract::State, response::IntoResponse};
use bytes::Bytes;
use http::header;
use utoipa::{
    OpenApi, PartialSchema, ToSchema,
    openapi::{
        self, ContentBuilder, ObjectBuilder, Ref, RefOr, ResponseBuilder, SecurityRequirement,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};

use super::{Api, problem};
use crate::admin::page::StateWord;

/// A tenant's id, as [`TenantId`](crate::desired::TenantId) takes it.
pub(super) struct TenantIdText;

impl PartialSchema for TenantIdText {
    fn schema() -> RefOr<openapi::Schema> {
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .description(Some("1 to 128 letters, digits and `. _ - + @`, no leading dot"))
            .pattern(Some("^[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,127}$"))
            .examples(["user1@example.com"])
            .into()
    }
}

impl ToSchema for TenantIdText {
    fn name() -> std::borrow::Cow<'static, str> {
        "TenantId".into()
    }
}

/// A month, as [`Month`](crate::history::month::Month) takes it.
pub(super) struct MonthText;

impl PartialSchema for MonthText {
    fn schema() -> RefOr<openapi::Schema> {
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .pattern(Some("^(19[7-9][0-9]|[2-9][0-9]{3})-(0[1-9]|1[0-2])$"))
            .examples(["2026-02"])
            .into()
    }
}

impl ToSchema for MonthText {
    fn name() -> std::borrow::Cow<'static, str> {
        "Month".into()
    }
}

/// The SHA-256 of an API key, as tenants.toml has it.
pub(super) struct DigestText;

impl PartialSchema for DigestText {
    fn schema() -> RefOr<openapi::Schema> {
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .pattern(Some("^sha256:[0-9a-f]{64}$"))
            .examples(["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
            .into()
    }
}

impl ToSchema for DigestText {
    fn name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }
}

/// What stands above the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "sq-agent",
        description = "Runs a host of sq processes from one file, tenants.toml; what is changed here is changed there.",
        license(name = "MIT", identifier = "MIT")
    ),
    tags(
        (name = "tenants", description = "Who is served"),
        (name = "credentials", description = "What lets their users in"),
        (name = "snapshots", description = "Their phexts as they were"),
        (name = "health", description = "Whether they are"),
        (name = "usage", description = "What they use"),
        (name = "events", description = "What happened"),
        (name = "document", description = "This"),
    ),
    components(schemas(problem::Document, TenantIdText, MonthText, DigestText, StateWord))
)]
struct Head;

/// The document without any route.
pub(super) fn head() -> openapi::OpenApi {
    let mut head = Head::openapi();
    let components = head.components.get_or_insert_default();
    let key =
        ApiKeyValue::with_description("X-Admin-API-Key", "What stands in `key_file` under [admin]. On the agent's socket none is asked.");
    components.security_schemes.insert(KEY.to_owned(), SecurityScheme::ApiKey(ApiKey::Header(key)).into());
    head
}

/// The name of the one security scheme.
const KEY: &str = "key";
/// The one route that asks for no key.
pub(super) const PATH: &str = "/api/openapi.json";

/// The document, with what is true of every route.
pub(super) fn bytes(routes: &openapi::OpenApi) -> Bytes {
    let mut document = routes.clone();
    for (path, item) in &mut document.paths.paths {
        if let Some(get) = &mut item.get {
            complete(get, path);
        }
        for change in [&mut item.put, &mut item.post, &mut item.delete].into_iter().flatten() {
            complete(change, path);
            change.parameters.get_or_insert_default().extend(change_headers());
        }
    }
    // Strings, numbers and maps with strings for keys always serialize.
    serde_json::to_vec_pretty(&document).unwrap_or_default().into()
}

/// What every change may say of itself.
fn change_headers() -> [RefOr<Parameter>; 2] {
    let text = |pattern: &str, longest| {
        ObjectBuilder::new().schema_type(openapi::schema::Type::String).pattern(Some(pattern)).max_length(Some(longest)).build()
    };
    let header = |name: &str, description: &str, schema: openapi::Object| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .description(Some(description))
            .schema(Some(schema))
            .build()
            .into()
    };
    [
        header(
            "Idempotency-Key",
            "Names this request: sent again within a day, it is done once, and answered as it was. A UUID, say",
            text("^([A-Za-z0-9._:-]{1,255}|\"[A-Za-z0-9._:-]{1,255}\")$", 257),
        ),
        header(
            "X-Admin-Actor",
            "On whose behalf, for the record and as the author of a commit",
            text("^[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}$", 64),
        ),
    ]
}

fn complete(operation: &mut Operation, path: &str) {
    let mut refusals = vec![
        ("400", "The request is malformed, or names what there cannot be"),
        ("413", "The body is too large"),
        ("421", "A loopback address was asked by a name that is not its own"),
        ("429", "Too many requests"),
        ("503", "The agent ends, or makes way for a new one"),
    ];
    if path != PATH {
        refusals.push(("401", "No key, or not the key"));
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(KEY, [])]);
    }
    if path.contains("{id}") {
        refusals.push(("404", "There is no such tenant"));
    }
    if operation.request_body.is_some() {
        refusals.push(("415", "The body is not JSON"));
        refusals.push(("422", "The body does not say what is asked for"));
    }
    for (status, description) in refusals {
        let response = ResponseBuilder::new().description(description).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && status.starts_with(['4', '5'])
        {
            let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
            response.content.insert("application/problem+json".to_owned(), problem.into());
        }
    }
}

/// This document
#[utoipa::path(get, path = "/api/openapi.json", tag = "document", responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn openapi(State(api): State<Api>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], api.0.document.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_is_whole_and_every_route_but_its_own_asks_for_the_key() {
        let document: Value = serde_json::from_slice(&bytes(&super::super::routes().into_openapi())).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let (responses, is_open) = (&operation["responses"], path == PATH);
                assert_eq!(operation.get("security").is_none(), is_open, "{method} {path}");
                assert_eq!(responses.get("401").is_none(), is_open, "{method} {path}");
                assert!(responses["400"]["content"].get("application/problem+json").is_some(), "{method} {path}");
                assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{method} {path}");
            }
        }
    }
}
