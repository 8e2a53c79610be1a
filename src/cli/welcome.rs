//! What `run` prints once it serves: what, where, and the exact lines to try.

use std::{io::IsTerminal as _, path::Path};

use crate::{
    admin::status::Status,
    desired::{Desired, Tenant},
    proxy::credentials,
};

/// How long the printed token holds, seconds.
const TOKEN_TTL: u64 = 3_600;

/// Prints to stdout. A token is printed only where it opens nothing but a demonstration: the built-in secret, loopback
/// alone, and somebody who looks.
pub(super) fn print(desired: &Desired, status: &Status, now: u64) {
    let url = desired
        .proxy
        .public_url
        .clone()
        .unwrap_or_else(|| status.proxy.listen.first().map_or_else(String::new, |listen| format!("https://{listen}")));
    let ready = status.tenants.iter().filter(|tenant| tenant.state == "ready").count();
    anstream::println!("\nsq-agent serves {ready} of {} tenants on {url}", status.tenants.len());
    if let (Some(admin), Some(listen)) = (&desired.admin, status.admin.as_ref().and_then(|admin| admin.listen.as_ref())) {
        anstream::println!("its page: http://{listen}/, opened by what stands in {}", admin.key_file.display());
    }
    for tenant in status.tenants.iter().take(10) {
        anstream::println!("  {:<32} {:<8} {}", tenant.id, tenant.state, tenant.detail);
    }
    if status.tenants.len() > 10 {
        anstream::println!("  … and {} more: `sq-agent status`", status.tenants.len() - 10);
    }
    let demonstration = desired.proxy.jwt.is_empty() && desired.proxy.listen.iter().all(|listen| listen.ip().is_loopback());
    let tenant = desired.tenants.values().find(|tenant| !tenant.suspended);
    if let Some(tenant) = tenant.filter(|_| demonstration && interactive()) {
        try_it(desired, tenant, &url, now);
    }
    anstream::println!("\nCtrl-C drains and stops everything.");
}

/// As short as it may be for whoever types it where this program was started.
fn shown(path: &Path) -> &Path {
    std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

/// Not where the output is kept: a journal must never hold a token.
fn interactive() -> bool {
    std::io::stdout().is_terminal() || std::env::var_os("JOURNAL_STREAM").is_none()
}

fn try_it(desired: &Desired, tenant: &Tenant, url: &str, now: u64) {
    let Ok(token) = credentials::mint(desired, &tenant.id, now, TOKEN_TTL) else { return };
    let trust = match &desired.proxy.tls {
        Some(_) => String::new(),
        None => format!("--cacert {} ", shown(&credentials::certificate_path(&desired.state_dir)).display()),
    };
    anstream::println!("\nTry it, as {} (this token holds for an hour; `sq-agent token --sub ID` mints others):\n", tenant.id);
    anstream::println!("  TOKEN={token}");
    for request in ["insert?p=hello&c=1.1.1/1.1.1/1.1.1&s=Hello", "select?p=hello&c=1.1.1/1.1.1/1.1.1", "toc?p=hello"] {
        anstream::println!("  curl {trust}-H \"Authorization: Bearer $TOKEN\" '{url}/api/v2/{request}'");
    }
}
