//! What is written, so that what is read tells whether it is whole, and what of it may be there.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::tally::Fault;

/// Length of a phext's ballast, bytes: a scroll that is written once and must always be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl Size {
    /// A text of this length; no two tenants have the same.
    pub(crate) fn ballast(self, salt: usize) -> String {
        let line = format!("ballast of {salt:02} ");
        line.chars().cycle().take(self.0).collect()
    }
}

fn checksum(number: u64, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (number, text).hash(&mut hasher);
    hasher.finish()
}

/// A text that carries its number, its length and a checksum.
pub(crate) fn numbered(number: u64, length: usize) -> String {
    let filler: String = ('a'..='z').cycle().skip(usize::try_from(number % 26).unwrap()).take(length).collect();
    format!("#{number} {length} {:016x} {filler}", checksum(number, &filler))
}

/// The number of a whole text; `None` where it is not whole.
fn number(text: &str) -> Option<u64> {
    let (head, filler) = text.strip_prefix('#')?.rsplit_once(' ').or(Some((text.strip_prefix('#')?, "")))?;
    let mut parts = head.split(' ');
    let number = parts.next()?.parse().ok()?;
    let length: usize = parts.next()?.parse().ok()?;
    let sum = u64::from_str_radix(parts.next()?, 16).ok()?;
    (length == filler.len() && sum == checksum(number, filler)).then_some(number)
}

/// A piece to append: no other is the same.
pub(crate) fn token(number: u64) -> String {
    format!("<{number}:{:08x}>", checksum(number, "token") >> 32)
}

/// What may be said of a write that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was answered with 200.
    Acknowledged,
    /// No answer tells.
    Unknown,
    /// The answer says that nothing of it was applied.
    NotApplied,
}

/// A scroll that is replaced again and again.
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    fates: BTreeMap<u64, Fate>,
    next: u64,
}

impl Replaced {
    /// What is known in the start of this number, after the reports of those before. Each has numbers of its own, and may have written as many
    /// as `unreported` times more than it came to report.
    pub(crate) fn reported(reports: Vec<(u64, Fate)>, start: u64, unreported: u64) -> Self {
        /// More than any start writes.
        const NUMBERS: u64 = 100_000;
        let mut replaced = Self::default();
        let mut last = 0;
        for (number, fate) in reports {
            replaced.note(number, fate);
            last = last.max(number);
        }
        for of in last / NUMBERS..start {
            let first = (of * NUMBERS).max(last) + 1;
            (first..first + unreported).for_each(|number| replaced.note(number, Fate::Unknown));
        }
        replaced.next = start * NUMBERS;
        replaced
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn note(&mut self, number: u64, fate: Fate) {
        if fate == Fate::Acknowledged {
            self.fates.clear();
        }
        self.fates.insert(number, fate);
    }

    pub(crate) fn judge(&self, text: &str) -> Result<(), Fault> {
        let acknowledged = self.fates.iter().any(|(_, fate)| *fate == Fate::Acknowledged);
        if text.is_empty() {
            return if acknowledged { Err(Fault::Lost) } else { Ok(()) };
        }
        let number = number(text).ok_or(Fault::Half)?;
        match self.fates.get(&number) {
            Some(Fate::Acknowledged | Fate::Unknown) => Ok(()),
            Some(Fate::NotApplied) => Err(Fault::ThereAfterAll),
            // An older one.
            None => Err(Fault::Lost),
        }
    }
}

/// A scroll to which pieces are appended.
#[derive(Debug, Default)]
pub(crate) struct Appended {
    fates: BTreeMap<u64, Fate>,
    next: u64,
}

impl Appended {
    /// What is known of the scroll of one start, likewise.
    pub(crate) fn reported(reports: Vec<(u64, Fate)>, unreported: u64) -> Self {
        let mut appended =
            Self { next: reports.iter().map(|(number, _)| *number).max().unwrap_or(0), fates: reports.into_iter().collect() };
        for _ in 0..unreported {
            let number = appended.next();
            appended.note(number, Fate::Unknown);
        }
        appended
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn note(&mut self, number: u64, fate: Fate) {
        self.fates.insert(number, fate);
    }

    pub(crate) fn is_long(&self) -> bool {
        self.fates.len() >= 300
    }

    pub(crate) fn judge(&self, text: &str) -> Result<(), Fault> {
        let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
        for piece in text.split_inclusive('>') {
            let number = piece.strip_prefix('<').and_then(|piece| piece.split(':').next()?.parse().ok()).ok_or(Fault::Half)?;
            if piece != token(number) {
                return Err(Fault::Half);
            }
            *seen.entry(number).or_default() += 1;
        }
        for (number, fate) in &self.fates {
            match (fate, seen.remove(number).unwrap_or(0)) {
                (_, 2..) => return Err(Fault::Doubled),
                (Fate::Acknowledged, 0) => return Err(Fault::Lost),
                (Fate::NotApplied, 1) => return Err(Fault::ThereAfterAll),
                _ => {}
            }
        }
        if seen.is_empty() { Ok(()) } else { Err(Fault::ThereAfterAll) }
    }
}

#[test]
fn the_model_sees_each_fault() {
    let mut replaced = Replaced::default();
    let texts: Vec<_> = (0..5).map(|_| numbered(replaced.next(), 30)).collect();
    assert_eq!(replaced.judge(""), Ok(()));
    for (number, fate) in [(1, Fate::Acknowledged), (2, Fate::Unknown), (3, Fate::Acknowledged), (4, Fate::NotApplied), (5, Fate::Unknown)]
    {
        replaced.note(number, fate);
    }
    let judged: Vec<_> = texts.iter().map(|text| replaced.judge(text)).collect();
    assert_eq!(judged, [Err(Fault::Lost), Err(Fault::Lost), Ok(()), Err(Fault::ThereAfterAll), Ok(())]);
    assert_eq!(replaced.judge(""), Err(Fault::Lost));
    assert_eq!(replaced.judge(&texts[4][..texts[4].len() - 1]), Err(Fault::Half));
    assert_eq!(replaced.judge(&texts[4][..3]), Err(Fault::Half));

    let mut appended = Appended::default();
    for fate in [Fate::Acknowledged, Fate::Unknown, Fate::NotApplied] {
        let number = appended.next();
        appended.note(number, fate);
    }
    let text = |numbers: &[u64]| numbers.iter().map(|&number| token(number)).collect::<String>();
    assert_eq!(appended.judge(&text(&[1])), Ok(()));
    assert_eq!(appended.judge(&text(&[1, 2])), Ok(()));
    assert_eq!(appended.judge(&text(&[2])), Err(Fault::Lost));
    assert_eq!(appended.judge(""), Err(Fault::Lost));
    assert_eq!(appended.judge(&text(&[1, 2, 2])), Err(Fault::Doubled));
    assert_eq!(appended.judge(&text(&[1, 3])), Err(Fault::ThereAfterAll));
    assert_eq!(appended.judge(&text(&[1, 2])[..20]), Err(Fault::Half));
}
