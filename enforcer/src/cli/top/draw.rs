//! The screen: made for 80x24, uses what there is. Pure.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use super::app::{App, Rates};
use super::sample::Client;

/// Width of a sparkline.
const SPARK: usize = 6;
/// Width of everything but the workloads' names, blanks between included.
const COLUMNS: u16 = 10 + 3 * (5 + 6) + 7;
/// The same of the clients.
const CLIENT_COLUMNS: u16 = 5 + 9 + 7 + 11 + 19 + 4 + 6;
/// Lines of latest refusals.
const REFUSALS: u16 = 6;
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);
const BAD: Style = Style::new().fg(Color::Red);
const QUIET: Style = Style::new().add_modifier(Modifier::DIM);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let [top, body, keys] =
        Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(header(app)), top);
    if app.opened {
        clients(frame, app, body);
    } else {
        let [workloads_area, refused_area] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(REFUSALS + 2)]).areas(body);
        workloads(frame, app, workloads_area);
        refusals(frame, app, refused_area);
    }
    let text = if app.opened {
        "up/down scroll  Esc back  p pause  q quit".to_owned()
    } else {
        format!("up/down select  Enter clients  s sort ({})  p pause  q quit", app.order.word())
    };
    frame.render_widget(Paragraph::new(Line::styled(text, QUIET)), keys);
}

fn header(app: &App) -> Line<'_> {
    if let Some(problem) = &app.problem {
        return Line::styled(problem.as_str(), BAD);
    }
    let agent =
        if app.sample.agent { Span::raw("agent running") } else { Span::styled("agent NOT RUNNING", BAD) };
    let mode = if app.sample.audit { "audit" } else { "enforce" };
    let paused = if app.paused { "  PAUSED" } else { "" };
    let workloads = app.workloads.len();
    Line::from(vec![
        Span::styled("enforcer top", HEAD),
        Span::raw("  "),
        agent,
        Span::raw(format!("  mode {mode}  {workloads} workloads")),
        Span::styled(paused, BAD),
    ])
}

/// Bars of the latest values, scaled to their largest; nothing is blank, a little shows.
fn spark(values: impl DoubleEndedIterator<Item = f64> + ExactSizeIterator) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let latest: Vec<f64> = values.rev().take(SPARK).collect();
    let largest = latest.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| {
        if *value <= 0.0 {
            return ' ';
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let level = (value / largest * 7.0).round() as usize;
        BARS.get(level).copied().unwrap_or('█')
    };
    let bars: String = latest.iter().rev().map(bar).collect();
    format!("{bars:>SPARK$}")
}

/// A rate in at most five characters.
fn rate(value: f64) -> String {
    match value {
        v if v <= 0.0 => "0".to_owned(),
        v if v < 9.95 => format!("{v:.1}"),
        v if v < 99_999.5 => format!("{v:.0}"),
        v => format!("{:.0}k", v / 1000.0),
    }
}

/// The end of a name that is too long: there names differ.
fn fit(name: &str, width: usize) -> String {
    let surplus = name.chars().count().saturating_sub(width);
    if surplus == 0 {
        return name.to_owned();
    }
    let end: String = name.chars().skip(surplus + 1).collect();
    format!("…{end}")
}

fn workloads(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let height = usize::from(area.height.saturating_sub(1)).max(1);
    // The selected workload stays in sight.
    let first = app.position().saturating_sub(height - 1);
    let none = VecDeque::new();
    let rows = app.workloads.iter().skip(first).take(height).map(|name| {
        let rates = app.rates.get(name).unwrap_or(&none);
        let now = rates.back().copied().unwrap_or_default();
        let workload = app.sample.workloads.get(name);
        let mode = workload.map_or("", |workload| workload.mode);
        let pods = workload.map(|workload| workload.pods).filter(|pods| *pods > 1);
        let pods = pods.map(|pods| format!(" x{pods}")).unwrap_or_default();
        let width = usize::from(area.width.saturating_sub(COLUMNS)).saturating_sub(pods.len());
        let column = |of: fn(&Rates) -> f64| spark(rates.iter().map(of));
        let row = Row::new([
            fit(name, width) + &pods,
            mode.to_owned(),
            rate(now.tls),
            column(|rates| rates.tls),
            rate(now.plaintext),
            column(|rates| rates.plaintext),
            rate(now.refused),
            column(|rates| rates.refused),
        ]);
        let bad = if now.refused > 0.0 { BAD } else { Style::new() };
        row.style(if Some(name) == app.selected.as_ref() { bad.patch(CHOSEN) } else { bad })
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(6),
    ];
    let head = Row::new(["WORKLOAD", "MODE", "TLS/s", "", "PLAIN", "", "RESET", ""]).style(HEAD);
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

/// Length of time in one unit.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn who(client: &Client) -> String {
    client.name.clone().unwrap_or_else(|| client.address.to_string())
}

fn refusals(frame: &mut Frame<'_>, app: &App, area: Rect) {
    // Age, reason and the blanks between; the names share the rest.
    let names = area.width.saturating_sub(4 + 15 + 3);
    let from = names * 2 / 5;
    let to = names - from;
    let rows = app.refused().take(usize::from(REFUSALS)).map(|client| {
        Row::new([
            age(client.age),
            fit(&who(client), usize::from(from)),
            fit(&format!("{}:{}", client.pod, client.port), usize::from(to)),
            client.reason.name().to_owned(),
        ])
    });
    let widths =
        [Constraint::Length(4), Constraint::Length(from), Constraint::Length(to), Constraint::Length(15)];
    let head = Row::new(["AGO", "LATEST REFUSED", "TO", "REASON"]).style(HEAD).top_margin(1);
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn clients(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let [title, list] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let workload = app.selected.as_deref().unwrap_or("");
    frame.render_widget(Paragraph::new(Line::styled(format!("clients of {workload}"), HEAD)), title);
    let width = usize::from(area.width.saturating_sub(CLIENT_COLUMNS));
    let rows = app.clients().skip(app.scroll).map(|client| {
        let row = Row::new([
            fit(&who(client), width),
            client.port.to_string(),
            client.class.to_owned(),
            client.connections.to_string(),
            client.verdict.name().to_owned(),
            client.reason.name().to_owned(),
            age(client.age),
        ]);
        row.style(if client.is_refused() { BAD } else { Style::new() })
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(5),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(11),
        Constraint::Length(19),
        Constraint::Length(4),
    ];
    let head = Row::new(["CLIENT", "PORT", "SPEAKS", "CONNS", "VERDICT", "REASON", "AGO"]).style(HEAD);
    frame.render_widget(Table::new(rows, widths).header(head), list);
}

#[cfg(test)]
mod tests;
