//! The page's style sheet and script, under names that change with their content: a browser keeps them for good.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use crate::digest::{hex, sha256};

/// A file that is part of this program.
pub(super) struct Asset {
    /// Where it is.
    pub(super) path: String,
    kind: &'static str,
    text: &'static str,
}

impl Asset {
    fn new(name: &str, end: &str, kind: &'static str, text: &'static str) -> Self {
        Self { path: format!("/assets/{name}-{}.{end}", &hex(&sha256(text.as_bytes()))[..12]), kind, text }
    }
}

pub(super) static STYLE: LazyLock<Asset> = LazyLock::new(|| Asset::new("page", "css", "text/css; charset=utf-8", include_str!("page.css")));
pub(super) static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("page", "js", "text/javascript; charset=utf-8", include_str!("page.js")));

/// The mark of the product, in the address bar and in the head.
pub(super) const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='3.5' fill='%230f766e'/%3E%3Cpath d='M4 4h3.4v3.4H4zM8.6 4H12v3.4H8.6zM4 8.6h3.4V12H4z' fill='%23fff'/%3E%3Cpath d='M8.6 8.6H12V12H8.6z' fill='%235eead4'/%3E%3C/svg%3E";

/// Answers with one.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let found = [&*STYLE, &*SCRIPT].into_iter().find(|asset| asset.path.strip_prefix("/assets/") == Some(&name));
    match found {
        Some(Asset { kind, text, .. }) => {
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")], *text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
