//! What `[proxy]` says of its way to the world: the plain port, load balancers before it, and certificates that are asked for.

use super::{
    Acme, Challenge, Proxy,
    fields::Fields,
    files::Use,
    problem::Finding,
    settings::{Build, address},
};

/// Two years: what hstspreload.org recommends, and what browsers keep.
const DEFAULT_HSTS: u64 = 730 * 86_400;
/// Whom most people mean.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Let's Encrypt takes no more names in one certificate.
const MAX_DOMAINS: usize = 100;

impl Build<'_> {
    /// Everything of [`Proxy`] that this room knows; the rest as by default.
    pub(super) fn front(&mut self, fields: &Fields) -> Proxy {
        let trusted_proxies = fields.networks("trusted_proxies");
        let proxy_protocol = fields.flag("proxy_protocol").unwrap_or(false);
        if proxy_protocol && trusted_proxies.is_empty() && !fields.is_bad("trusted_proxies") {
            let span = fields.span_of("proxy_protocol").unwrap_or_default();
            let help = "name the load balancer, such as `trusted_proxies = [\"10.0.0.0/8\"]`, or remove `proxy_protocol`";
            self.found.push(Finding::new(span, "`proxy_protocol` without `trusted_proxies`: nobody may send the header", help));
        }
        let http_listen = fields.list("http_listen").unwrap_or_default();
        let http_listen: Vec<_> = http_listen.iter().filter_map(|(value, _)| address(value)).collect();
        let acme = fields.table("acme").and_then(|acme| self.acme(acme));
        if let (Some(tls), Some(acme)) = (fields.table("tls"), fields.table("acme")) {
            let help = "keep [proxy.tls] to serve with these files, or [proxy.acme] to have the agent ask for a certificate";
            let finding = Finding::new(acme.span.clone(), "[proxy.tls] and [proxy.acme] exclude each other", help);
            self.found.push(finding.related(tls.span.clone(), "the other one"));
        }
        if let Some(Acme { challenge: Challenge::Http01, .. }) = acme
            && http_listen.is_empty()
            && !fields.is_bad("http_listen")
        {
            let span = fields.table("acme").and_then(|acme| acme.span_of("challenge")).unwrap_or_default();
            let help = "write `http_listen = [\"0.0.0.0:80\"]` under [proxy], or remove `challenge`";
            self.found.push(Finding::new(span, "`challenge = \"http-01\"` needs the plain port", help));
        }
        Proxy {
            http_listen,
            trusted_proxies,
            proxy_protocol,
            hsts: fields.number_or_none("hsts").unwrap_or(Some(DEFAULT_HSTS)),
            acme,
            ..Proxy::default()
        }
    }

    fn acme(&mut self, fields: &Fields) -> Option<Acme> {
        let domains = fields.texts("domains");
        let mut names: Vec<String> = Vec::with_capacity(domains.len());
        for (name, span) in domains {
            if names.contains(&name) {
                self.found.push(Finding::new(span, format!("{name} stands twice in `domains`"), "remove one"));
            } else {
                names.push(name);
            }
        }
        if let Some(span) = fields.span_of("domains").filter(|_| names.is_empty() || names.len() > MAX_DOMAINS) {
            let message = format!("`domains` holds {} names", names.len());
            self.found.push(Finding::new(span, message, format!("name between 1 and {MAX_DOMAINS}, such as [\"sq.example.com\"]")));
        }
        let (kid, key) = (fields.text("eab_kid"), self.file(fields, "eab_key_file", Use::Secret));
        if kid.is_some() != key.is_some() && !fields.is_bad("eab_kid") && !fields.is_bad("eab_key_file") {
            let span = fields.span_of("eab_kid").or_else(|| fields.span_of("eab_key_file")).unwrap_or_default();
            self.found.push(Finding::new(
                span,
                "an external account is a key id and a key",
                "write `eab_kid` and `eab_key_file`, or neither",
            ));
        }
        let challenge = match fields.text("challenge").as_deref() {
            Some("http-01") => Challenge::Http01,
            _ => Challenge::TlsAlpn01,
        };
        Some(Acme {
            domains: names,
            contact: fields.text("contact"),
            directory: fields.text("directory").unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
            challenge,
            ca_file: self.file(fields, "ca_file", Use::Public),
            eab: kid.zip(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::desired::{Challenge, Proxy, parse};

    fn proxy(text: &str) -> Proxy {
        parse(text, Path::new("/t/tenants.toml")).unwrap().proxy
    }

    fn refused(text: &str) -> String {
        parse(text, Path::new("/t/tenants.toml")).unwrap_err().to_string()
    }

    #[test]
    fn networks_and_single_addresses_are_trusted_as_written() {
        let proxy = proxy("[proxy]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\", \"192.0.2.7\"]\nproxy_protocol = true\n");
        let trusted: Vec<_> = proxy.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(trusted, ["10.0.0.0/8", "::1/128", "192.0.2.7/32"]);
        assert!(refused("[proxy]\ntrusted_proxies = [\"10.0.0.1/8\"]\n").contains("10.0.0.0/8"), "what is meant is not guessed");
        assert!(refused("[proxy]\ntrusted_proxies = [\"lb.example.com\"]\n").contains("IP address"));
    }

    #[test]
    fn a_proxy_protocol_that_nobody_may_speak_is_an_error() {
        assert!(refused("[proxy]\nproxy_protocol = true\n").contains("without `trusted_proxies`"));
    }

    #[test]
    fn files_and_acme_exclude_each_other_and_both_places_are_named() {
        let text = "[proxy.tls]\ncert = \"c\"\nkey = \"k\"\n[proxy.acme]\ndomains = [\"sq.example.com\"]\n";
        let refused = refused(text);
        assert!(refused.contains("exclude each other") && refused.contains("the other one"), "{refused}");
    }

    #[test]
    fn acme_needs_names_that_a_certificate_can_have_and_a_port_for_its_challenge() {
        let acme = |rest: &str| format!("[proxy.acme]\n{rest}\n");
        for bad in ["domains = []", "domains = [\"*.example.com\"]", "domains = [\"192.0.2.1\"]", "domains = [\"a.b\", \"A.b\"]"] {
            refused(&acme(bad));
        }
        let http = acme("domains = [\"a.b\"]\nchallenge = \"http-01\"");
        assert!(refused(&http).contains("needs the plain port"));
        let good = proxy(&format!("[proxy]\nhttp_listen = [\"127.0.0.1:80\"]\n{http}"));
        assert_eq!(good.acme.unwrap().challenge, Challenge::Http01);
        assert!(refused(&acme("domains = [\"a.b\"]\neab_kid = \"k\"")).contains("eab_key_file"));
    }

    #[test]
    fn hsts_is_two_years_unless_the_file_says_otherwise() {
        assert_eq!(proxy("").hsts, Some(63_072_000));
        assert_eq!(proxy("[proxy]\nhsts = \"off\"\n").hsts, None);
        assert_eq!(proxy("[proxy]\nhsts = \"1d\"\n").hsts, Some(86_400));
    }

    #[test]
    fn a_plain_port_that_another_listener_has_is_an_error() {
        assert!(refused("[proxy]\nlisten = [\"0.0.0.0:443\"]\nhttp_listen = [\"127.0.0.1:443\"]\n").contains("cannot be listened on"));
        assert!(refused("[proxy]\nhttp_listen = [\"127.0.0.1:10005\"]\n").contains("range of the instances"));
    }
}
