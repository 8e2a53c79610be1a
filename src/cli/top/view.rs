//! Draws what the model has: a head of a few lines, the table or one tenant, and the keys.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap},
};

use super::{
    super::table::bytes,
    model::{Model, Opened, Sort},
};
use crate::{admin::status::TenantStatus, store::rfc3339};

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame, model: &Model) {
    let head = head(model);
    let height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(height), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);
    match &model.opened {
        Some(opened) => tenant(frame, middle, model, opened),
        None => table(frame, middle, model),
    }
    frame.render_widget(Paragraph::new(keys(model)).style(Style::new().add_modifier(Modifier::REVERSED)), bottom);
}

/// The host in a few lines.
fn head(model: &Model) -> Vec<Line<'static>> {
    let status = &model.status;
    let settled = status.tenants.iter().filter(|tenant| matches!(tenant.state.as_str(), "ready" | "suspended")).count();
    let proxy = match (status.proxy.pid, &status.proxy.detail) {
        (Some(_), None) => "proxy serves".to_owned(),
        (_, detail) => format!("proxy: {}", detail.as_deref().unwrap_or("down")),
    };
    let mut lines =
        vec![Line::from(format!("sq-agent {}   {settled} of {} as desired   {proxy}", status.agent.version, status.tenants.len()))];
    if let Some(forecast) = &status.forecast {
        lines.extend([&forecast.memory.detail, &forecast.disk.detail].map(|text| Line::from(text.clone())));
        lines.push(Line::from(forecast.fit_text()));
    }
    if let Some(error) = &status.agent.config_error {
        let first = error.lines().next().unwrap_or_default();
        lines.push(Line::styled(format!("tenants.toml is refused: {first}"), Color::Red));
    }
    if let Some(lost) = &model.lost {
        lines.push(Line::styled(format!("what is shown is old: {lost}"), Color::Red));
    }
    lines
}

fn table(frame: &mut Frame, area: Rect, model: &Model) {
    let columns = [Sort::Id, Sort::State, Sort::Rate, Sort::Requests, Sort::Memory, Sort::Storage, Sort::Restarts];
    let heading = columns.iter().map(|column| {
        let mark = if *column == model.sort { if model.turned { " ^" } else { " v" } } else { "" };
        Cell::from(format!("{}{mark}", column.heading()))
    });
    let heading = Row::new(heading.chain([Cell::from("WHY")])).style(Style::new().add_modifier(Modifier::BOLD));
    let rows = model.rows().into_iter().map(|tenant| row(model, tenant));
    let widths = [
        Constraint::Min(12),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Fill(2),
    ];
    let shown = Table::new(rows, widths).header(heading).row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(model.mark());
    frame.render_stateful_widget(shown, area, &mut state);
}

fn row(model: &Model, tenant: &TenantStatus) -> Row<'static> {
    let or_dash = |bytes_of: Option<u64>| bytes_of.map_or_else(|| "-".to_owned(), bytes);
    let cells = [
        tenant.id.clone(),
        tenant.state.clone(),
        model.rate(tenant).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
        tenant.requests.to_string(),
        or_dash(tenant.memory_bytes),
        or_dash(tenant.storage_bytes),
        tenant.restarts.to_string(),
        tenant.detail.clone(),
    ];
    Row::new(cells.map(Cell::from)).style(colour(&tenant.state))
}

fn colour(state: &str) -> Style {
    match state {
        "ready" => Style::new(),
        "crashed" => Style::new().fg(Color::Red),
        "suspended" | "stopped" => Style::new().fg(Color::DarkGray),
        _ => Style::new().fg(Color::Yellow),
    }
}

/// One tenant: why it is as it is, its events, its log.
fn tenant(frame: &mut Frame, area: Rect, model: &Model, opened: &Opened) {
    let seen = model.status.tenants.iter().find(|tenant| tenant.id == opened.id.as_str());
    let state = seen.map_or("gone".to_owned(), |tenant| format!("{}: {}", tenant.state, tenant.detail));
    let [about, events, log] = Layout::vertical([Constraint::Length(2), Constraint::Percentage(40), Constraint::Min(3)]).areas(area);
    frame.render_widget(Paragraph::new(format!("{} is {state}", opened.id)).wrap(Wrap { trim: true }), about);
    let event = |event: &crate::store::Event| {
        let detail: String = event.detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Line::from(format!("{}  {:<16} {detail}", rfc3339(event.at), event.kind))
    };
    let block = |title: &'static str| Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(
        Paragraph::new(opened.events.iter().map(event).collect::<Vec<_>>()).block(block(" events, the newest first ")),
        events,
    );
    // The last lines that there is room for.
    let room = usize::from(log.height.saturating_sub(1));
    let from = opened.lines.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = opened.lines.iter().skip(from).map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(block(" sq.log ")), log);
}

fn keys(model: &Model) -> String {
    match () {
        () if model.typing => format!("filter: {}_   Enter keeps it, Esc ends it", model.filter),
        () if model.opened.is_some() => "q or Esc: back   up/down: the next tenant".to_owned(),
        () => {
            let filter = if model.filter.is_empty() { String::new() } else { format!("   [only {}; Esc: all]", model.filter) };
            format!("q: end   s: sort   r: turn   /: filter   Enter: log and events   up/down, PgUp/PgDn{filter}")
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::model::{Key, Told, tests::model},
        *,
    };
    use crate::store::Event;

    fn screen(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everybody_is_on_the_screen_and_so_are_the_keys() {
        let mut model = model();
        model.press(Key::Letter('s'));
        let text = screen(&model, 120, 12);
        for part in ["2 of 3 as desired", "ada", "crashed", "STATE v", "3.0M", "q: end", "/: filter", "Enter: log and events"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        model.lose("no agent runs on /x".into());
        assert!(screen(&model, 120, 12).contains("what is shown is old: no agent runs on /x"));
    }

    #[test]
    fn a_tenants_events_and_the_end_of_its_log_are_on_a_screen_of_their_own() {
        let mut model = model();
        model.press(Key::Enter);
        let event = Event { number: 1, at: 0, id: Some("ada".into()), kind: "crashed".into(), detail: "exit\x1b[2J 101".into() };
        model.tell(Told { lines: (0..90).map(|n| format!("line {n}")).collect(), events: vec![event] });
        let text = screen(&model, 100, 20);
        for part in ["ada is ready: answers", "1970-01-01T00:00:00Z  crashed", "line 89", "back"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("line 0\n") && !text.contains('\x1b'));
    }

    #[test]
    fn a_terminal_that_is_far_too_small_does_no_harm() {
        for (width, height) in [(1, 1), (5, 2), (20, 3)] {
            let mut model = model();
            screen(&model, width, height);
            model.press(Key::Enter);
            screen(&model, width, height);
        }
    }
}
