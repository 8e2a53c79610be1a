//! tenants.toml as a test writes it.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

/// What a tenants.toml says.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Ports for instances.
    pub ports: (u16, u16),
    /// The proxy's port.
    pub https: u16,
    /// The sq program.
    pub sq: std::path::PathBuf,
    /// `auto`, `required` or `off`.
    pub isolation: &'static str,
    /// `[agent] disk_reserve`; `none`, since the disk of whoever runs the tests may be nearly full.
    pub disk_reserve: &'static str,
    /// Further lines of `[proxy]`.
    pub proxy: String,
    /// Further tables, as they stand in the file.
    pub more: String,
    /// Every tenant by id.
    pub tenants: BTreeMap<String, WantedTenant>,
}

/// What it says of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTenant {
    /// `free`, `paid`, `metered` or `small`, see [`Wanted::text`].
    pub tier: &'static str,
    /// Answered with 403, not run.
    pub suspended: bool,
    /// Further lines of its table: limits of its own.
    pub more: &'static str,
}

impl Wanted {
    /// Adds a tenant of the tier `free`.
    pub fn add(&mut self, id: &str) -> &mut WantedTenant {
        self.tenants.entry(id.to_owned()).or_insert(WantedTenant { tier: "free", suspended: false, more: "" })
    }

    /// Removes one.
    pub fn remove(&mut self, id: &str) {
        assert!(self.tenants.remove(id).is_some(), "{id} is not there to be removed");
    }

    /// One that is there.
    pub fn tenant(&mut self, id: &str) -> &mut WantedTenant {
        self.tenants.get_mut(id).unwrap()
    }

    /// The file. Only `metered` has a rate, so that no other test meets a limit by being fast.
    pub fn text(&self) -> String {
        let mut text = format!(
            r#"[agent]
state_dir = "state"
ports = "{}-{}"
isolation = "{}"
disk_reserve = "{}"

[sq]
binary = {:?}

[proxy]
listen = ["127.0.0.1:{}"]
{}

[tiers.free]
rate = "none"

[tiers.paid]
rate = "none"
concurrency = 16

[tiers.metered]
rate = "100/m"
burst = 20

[tiers.small]
rate = "none"
body_max = "4K"
"#,
            self.ports.0, self.ports.1, self.isolation, self.disk_reserve, self.sq, self.https, self.proxy
        );
        text.push_str(&self.more);
        for (id, tenant) in &self.tenants {
            write!(text, "\n[[tenants]]\nid = {id:?}\ntier = {:?}\n", tenant.tier).unwrap();
            if tenant.suspended {
                text.push_str("suspended = true\n");
            }
            text.push_str(tenant.more);
        }
        text
    }
}

/// Writes as editors and git do: a new file, renamed over the old one.
pub fn replace(file: &Path, text: &str) {
    let new = file.with_extension("toml.new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}
