//! What `/metrics` says, as values by series.

use std::{collections::BTreeMap, fmt};

use super::admin::Admin;

/// One scrape.
#[derive(Clone)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Scrapes by `admin`.
    pub async fn of(admin: &Admin) -> Self {
        let said = admin.get("/metrics").await;
        assert_eq!(said.status, 200, "{said:?}");
        Self::read(std::str::from_utf8(&said.body).unwrap())
    }

    fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let values = samples.map(|line| line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}")));
        let mut all = BTreeMap::new();
        for (series, value) in values {
            let twice = all.insert(series.strip_prefix("sq_agent_").unwrap().to_owned(), value.parse().unwrap());
            assert!(twice.is_none(), "{series} stands there twice");
        }
        Self(all)
    }

    /// The value of a series, named without its `sq_agent_`; 0 where there is none.
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// Whether there is any series with these words in its name or labels.
    pub fn has(&self, words: &str) -> bool {
        self.0.keys().any(|series| series.contains(words))
    }
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().filter(|(_, value)| **value != 0.0)).finish()
    }
}
