//! `sq-agent events [--follow] [ID]`: what happened.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::ExitCode};

use anyhow::Context as _;

use super::{follow, snapshot::tenant};
use crate::{
    desired::{Desired, TenantId},
    store::{Event, Reader, StoreError, rfc3339},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent events                              # the last 50, the newest at the end\n  sq-agent events --follow user1@example.com   # and what comes, until Ctrl-C\n  sq-agent events --json --follow | jq -c 'select(.kind == \"crashed\")'\n\nEvents are kept for 30 days. JSON is an array; with --follow an object a line. Also while no agent runs."
)]
pub(super) struct Args {
    /// Only this tenant
    id: Option<String>,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// So many of those that were
    #[arg(long, short = 'n', default_value_t = 50)]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Events that are fetched at a time.
const BATCH: u32 = 1_000;

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let id = args.id.as_deref().map(tenant).transpose()?;
    let state_dir = desired.state_dir.as_path();
    let reader = Reader::open(state_dir).with_context(|| format!("nothing is recorded in {}", state_dir.display()))?;
    // Of everybody: the place from which to go on, whoever it was about.
    let mut last = reader.events(1)?.first().map_or(0, |event| event.number);
    let mut events = reader.events_of(id.as_ref(), None, None, args.limit)?;
    events.reverse();
    if !args.follow {
        if args.json {
            anstream::println!("{}", serde_json::to_string(&events)?);
        } else {
            for event in &events {
                if !follow::line(&text(event))? {
                    break;
                }
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let shown = |event: &Event| -> anyhow::Result<bool> {
        let line = if args.json { serde_json::to_string(event)? } else { text(event) };
        follow::line(&line)
    };
    for event in &events {
        if !shown(event)? {
            return Ok(ExitCode::SUCCESS);
        }
        last = last.max(event.number);
    }
    let mut source = Source { reader, file: file(state_dir) };
    loop {
        for event in source.after(state_dir, &mut last)? {
            if concerns(&event, id.as_ref()) && !shown(&event)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
        follow::pause();
    }
}

/// instances.db, also where another one has taken its place.
struct Source {
    reader: Reader,
    file: Option<(u64, u64)>,
}

impl Source {
    /// What came after `last`, which moves on.
    fn after(&mut self, state_dir: &Path, last: &mut u64) -> Result<Vec<Event>, StoreError> {
        let now = file(state_dir);
        if now.is_some() && now != self.file {
            // Rebuilt: its events are numbered anew. While it is being made it cannot be read yet.
            let Ok(reader) = Reader::open(state_dir) else { return Ok(Vec::new()) };
            (self.reader, self.file, *last) = (reader, now, 0);
        }
        let events = self.reader.events_after(*last, BATCH)?;
        *last = events.last().map_or(*last, |event| event.number);
        Ok(events)
    }
}

fn file(state_dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(state_dir.join("instances.db")).ok().map(|about| (about.dev(), about.ino()))
}

fn concerns(event: &Event, id: Option<&TenantId>) -> bool {
    id.is_none_or(|id| event.id.as_deref() == Some(id.as_str()))
}

/// One line. What sq or a user wrote may stand in it, and steers no terminal.
fn text(event: &Event) -> String {
    let Event { at, id, kind, detail, .. } = event;
    let detail: String = detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{}  {:<20}  {}  {detail}", rfc3339(*at), kind, id.as_deref().unwrap_or("-")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn who_follows_sees_what_comes_once_also_after_a_rebuild() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        store.event(1, None, "before", "").unwrap();
        let mut last = 1;
        let mut source = Source { reader: Reader::open(dir.path()).unwrap(), file: file(dir.path()) };
        let mut kinds = || source.after(dir.path(), &mut last).unwrap().into_iter().map(|event| event.kind).collect::<Vec<_>>();
        assert!(kinds().is_empty());
        store.event(2, None, "one", "").unwrap();
        store.event(2, None, "two", "").unwrap();
        assert_eq!((kinds(), kinds()), (vec!["one".to_owned(), "two".to_owned()], vec![]));
        drop(store);
        for name in ["instances.db", "instances.db-wal", "instances.db-shm"] {
            let _ = fs::rename(dir.path().join(name), dir.path().join(format!("{name}.aside")));
        }
        Store::open(dir.path()).unwrap().store.event(3, None, "rebuilt", "").unwrap();
        assert_eq!(kinds(), ["rebuilt"]);
    }

    #[test]
    fn an_event_is_one_line_and_says_whose_it_is() {
        let event = Event { number: 1, at: 0, id: Some("a".into()), kind: "crashed".into(), detail: "exit\n101".into() };
        assert_eq!(text(&event), "1970-01-01T00:00:00Z  crashed               a  exit 101");
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        assert!(concerns(&event, None) && concerns(&event, Some(&a)) && !concerns(&event, Some(&b)));
    }
}
