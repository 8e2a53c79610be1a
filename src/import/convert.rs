//! What becomes of each value of a gateway's file. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::gateway::{Entry, Gateway};
use crate::{
    child,
    desired::{PortRange, TenantId, user_dir},
    digest::sha256,
    proxy::api_key,
    secret::Secret,
};

/// A token of fewer characters than this can be guessed: 16 hex digits are 64 random bits.
const SHORT_TOKEN: usize = 16;

/// Where things are to be on the new host.
#[derive(Debug, Clone)]
pub struct Options {
    /// `[agent] state_dir` of the new file.
    pub state_dir: PathBuf,
    /// Where a tenant's data lie below its name, if the file does not say where.
    pub data_root: Option<PathBuf>,
}

/// A tenant's data, and where they are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// Whose.
    pub id: TenantId,
    /// Where they lie.
    pub from: PathBuf,
    /// Where its sq will look for them.
    pub to: PathBuf,
}

impl Move {
    /// The command to run. It fails where there are data already.
    pub fn command(&self, copy: bool) -> String {
        let how = if copy { "cp -aT --reflink=auto" } else { "mv -T" };
        let parent = self.to.parent().unwrap_or(&self.to);
        format!("install -d -m 700 {} && {how} {} {}", quoted(parent), quoted(&self.from), quoted(&self.to))
    }
}

fn quoted(path: &Path) -> String {
    child::quoted(&path.to_string_lossy())
}

/// What has no place in tenants.toml, or not the same; in the order in which a person wants to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Left {
    Name,
    NoToken,
    SecondToken,
    UnusableToken,
    ShortToken,
    SameInstance,
    Port,
    NoData,
    Inactive,
    Phext,
    Unknown,
    Setting,
}

impl Left {
    /// What is listed, and what to do about it.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Name => ("names that are no ids, or somebody else's", "the id beside each is used; it is the `sub` of tokens"),
            Self::NoToken => ("tenants without a token", "`sq-agent token --api-key --sub ID` makes a key"),
            Self::SecondToken => ("tokens that a later tenant has, too", "the gateway let the later one in, and so does the new file"),
            Self::UnusableToken => (
                "tokens that are no API keys: of 8 to 256 letters, digits and - _ ~ + / =",
                "`sq-agent token --api-key --sub ID` makes a key",
            ),
            Self::ShortToken => {
                ("tokens short enough to be guessed; kept", "replace them: `sq-agent token --api-key --sub ID` makes a key")
            }
            Self::SameInstance => ("tenants that share an instance with an earlier one", "they become one tenant with several keys"),
            Self::Port => ("ports outside the range of the instances; not kept", "the agent picks others; users never see them"),
            Self::NoData => {
                ("tenants whose data the file does not name", "name their directory with --data-root, or move the data by hand")
            }
            Self::Inactive => ("tenants that were not active", "they are `suspended = true`; remove that line to serve them"),
            Self::Phext => ("phext names; kept as comments", "sq takes the phext from each request (`p=`)"),
            Self::Unknown => ("keys that mean nothing here", "their values stay in the old file"),
            Self::Setting => ("settings of the gateway", "see [proxy] listen and [admin] key_file of tenants.toml"),
        }
    }
}

/// One kind of thing that was not taken over as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What it is.
    pub what: &'static str,
    /// What becomes of it.
    pub remedy: &'static str,
    /// Each of them; no secret among them.
    pub items: Vec<String>,
}

/// What an import makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The text of the new tenants.toml.
    pub tenants_toml: String,
    /// How many tenants it has.
    pub tenants: usize,
    /// Which data are to be moved.
    pub moves: Vec<Move>,
    /// What was not taken over as it was.
    pub left_out: Vec<LeftOut>,
}

/// A tenant of the new file.
struct New {
    id: TenantId,
    keys: Vec<[u8; 32]>,
    port: Option<u16>,
    suspended: bool,
    phext: Option<String>,
    data: Option<PathBuf>,
}

/// Makes a desired state of a gateway's file.
pub fn convert(gateway: Gateway, options: &Options) -> Imported {
    let mut left: BTreeMap<Left, Vec<String>> = BTreeMap::new();
    let mut new = tenants(gateway.entries, options, &mut left);
    one_tenant_a_key(&mut new, &mut left);
    for key in gateway.settings.into_keys() {
        left.entry(Left::Setting).or_default().push(key);
    }
    for tenant in &new {
        let mut note = |kind, it_is: bool| {
            if it_is {
                left.entry(kind).or_default().push(tenant.id.to_string());
            }
        };
        note(Left::NoData, tenant.data.is_none());
        note(Left::Inactive, tenant.suspended);
    }
    let moves = new.iter().filter_map(|tenant| {
        let to = user_dir(&options.state_dir, &tenant.id).join("phext-data");
        Some(Move { id: tenant.id.clone(), from: tenant.data.clone()?, to })
    });
    let left_out = left.into_iter().map(|(kind, items)| LeftOut { what: kind.texts().0, remedy: kind.texts().1, items });
    Imported { tenants_toml: text(&new, options), tenants: new.len(), moves: moves.collect(), left_out: left_out.collect() }
}

fn tenants(entries: Vec<Entry>, options: &Options, left: &mut BTreeMap<Left, Vec<String>>) -> Vec<New> {
    let mut new: Vec<New> = Vec::with_capacity(entries.len());
    let mut ids = HashSet::new();
    // What makes two entries the same instance: its port, and its data.
    let (mut by_port, mut by_data) = (HashMap::new(), HashMap::new());
    for entry in entries {
        let known = entry.port.and_then(|port| by_port.get(&port)).or_else(|| by_data.get(entry.data_dir.as_ref()?)).copied();
        let called = entry.name.clone().map_or_else(|| entry.place.clone(), |name| format!("{} ({name:?})", entry.place));
        let mut note = |kind, item: String| left.entry(kind).or_default().push(item);
        let at = known.unwrap_or_else(|| {
            let wished = wished_name(&entry);
            let id = free_id(&wished, &ids);
            if id.as_str() != wished {
                note(Left::Name, format!("{called}: {id}"));
            }
            ids.insert(id.clone());
            new.push(New { id, keys: Vec::new(), port: None, suspended: true, phext: None, data: None });
            new.len() - 1
        });
        let tenant = &mut new[at];
        if known.is_some() {
            note(Left::SameInstance, format!("{called}: {}", tenant.id));
        }
        match key(entry.token.as_ref()) {
            Ok((digest, short)) => {
                // The same token twice for one instance is one key.
                if !tenant.keys.contains(&digest) {
                    tenant.keys.push(digest);
                }
                if short {
                    note(Left::ShortToken, called.clone());
                }
            }
            Err(kind) => note(kind, called.clone()),
        }
        if let Some(port) = entry.port {
            by_port.insert(port, at);
            match u16::try_from(port).ok().filter(|&port| PortRange::DEFAULT.contains(port)) {
                Some(port) => tenant.port = Some(port),
                None => note(Left::Port, format!("{} {port}", tenant.id)),
            }
        }
        if let Some(dir) = &entry.data_dir {
            by_data.insert(dir.clone(), at);
        }
        let below_root = || Some(options.data_root.as_ref()?.join(entry.name.as_ref()?));
        tenant.data = tenant.data.take().or(entry.data_dir.clone()).or_else(below_root);
        // Of those that shared an instance, one that was served is enough.
        tenant.suspended &= entry.active == Some(false);
        if let Some(phext) = entry.phext {
            note(Left::Phext, format!("{} {phext:?}", tenant.id));
            tenant.phext = Some(phext);
        }
        for key in entry.unknown.into_keys() {
            note(Left::Unknown, format!("{} {key:?}", tenant.id));
        }
    }
    new
}

/// The digest of a token, and whether it is short; or what is wrong with it.
fn key(token: Option<&Secret>) -> Result<([u8; 32], bool), Left> {
    let token = token.map(Secret::expose).filter(|token| !token.is_empty()).ok_or(Left::NoToken)?;
    if !api_key::may_be_one(token) {
        return Err(Left::UnusableToken);
    }
    Ok((sha256(token), token.len() < SHORT_TOKEN))
}

/// The gateway knows a token once: the last tenant with it is who it lets in.
fn one_tenant_a_key(new: &mut [New], left: &mut BTreeMap<Left, Vec<String>>) {
    let mut seen = HashSet::new();
    for tenant in new.iter_mut().rev() {
        let before = tenant.keys.len();
        tenant.keys.retain(|key| seen.insert(*key));
        if tenant.keys.len() < before {
            left.entry(Left::SecondToken).or_default().push(tenant.id.to_string());
        }
    }
}

/// What the old file calls the tenant, in its own words.
fn wished_name(entry: &Entry) -> String {
    let of_data = || entry.data_dir.as_ref()?.file_name()?.to_str().map(str::to_owned);
    let of_port = || entry.port.map(|port| format!("tenant-{port}"));
    entry.name.clone().or_else(of_data).or_else(of_port).unwrap_or_else(|| entry.place.replace(' ', "-"))
}

/// `wished` as an id that nobody has.
fn free_id(wished: &str, taken: &HashSet<TenantId>) -> TenantId {
    let plain: String = wished.chars().map(|c| if c.is_ascii_alphanumeric() || "._-+@".contains(c) { c } else { '-' }).collect();
    let plain = plain.trim_start_matches('.');
    (1..)
        .filter_map(|number| {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let stem = if plain.is_empty() { "tenant" } else { plain };
            // ASCII: any byte is a place to cut at.
            let stem = &stem[..stem.len().min(TenantId::MAX_BYTES - suffix.len())];
            TenantId::parse(&format!("{stem}{suffix}")).ok()
        })
        .find(|id| !taken.contains(id))
        .unwrap_or_else(|| unreachable!("there are more numbers than tenants"))
}

fn text(tenants: &[New], options: &Options) -> String {
    let mut out = String::from("# Made by `sq-agent import` of an sq gateway's file.\n\n[agent]\n");
    // Writing to a String cannot fail.
    let _ = writeln!(out, "state_dir = {}", toml::Value::from(options.state_dir.to_string_lossy().as_ref()));
    for tenant in tenants {
        let _ = write!(out, "\n[[tenants]]\nid = \"{}\"\n", tenant.id);
        if !tenant.keys.is_empty() {
            let keys = tenant.keys.iter().map(|key| format!("{:?}", api_key::digest_text(key))).collect::<Vec<_>>();
            let _ = writeln!(out, "api_keys = [{}]", keys.join(", "));
        }
        if let Some(port) = tenant.port {
            let _ = writeln!(out, "port = {port}");
        }
        if tenant.suspended {
            out.push_str("suspended = true\n");
        }
        if let Some(phext) = &tenant.phext {
            let _ = writeln!(out, "# phext = {phext:?}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::parse, digest::hex};

    fn options() -> Options {
        Options { state_dir: "/var/lib/sq".into(), data_root: None }
    }

    fn imported(text: &str) -> Imported {
        let imported = convert(Gateway::parse(text).unwrap(), &options());
        parse(&imported.tenants_toml, Path::new("/etc/t.toml")).unwrap_or_else(|rejected| panic!("{rejected}\n{}", imported.tenants_toml));
        imported
    }

    fn items(imported: &Imported, part: &str) -> Vec<String> {
        let found = imported.left_out.iter().find(|left| left.what.contains(part));
        found.map(|left| left.items.clone()).unwrap_or_default()
    }

    #[test]
    fn a_tenant_keeps_its_token_as_a_digest_and_its_port_where_it_may() {
        let text = "[gateway]\nlisten_port = 8080\nadmin_key = 's3cret-of-admin'\n[[tenants]]\ntoken = 's3cret-of-alice'\nname = 'alice'\nport = 10007\nphext = 'a\"b'\n\
            [[tenants]]\ntoken = 'pmb-v1-c24c8490b0e5ab79945427e75f7b6d9a'\nname = 'bob'\nport = 1338\n";
        let imported = imported(text);
        let desired = parse(&imported.tenants_toml, Path::new("/etc/t.toml")).unwrap();
        let alice = &desired.tenants[&TenantId::parse("alice").unwrap()];
        // `printf s3cret-of-alice | sha256sum`
        assert_eq!(hex(&alice.api_keys[0]), "dceb7c45e4c333dea82b088dca735fae46bb76deec4cdc121c42cf74bdbc66a5");
        assert_eq!((alice.port, desired.tenants.len()), (Some(10_007), 2));
        assert_eq!(items(&imported, "ports outside"), ["bob 1338"]);
        assert_eq!(items(&imported, "settings"), ["gateway.admin_key", "gateway.listen_port"]);
        assert_eq!(items(&imported, "phext names"), [r#"alice "a\"b""#]);
        assert_eq!(items(&imported, "short"), ["tenant 1 (\"alice\")"]);
        assert_eq!(items(&imported, "data the file does not name"), ["alice", "bob"]);
        let all = serde_json::to_string(&imported).unwrap();
        assert!(!all.contains("s3cret") && !all.contains("c24c8490"), "no token is shown");
    }

    #[test]
    fn every_tenant_has_an_id_that_is_one() {
        let imported = imported(
            r#"{"tenants":[{"token":"aaaaaaaaaaaaaaaa","name":"bob smith"},{"token":"bbbbbbbbbbbbbbbb","name":"bob-smith"},
            {"token":"cccccccccccccccc","port":10005},{"token":"dddddddddddddddd","data_dir":"/srv/.x y"},{"token":"eeeeeeeeeeeeeeee","name":"é"}]}"#,
        );
        let desired = parse(&imported.tenants_toml, Path::new("/etc/t.toml")).unwrap();
        let ids: Vec<&str> = desired.tenants.keys().map(TenantId::as_str).collect();
        assert_eq!(ids, ["-", "bob-smith", "bob-smith-2", "tenant-10005", "x-y"]);
        assert_eq!(items(&imported, "names").len(), 4);
        assert_eq!(
            imported.moves[0].command(false),
            "install -d -m 700 /var/lib/sq/users/x-y && mv -T '/srv/.x y' /var/lib/sq/users/x-y/phext-data"
        );
        assert!(imported.moves[0].command(true).contains("&& cp -aT --reflink=auto '/srv/.x y'"));
    }

    #[test]
    fn who_shared_an_instance_is_one_tenant_and_a_token_lets_in_whom_the_gateway_let_in() {
        let imported = imported(
            r#"{"tenants":[{"token":"aaaaaaaaaaaaaaaa","name":"a","port":10001,"active":false},{"token":"bbbbbbbbbbbbbbbb","name":"b","port":10001},
            {"token":"aaaaaaaaaaaaaaaa","name":"c","port":10002},{"token":"","name":"d"},{"token":"two words","name":"e"},{"name":"f","email":"f@x","active":false}]}"#,
        );
        let desired = parse(&imported.tenants_toml, Path::new("/etc/t.toml")).unwrap();
        let keys = |id: &str| desired.tenants[&TenantId::parse(id).unwrap()].api_keys.len();
        assert_eq!((desired.tenants.len(), keys("a"), keys("c")), (5, 1, 1));
        assert!(!desired.tenants[&TenantId::parse("a").unwrap()].suspended, "b was served by the same sq");
        assert_eq!(items(&imported, "not active"), ["f"]);
        assert_eq!(items(&imported, "share an instance"), ["tenant 2 (\"b\"): a"]);
        assert_eq!(items(&imported, "later tenant has"), ["a"]);
        assert_eq!(items(&imported, "without a token"), ["tenant 4 (\"d\")", "tenant 6 (\"f\")"]);
        assert_eq!(items(&imported, "no API keys"), ["tenant 5 (\"e\")"]);
        assert_eq!(items(&imported, "keys that mean nothing"), ["f \"email\""]);
    }

    #[test]
    fn a_token_that_stands_twice_for_one_instance_is_one_key_and_no_later_tenants() {
        let twice = "[[tenants]]\ntoken = 'aaaaaaaaaaaaaaaa'\nname = 'a'\nport = 10001\n".repeat(2);
        let imported = imported(&twice);
        assert_eq!(imported.tenants_toml.matches("sha256:").count(), 1);
        assert!(items(&imported, "later tenant has").is_empty(), "{:?}", imported.left_out);
    }

    #[test]
    fn a_data_root_says_where_the_data_of_a_name_are() {
        let gateway = Gateway::parse("[[tenants]]\ntoken = 'aaaaaaaaaaaaaaaa'\nname = 'alice'\n").unwrap();
        let imported = convert(gateway, &Options { data_root: Some("/data".into()), ..options() });
        assert_eq!((imported.moves[0].from.as_path(), imported.left_out.len()), (Path::new("/data/alice"), 0));
    }
}
