//! `sq-agent usage [ID] [--month 2026-02]`: what tenants used, for bills.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{snapshot::tenant, table};
use crate::{
    desired::Desired,
    history::month::Month,
    route,
    store::{Reader, Usage, unix_now},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent usage                                       # this month, everybody\n  sq-agent usage --month 2026-02 --format csv > bill.csv\n  sq-agent usage user1@example.com --daily\n\nDays and months are UTC. CSV has one line a tenant, with these columns (sizes in bytes):\n  period             the month, or with --daily the day\n  id                 the tenant\n  days               days on which it was there\n  requests           requests with good credentials, refused ones included\n  errors             of these, answered by 5xx of the proxy\n  writes             requests that may write, answered with success\n  bytes_in           of request bodies\n  bytes_out          of answer bodies\n  peak_memory_bytes  the most that its instance took\n  storage_bytes      the most that its phexts took\n  storage_byte_days  the sum over the days of the most on each\n\nDays are kept for 70 days, months for two years. Also while no agent runs."
)]
pub(super) struct Args {
    /// Only this tenant
    id: Option<String>,
    /// Which month [default: this one]
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<Month>,
    /// One line a day
    #[arg(long)]
    daily: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table, conflicts_with = "json")]
    format: Format,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For a terminal
    Table,
    /// For a spreadsheet or a billing program
    Csv,
    /// For programs
    Json,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = args.id.as_deref().map(tenant).transpose()?;
    let month = args.month.unwrap_or_else(|| Month::of(route::day(unix_now())));
    let reader = Reader::open(&desired.state_dir).with_context(|| format!("nothing is recorded in {}", desired.state_dir.display()))?;
    let all = if args.daily { reader.usage_by_day(month, id.as_ref())? } else { reader.usage_of_month(month, id.as_ref())? };
    match args.format {
        Format::Json => anstream::println!("{}", serde_json::to_string(&all)?),
        Format::Table if args.json => anstream::println!("{}", serde_json::to_string(&all)?),
        Format::Csv => anstream::print!("{}", csv(&all)?),
        Format::Table => print(&all),
    }
    Ok(ExitCode::SUCCESS)
}

/// RFC 4180, a heading first. Numbers stand as they are, all else in quotes.
fn csv(all: &[Usage]) -> anyhow::Result<String> {
    let mut writer =
        csv::WriterBuilder::new().quote_style(csv::QuoteStyle::NonNumeric).terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    if all.is_empty() {
        writer.serialize(columns())?;
    }
    for usage in all {
        writer.serialize(usage)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn columns() -> [&'static str; 11] {
    [
        "period",
        "id",
        "days",
        "requests",
        "errors",
        "writes",
        "bytes_in",
        "bytes_out",
        "peak_memory_bytes",
        "storage_bytes",
        "storage_byte_days",
    ]
}

fn print(all: &[Usage]) {
    let row = |usage: &Usage| {
        vec![
            usage.period.clone(),
            usage.id.clone(),
            usage.days.to_string(),
            usage.requests.to_string(),
            usage.errors.to_string(),
            usage.writes.to_string(),
            table::bytes(usage.bytes_in),
            table::bytes(usage.bytes_out),
            table::bytes(usage.peak_memory_bytes),
            table::bytes(usage.storage_bytes),
        ]
    };
    let heading = ["PERIOD", "ID", "DAYS", "REQUESTS", "ERRORS", "WRITES", "IN", "OUT", "PEAK MEMORY", "STORAGE"];
    table::print(&heading, &all.iter().map(row).collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str) -> Usage {
        Usage {
            period: "2026-02".into(),
            id: id.into(),
            days: 28,
            requests: 1,
            errors: 2,
            writes: 3,
            bytes_in: 4,
            bytes_out: 5,
            peak_memory_bytes: 6,
            storage_bytes: 7,
            storage_byte_days: u64::MAX,
        }
    }

    #[test]
    fn a_bill_has_its_heading_and_ids_in_quotes() {
        let text = csv(&[usage("+a,\"b\"@example.com")]).unwrap();
        let mut lines = text.split("\r\n");
        assert_eq!(lines.next().unwrap().replace('"', ""), columns().join(","));
        assert_eq!(lines.next(), Some("\"2026-02\",\"+a,\"\"b\"\"@example.com\",28,1,2,3,4,5,6,7,18446744073709551615"));
        assert_eq!((lines.next(), lines.next()), (Some(""), None));
    }

    #[test]
    fn where_nobody_used_anything_the_heading_stands_alone() {
        let with = csv(&[usage("a")]).unwrap();
        assert_eq!(csv(&[]).unwrap().lines().collect::<Vec<_>>(), [with.lines().next().unwrap()]);
    }
}
