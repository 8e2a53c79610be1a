//! Days since 1970 and the months they lie in, UTC: bills go by the month.

use std::{fmt, str::FromStr};

/// Days in 400 years of the Gregorian calendar.
const ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const TO_1970: i64 = 719_468;

/// A month of a year, as `2026-02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(u32);

/// Not a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a month is written as 2026-02")]
pub struct NotAMonth;

impl Month {
    /// The month in which `day` lies.
    pub fn of(day: u32) -> Self {
        let (year, month, _) = civil(day);
        Self(year * 12 + month - 1)
    }

    /// As one number that grows by one from month to month: the store's.
    pub fn number(self) -> u32 {
        self.0
    }

    /// What [`Self::number`] gave.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Its first day.
    pub fn first_day(self) -> u32 {
        days(self.0 / 12, self.0 % 12 + 1)
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The one before it.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 12, self.0 % 12 + 1)
    }
}

impl FromStr for Month {
    type Err = NotAMonth;

    fn from_str(text: &str) -> Result<Self, NotAMonth> {
        let (year, month) = text.split_once('-').filter(|(year, month)| year.len() == 4 && month.len() == 2).ok_or(NotAMonth)?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
        let (year, month) = number(year).zip(number(month)).ok_or(NotAMonth)?;
        if year >= 1970 && (1..=12).contains(&month) { Ok(Self(year * 12 + month - 1)) } else { Err(NotAMonth) }
    }
}

/// A day for people: `2026-02-09`.
pub fn day_text(day: u32) -> String {
    let (year, month, day) = civil(day);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of the month. (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.)
fn civil(day: u32) -> (u32, u32, u32) {
    let since = i64::from(day) + TO_1970;
    let (era, day_of_era) = (since / ERA, since % ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Of a year that begins in March.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // Nothing here is negative: days before 1970 cannot be written as u32.
    (year as u32, month as u32, day as u32)
}

/// The first day of a month, days since 1970. (The same source, days_from_civil.)
fn days(year: u32, month: u32) -> u32 {
    let year = i64::from(year) - i64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let from_march = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let day_of_year = (153 * from_march + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    u32::try_from(era * ERA + day_of_era - TO_1970).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::rfc3339;

    proptest! {
        #[test]
        fn a_day_is_the_one_that_everybody_else_says_it_is(day in 0_u32..2_932_896) {
            let text = rfc3339(u64::from(day) * 86_400);
            prop_assert_eq!(day_text(day), &text[..10]);
            prop_assert_eq!(Month::of(day).to_string(), &text[..7]);
            let month: Month = text[..7].parse().unwrap();
            prop_assert!(month.first_day() <= day && day < month.next().first_day());
            prop_assert_eq!(Month::of(month.first_day() - u32::from(month.first_day() > 0)), if day < 31 { month } else { month.before() });
        }
    }

    #[test]
    fn only_a_month_is_read_as_one() {
        assert_eq!("2026-02".parse::<Month>().unwrap().first_day(), 20_485);
        for bad in ["2026-2", "2026-13", "2026-00", "1969-12", "26-02", "2026-02-01", "+026-02", "", "2026_02"] {
            assert_eq!(bad.parse::<Month>(), Err(NotAMonth), "{bad}");
        }
    }
}
