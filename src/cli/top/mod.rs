//! `sq-agent top`: everybody on one screen, live; one tenant's log and events on another.

mod model;
mod view;

use std::{
    io::IsTerminal as _,
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::model::{Key, Model, Outcome, Told};
use super::logs::Log;
use crate::{
    admin::{client, status::Status},
    desired::{Desired, TenantId},
    store::Reader,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent top      # s sorts, / filters, Enter shows a tenant's log and events, q ends\n\nIt only looks; nothing can be changed from it. Piped, use `sq-agent status`."
)]
pub(super) struct Args {}

/// From one look to the next.
const LOOK: Duration = Duration::from_secs(1);
/// How long a key is waited for before the screen is drawn anew.
const KEYS: Duration = Duration::from_millis(100);
/// Events of a tenant that are shown.
const EVENTS: u32 = 100;

pub(super) fn run(_: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "this needs a terminal: `sq-agent status` says the same"
    );
    // Says why not while there is still a terminal to say it on.
    let mut model = Model::new(look(desired)?, Instant::now());
    let news = looks(desired);
    let mut terminal = ratatui::try_init().context("taking the terminal")?;
    let ended = attend(&mut terminal, &mut model, &news, desired);
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

fn look(desired: &Desired) -> anyhow::Result<Status> {
    Ok(serde_json::from_slice(&client::ask(&desired.state_dir, "GET", "/status")?)?)
}

/// Asks the agent every second, on a thread of its own: a busy or missing agent stops no key.
fn looks(desired: &Desired) -> mpsc::Receiver<Result<Status, String>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let desired = desired.clone();
    std::thread::spawn(move || {
        loop {
            super::follow::pause_for(LOOK);
            let seen = look(&desired).map_err(|error| format!("{error:#}"));
            if sender.send(seen).is_err() {
                return;
            }
        }
    });
    receiver
}

fn attend(
    terminal: &mut ratatui::DefaultTerminal,
    model: &mut Model,
    news: &mpsc::Receiver<Result<Status, String>>,
    desired: &Desired,
) -> anyhow::Result<()> {
    let mut shown: Option<(TenantId, Log)> = None;
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        if event::poll(KEYS)?
            && let Event::Key(pressed) = event::read()?
            && pressed.kind == KeyEventKind::Press
            && let Some(key) = key(pressed.code, pressed.modifiers)
            && model.press(key) == Outcome::End
        {
            return Ok(());
        }
        while let Ok(seen) = news.try_recv() {
            match seen {
                Ok(status) => model.see(status, Instant::now()),
                Err(error) => model.lose(error),
            }
        }
        match model.opened() {
            None => shown = None,
            Some(id) => {
                if shown.as_ref().is_none_or(|(of, _)| of != id) {
                    shown = Some((id.clone(), Log::new(desired.user_dir(id).join("sq.log"))));
                }
                if let Some((id, log)) = &mut shown {
                    let lines = log.more().unwrap_or_else(|error| format!("sq.log: {error}\n"));
                    let events = Reader::open(&desired.state_dir).and_then(|reader| reader.events_of(Some(id), None, None, EVENTS));
                    model.tell(Told { lines: lines.lines().map(super::logs::clean).collect(), events: events.unwrap_or_default() });
                }
            }
        }
    }
}

fn key(code: KeyCode, modifiers: KeyModifiers) -> Option<Key> {
    Some(match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(letter) => Key::Letter(letter),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
