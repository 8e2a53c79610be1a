//! What happens to every request for the page before and after its handler: who may come in, and what a browser is told to allow.

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    Site, list, origin, pages,
    session::{Ticket, Visitor},
};
use crate::{
    admin::api::{self, Problem, Way},
    observed::monotonic,
    proxy::request_id::RequestId,
};

/// A page may load and reach what is served here, and nothing else; nobody shows it within another one; it holds no script or style of its own.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Said with every answer, where the handler says nothing else.
const SAID: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // Without it at all a browser would not say either where a form comes from.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Whose request it is, and how it came; for handlers.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) way: Way,
    pub(super) request_id: RequestId,
    /// None on the way in.
    pub(super) visitor: Option<Visitor>,
}

/// See the file's description.
pub(super) async fn enter(State(site): State<Site>, request: Request, next: Next) -> Response {
    let id = site.api().request_id(request.headers());
    let mut response = match serve(&site, request, next, &id).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let problem = response.extensions_mut().remove::<Problem>();
    let problem =
        problem.or_else(|| (is_error && !response.headers().contains_key(header::CONTENT_TYPE)).then(|| unsaid(response.status())));
    if let Some(problem) = problem {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = (problem.status, pages::shell::problem(&problem, id.as_str())).into_response();
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
        if let Some(seconds) = problem.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
    let fields = response.headers_mut();
    for (name, value) in SAID {
        fields.entry(name).or_insert(HeaderValue::from_static(value));
    }
    fields.insert("x-request-id", id.header());
    response
}

fn unsaid(status: StatusCode) -> Problem {
    match status {
        StatusCode::NOT_FOUND => Problem::new(status, "not-found", "Not found", "there is no such page"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::new(status, "method-not-allowed", "Method not allowed", "that page is not asked for in this way")
        }
        _ => Problem::of_status(status),
    }
}

async fn serve(site: &Site, request: Request, next: Next, id: &RequestId) -> Result<Response, Problem> {
    // By the agent's socket no browser comes.
    let Some(way @ Way::Tcp { peer, local }) = request.extensions().get::<Way>().copied() else {
        return Err(Problem::of_status(StatusCode::NOT_FOUND));
    };
    let settings = site.api().settings()?;
    let (mut parts, body) = request.into_parts();
    site.api().check_host(&parts, local, &settings)?;
    let path = parts.uri.path().to_owned();
    if path.starts_with("/assets/") {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    }
    let key = api::key_mark(&settings);
    // A page that looks again by itself keeps nobody logged in.
    let acts = path != "/live";
    let visitor = tickets(&parts.headers, local.port()).find_map(|ticket| site.sessions().find(&ticket, key, acts, monotonic()));
    let is_form = parts.method == Method::POST;
    let mut text = bytes::Bytes::new();
    if is_form {
        text = api::body(body).await?;
        check_form(&parts.headers, &settings.hosts)?;
    }
    // A log-in that shows the key has the budget of those who have it, as with the API.
    let shows_key = path == "/login" && is_form && field(&text, "key").is_some_and(|sent| api::is_key(sent.trim(), &settings));
    // Who is not logged in and only looks is given the form, which costs less than to say no; so nobody keeps others from it.
    if visitor.is_some() || is_form {
        site.api().admit(peer, visitor.is_some() || shows_key, &settings)?;
    }
    match &visitor {
        None if path != "/login" => return Ok(to_log_in(&parts.method, &path, parts.uri.query())),
        Some(visitor)
            if is_form && path != "/login" && !field(&text, "token").is_some_and(|token| visitor.ticket.is_form_token(&token)) =>
        {
            return Err(forbidden("the form is of another session: open its page again, and send it from there"));
        }
        _ => {}
    }
    parts.extensions.insert(Visit { way, request_id: id.clone(), visitor });
    Ok(next.run(Request::from_parts(parts, Body::from(text))).await)
}

fn forbidden(detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "foreign-form", "Not from here", detail)
}

/// What this session holds, also under the name that a browser binds to TLS.
fn tickets(headers: &HeaderMap, port: u16) -> impl Iterator<Item = Ticket> {
    let names = [cookie_name(port, true), cookie_name(port, false)];
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(name, _)| names.iter().any(|ours| ours == name))
        .filter_map(|(_, value)| Ticket::parse(value))
}

/// The name of a cookie. Cookies know no ports: with its port in its name, two agents of one host do not end each other's sessions. `__Host-` has a browser
/// see to it that no other host sets it, and needs `Secure`, which browsers do not all take on http://127.0.0.1.
pub(super) fn cookie_name(port: u16, is_tls: bool) -> String {
    format!("{}sq-agent-{port}", if is_tls { "__Host-" } else { "" })
}

/// Whether it is a form, and one of a page of ours.
fn check_form(headers: &HeaderMap, names: &[String]) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-a-form", "Not a form", "pages take forms alone"));
    }
    if origin::is_own(headers, names) { Ok(()) } else { Err(forbidden("forms are taken from the pages of this address alone")) }
}

/// Somebody has to log in first. Nobody is led anywhere who looks again by itself.
fn to_log_in(method: &Method, path: &str, query: Option<&str>) -> Response {
    if path == "/live" {
        return (StatusCode::UNAUTHORIZED, [(header::CONTENT_TYPE, "text/plain")], "log in").into_response();
    }
    let wanted =
        if *method == Method::GET { query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")) } else { "/".to_owned() };
    match origin::local(&wanted) {
        "/" => see("/login"),
        wanted => see(&format!("/login?to={}", list::encoded(wanted))),
    }
}

/// Has a browser look there, whatever it did here.
pub(super) fn see(address: &str) -> Response {
    let location = HeaderValue::try_from(address).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

/// A field of a form.
pub(super) fn field(form: &[u8], name: &str) -> Option<String> {
    form_urlencoded::parse(form).find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_among_other_cookies_and_by_its_own_names_alone() {
        let ticket = Ticket::of([3; 32]);
        let found = |cookie: String| {
            let headers = [(header::COOKIE, cookie.parse().unwrap())].into_iter().collect();
            tickets(&headers, 3_000).collect::<Vec<_>>()
        };
        let value = ticket.cookie();
        assert_eq!(found(format!("a=b; sq-agent-3000={value}; c")), std::slice::from_ref(&ticket));
        assert_eq!(found(format!("__Host-sq-agent-3000={value}")), std::slice::from_ref(&ticket));
        for other in [format!("sq-agent-3001={value}"), format!("sq-agent={value}"), "sq-agent-3000=x".to_owned(), String::new()] {
            assert_eq!(found(other), []);
        }
    }

    #[test]
    fn who_is_not_logged_in_comes_back_to_what_it_asked_for() {
        let to = |method, path, query| to_log_in(&method, path, query).headers()[header::LOCATION].to_str().unwrap().to_owned();
        assert_eq!(to(Method::GET, "/tenants", Some("q=a&page=2")), "/login?to=%2Ftenants%3Fq%3Da%26page%3D2");
        assert_eq!(to(Method::GET, "/", None), "/login");
        assert_eq!(to(Method::POST, "/tenants/a/restart", None), "/login");
        assert_eq!(to_log_in(&Method::GET, "/live", None).status(), StatusCode::UNAUTHORIZED);
    }
}
