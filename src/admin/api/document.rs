//! The OpenAPI document: its head, and what is true of every route, said once.

use axum::{extract::State, response::IntoResponse};
use bytes::Bytes;
use http::header;
use utoipa::{
    OpenApi, PartialSchema, ToSchema,
    openapi::{
        self, ContentBuilder, Ref, RefOr, ResponseBuilder, SecurityRequirement,
        path::Operation,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};

use super::{Api, problem};

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
        (name = "health", description = "Whether they are"),
        (name = "usage", description = "What they use"),
        (name = "events", description = "What happened"),
        (name = "document", description = "This"),
    ),
    components(schemas(problem::Document))
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
        for operation in operations(item) {
            complete(operation, path);
        }
    }
    // Strings, numbers and maps with strings for keys always serialize.
    serde_json::to_vec_pretty(&document).unwrap_or_default().into()
}

fn operations(item: &mut openapi::PathItem) -> impl Iterator<Item = &mut Operation> {
    let openapi::PathItem { get, put, post, delete, .. } = item;
    [get, put, post, delete].into_iter().flatten()
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
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(description).content("application/problem+json", problem).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    }
}

/// This document
#[utoipa::path(get, path = "/api/openapi.json", tag = "document", responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn openapi(State(api): State<Api>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], api.0.document.clone())
}
