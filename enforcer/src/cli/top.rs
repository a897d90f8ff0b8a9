//! `enforcer top`: the workloads of this node and their connections, live. Reads the pinned maps, so it needs no agent.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::app::{Action, App};
use self::sample::Sample;
use super::node::NodeArgs;

mod app;
mod draw;
mod sample;

/// Show the workloads of this node live: rates of TLS, plaintext and refused connections, the latest refusals, and the clients
/// of each workload.
///
/// A row is a workload with all its pods of this node (x3: three of them). Keys: up and down (or k and j) select, Enter shows the
/// clients of the selected workload, Esc goes back, s changes the order (refusals first, traffic, name), p pauses, q ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_parser = interval, value_name = "SECONDS")]
    interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("give 0.1 to 60 seconds".to_owned()),
    }
}

/// Runs the subcommand until the user ends it.
///
/// # Errors
/// When no agent has run here, or there is no terminal.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        bail!("enforcer top needs a terminal: use enforcer status or enforcer endpoints in scripts");
    }
    let mut app = App::default();
    // An error that a person has to mend is told before the screen is taken.
    app.look(Ok(Sample::read(&args.node)?));
    let mut terminal = ratatui::try_init()?;
    let result = follow(&mut terminal, args, app);
    ratatui::restore();
    result.map(|()| ExitCode::SUCCESS)
}

fn follow(terminal: &mut DefaultTerminal, args: &Args, mut app: App) -> anyhow::Result<()> {
    let every = Duration::from_secs_f64(args.interval);
    let mut next = Instant::now() + every;
    loop {
        terminal.draw(|frame| draw::draw(frame, &app))?;
        if event::poll(next.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
            && let Some(action) = action(&key)
            && !app.act(action)
        {
            return Ok(());
        }
        if Instant::now() >= next {
            app.look(Sample::read(&args.node));
            next = Instant::now() + every;
        }
    }
}

fn action(key: &KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Quit,
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Up | KeyCode::Char('k') => Action::Up,
        KeyCode::Down | KeyCode::Char('j') => Action::Down,
        KeyCode::Enter | KeyCode::Right => Action::Open,
        KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => Action::Close,
        KeyCode::Char('s') => Action::Sort,
        KeyCode::Char('p' | ' ') => Action::Pause,
        _ => return None,
    })
}
