//! Where a request comes from, and where a browser may be sent: decisions without I/O.

use http::{HeaderMap, header};

/// Longest address to which somebody is sent back, bytes.
const LONGEST: usize = 512;

/// Whether a form was sent by a page of this host itself. Browsers say so twice: by Sec-Fetch-Site, and by Origin, whose port counts as well: cookies
/// know no ports, so whatever else is served on this host would come with the session of whoever opens it. `names` are those of `[admin] hosts`: a
/// proxy before it may change Host.
pub(super) fn is_own(headers: &HeaderMap, names: &[String]) -> bool {
    let text = |name| headers.get(name).map(|value: &http::HeaderValue| value.to_str().unwrap_or_default());
    if text(header::HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site != "same-origin") {
        return false;
    }
    let Some(origin) = text(header::ORIGIN) else { return true };
    let Some(authority) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else { return false };
    let host =
        authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(authority, |(host, _)| host);
    text(header::HOST).is_some_and(|host| host.eq_ignore_ascii_case(authority)) || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// Whether the browser speaks TLS, with a proxy before this: then a cookie may be bound to that. Only a page's own Origin says so.
pub(super) fn is_tls(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

/// Where to go after the log-in: where somebody wanted to, if that is here.
pub(super) fn local(wanted: &str) -> &str {
    let is_path = wanted.starts_with('/') && !wanted.starts_with("//") && wanted.len() <= LONGEST;
    let is_plain = wanted.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let leads_round = ["/login", "/logout", "/live", "/assets"].iter().any(|path| wanted.starts_with(path));
    if is_path && is_plain && !leads_round { wanted } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(fields: &[(&'static str, &'static str)]) -> bool {
        let headers: HeaderMap = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        is_own(&headers, &["admin.example.com".to_owned()])
    }

    #[test]
    fn a_form_of_another_page_is_none_of_ours() {
        let host = ("host", "127.0.0.1:3000");
        assert!(own(&[host, ("origin", "http://127.0.0.1:3000"), ("sec-fetch-site", "same-origin")]));
        assert!(own(&[host]), "a program, which has to show the token of the form");
        assert!(own(&[host, ("origin", "https://admin.example.com")]) && own(&[host, ("origin", "https://Admin.example.com:8443")]));
        for bad in [
            &[host, ("origin", "http://127.0.0.1:8080")][..],
            &[host, ("origin", "http://localhost:3000")],
            &[host, ("origin", "null")],
            &[host, ("origin", "http://evil.example.com")],
            &[host, ("origin", "http://admin.example.com.evil.com")],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("sec-fetch-site", "cross-site"), ("origin", "http://127.0.0.1:3000")],
            &[host, ("sec-fetch-site", "none")],
            &[("origin", "http://127.0.0.1:3000")],
        ] {
            assert!(!own(bad), "{bad:?}");
        }
    }

    #[test]
    fn nobody_is_sent_away_from_here() {
        for good in ["/", "/tenants?q=a%20b&page=2", "/tenants/a@b.c"] {
            assert_eq!(local(good), good);
        }
        for bad in [
            "",
            "tenants",
            "//evil.example.com",
            "/\\evil.example.com",
            "https://evil.example.com",
            "/a b",
            "/a\r\nx: y",
            "/login?to=/x",
            "/logout",
            "/\u{e9}",
        ] {
            assert_eq!(local(bad), "/", "{bad:?}");
        }
        assert_eq!(local(&format!("/{}", "a".repeat(LONGEST))), "/");
    }
}
