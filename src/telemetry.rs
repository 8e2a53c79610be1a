//! Logs: structured events on stderr, one line per thing that happened.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Says what is logged, as in `SQ_AGENT_LOG=debug` or `SQ_AGENT_LOG=sq_agent::reconcile=trace,info`.
pub const FILTER_VARIABLE: &str = "SQ_AGENT_LOG";
/// `json` for one JSON object a line.
pub const FORMAT_VARIABLE: &str = "SQ_AGENT_LOG_FORMAT";

/// Starts logging to stderr. Colour only on a terminal and never with NO_COLOR.
pub fn init() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second call, as in tests, changes nothing.
    let _ = if std::env::var(FORMAT_VARIABLE).is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(colour).try_init()
    };
}
