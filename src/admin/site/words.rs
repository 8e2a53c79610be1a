//! Figures and times as the page writes them.

use crate::store::rfc3339;

/// A size, to three digits: `12.4 MB`. Powers of 1,024, as in tenants.toml.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1_024.0, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1_024.0, unit + 1);
    }
    let digits = if value.fract() == 0.0 {
        0
    } else if value < 9.995 {
        2
    } else {
        usize::from(value < 99.95)
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A count, by thousands: `10,000`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number that may be half a one.
pub(super) fn number(value: f64) -> String {
    if value.fract() == 0.0 { count(value as u64) } else { format!("{value:.1}") }
}

/// How much of `total` is `part`, percent; none where there is no total.
pub(super) fn percent(part: u64, total: u64) -> Option<u64> {
    u64::try_from(u128::from(part).saturating_mul(100).checked_div(total.into())?).ok()
}

/// A moment of RFC 3339 as people read it, where it is `now`: without its date if that is the same. UTC, as everything here.
pub(super) fn when(at: &str, now: u64) -> String {
    let today = rfc3339(now);
    let (Some(date), Some(time)) = (at.get(..10), at.get(11..19)) else { return at.to_owned() };
    match (today.get(..10) == Some(date), today.get(..4) == date.get(..4)) {
        (true, _) => time.to_owned(),
        (false, true) => format!("{} {time}", date.get(5..).unwrap_or(date)),
        (false, false) => format!("{date} {time}"),
    }
}

/// How long, roughly: `3 days`.
pub(super) fn span(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// One, or several.
pub(super) fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{} {}", count(number as u64), if number == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_counts_their_commas() {
        let sizes = [0, 999, 1_000, 10 << 10, 1_300_000, 20 << 20, 1_023 << 20, 17 << 30, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "0.98 KB", "10 KB", "1.24 MB", "20 MB", "1.00 GB", "17 GB", "16384 PB"]);
        assert_eq!([0, 999, 1_000, 10_000, 1_234_567].map(count), ["0", "999", "1,000", "10,000", "1,234,567"]);
        assert_eq!((percent(1, 3), percent(1, 0), percent(u64::MAX, u64::MAX)), (Some(33), None, Some(100)));
    }

    #[test]
    fn a_time_says_no_more_of_its_date_than_is_needed() {
        let now = 1_795_651_200; // 2026-11-26T00:00:00Z
        let texts = ["2026-11-26T10:20:30Z", "2026-11-25T10:20:30Z", "2025-11-26T10:20:30Z", "odd"].map(|at| when(at, now));
        assert_eq!(texts, ["10:20:30", "11-25 10:20:30", "2025-11-26 10:20:30", "odd"]);
        assert_eq!([1, 119, 120, 7_200, 200_000].map(span), ["1 second", "119 seconds", "2 minutes", "2 hours", "2 days"]);
    }
}
