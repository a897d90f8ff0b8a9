use enforcer_common::{Reason, Verdict};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::app::Action;
use super::super::sample::{Sample, Workload};
use super::*;
use crate::telemetry::counts::Counts;

const SECOND: u64 = 1_000_000_000;

fn workload(mode: &'static str, tls: u64, plaintext: u64, refused: u64) -> Workload {
    Workload { mode, pods: 1, counts: Counts { tls, plaintext, refused, would_refuse: 0 } }
}

fn client(
    workload: &str,
    last: u8,
    class: &'static str,
    verdict: Verdict,
    reason: Reason,
    age: u64,
) -> Client {
    Client {
        workload: workload.into(),
        pod: format!("{workload}-6d4cf56db6-x7k2p"),
        port: 8080,
        address: [10, 244, 0, last].into(),
        name: (last == 20).then(|| "noistio/sleep".to_owned()),
        class,
        connections: 3,
        age,
        verdict,
        reason,
    }
}

fn sample(second: u64, frontend: Workload, adservice: Workload) -> Sample {
    Sample {
        time_ns: second * SECOND,
        agent: true,
        audit: false,
        workloads: [("shop/frontend".to_owned(), frontend), ("shop/adservice".to_owned(), adservice)].into(),
        clients: vec![
            client("shop/adservice", 20, "plaintext", Verdict::RESET, Reason::PLAINTEXT, 5),
            client("shop/frontend", 20, "plaintext", Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED, 7),
            client("shop/frontend", 12, "TLS", Verdict::ALLOW, Reason::TLS, 90),
        ],
    }
}

/// Two looks, two seconds apart.
fn app() -> App {
    let mut app = App::default();
    app.look(Ok(sample(10, workload("PERMISSIVE", 100, 50, 0), workload("STRICT", 5, 0, 7))));
    app.look(Ok(sample(12, workload("PERMISSIVE", 124, 60, 0), workload("STRICT", 5, 0, 8))));
    app
}

fn screen(app: &App, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, app)).expect("drawn");
    let buffer = terminal.backend().buffer().clone();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

#[test]
fn the_workloads_with_their_rates_fit_in_80_by_24() {
    let lines = screen(&app(), 80, 24);
    assert_eq!(lines[0], "enforcer top  agent running  mode enforce  2 workloads");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&lines[2]), ["WORKLOAD", "MODE", "TLS/s", "PLAIN", "RESET"]);
    // The one with refusals comes first.
    assert_eq!(words(&lines[3]), ["shop/adservice", "STRICT", "0", "0", "0.5", "█"]);
    assert_eq!(words(&lines[4]), ["shop/frontend", "PERMISSIVE", "12", "█", "5.0", "█", "0"]);
    let refused = lines.iter().position(|line| line.contains("LATEST REFUSED")).expect("its heading");
    // Of a name that is too long the end is shown: there names differ, and there is the port.
    let to = "…op/adservice-6d4cf56db6-x7k2p:8080";
    assert_eq!(words(&lines[refused + 1]), ["5s", "noistio/sleep", to, "PLAINTEXT"]);
    assert_eq!(lines[23], "up/down select  Enter clients  s sort (trouble)  p pause  q quit");
}

#[test]
fn a_workload_of_several_pods_says_how_many() {
    let mut app = app();
    let mut look = sample(14, workload("PERMISSIVE", 124, 60, 0), workload("STRICT", 5, 0, 8));
    if let Some(frontend) = look.workloads.get_mut("shop/frontend") {
        frontend.pods = 3;
    }
    app.look(Ok(look));
    let lines = screen(&app, 80, 24);
    assert!(lines.iter().any(|line| line.starts_with("shop/frontend x3 ")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("shop/adservice  ")), "{lines:#?}");
}

#[test]
fn a_workload_opens_into_its_clients() {
    let mut app = app();
    assert!(app.act(Action::Down) && app.act(Action::Open));
    let lines = screen(&app, 80, 24);
    assert_eq!(lines[2], "clients of shop/frontend");
    assert!(lines[3].starts_with("CLIENT"), "{lines:#?}");
    let text = lines.join("\n");
    assert!(text.contains("noistio/sleep") && text.contains("PLAINTEXT_PERMITTED"), "{text}");
    assert!(text.contains("10.244.0.12") && text.contains("TLS") && !text.contains("RESET"), "{text}");
    assert_eq!(lines[23], "up/down scroll  Esc back  p pause  q quit");
    assert!(app.act(Action::Down) && app.act(Action::Down));
    assert_eq!(app.scroll, 1, "the last client stays in sight");
    assert!(app.act(Action::Close));
    assert!(screen(&app, 80, 24)[2].starts_with("WORKLOAD"));
}

#[test]
fn keys_select_sort_pause_and_end() {
    let mut app = app();
    assert_eq!(app.selected.as_deref(), Some("shop/adservice"));
    app.act(Action::Up);
    assert_eq!(app.position(), 0);
    app.act(Action::Sort);
    assert_eq!(app.workloads, ["shop/frontend", "shop/adservice"]);
    assert_eq!(app.position(), 1, "the selection stays with its workload");
    app.act(Action::Sort);
    assert_eq!(app.workloads, ["shop/adservice", "shop/frontend"]);
    app.act(Action::Pause);
    let before = app.clone();
    app.look(Ok(Sample::default()));
    assert_eq!(app, before);
    assert!(screen(&app, 80, 24)[0].ends_with("PAUSED"));
    assert!(!app.act(Action::Quit));
}

#[test]
fn what_goes_away_is_not_shown_and_errors_are() {
    let mut app = app();
    app.act(Action::Open);
    let mut less = sample(14, workload("PERMISSIVE", 124, 60, 0), workload("STRICT", 5, 0, 8));
    less.workloads.remove("shop/adservice");
    less.agent = false;
    app.look(Ok(less));
    assert_eq!((app.selected.as_deref(), app.opened), (Some("shop/frontend"), false));
    assert!(!app.rates.contains_key("shop/adservice"));
    assert!(screen(&app, 80, 24)[0].contains("agent NOT RUNNING"));
    app.look(Err(anyhow::anyhow!("nothing is pinned")));
    assert_eq!(screen(&app, 80, 24)[0], "nothing is pinned");
    app.look(Ok(Sample::default()));
    assert_eq!((app.problem, app.selected), (None, None));
}

#[test]
fn a_counter_that_starts_anew_is_no_rate_and_memory_is_bounded() {
    let mut app = app();
    app.look(Ok(sample(13, workload("PERMISSIVE", 1, 0, 0), workload("STRICT", 5, 0, 8))));
    assert_eq!(app.rates["shop/frontend"].back().map(|rates| rates.tls), Some(0.0));
    for second in 14..200 {
        app.look(Ok(sample(second, workload("PERMISSIVE", second, 0, 0), workload("STRICT", 5, 0, 8))));
    }
    assert_eq!(app.rates["shop/frontend"].len(), super::super::app::HISTORY);
}

#[test]
fn any_size_of_terminal_is_survived() {
    for (width, height) in [(1, 1), (10, 3), (40, 8), (80, 24), (200, 60)] {
        let mut app = app();
        screen(&app, width, height);
        app.act(Action::Open);
        screen(&app, width, height);
        screen(&App::default(), width, height);
    }
}

#[test]
fn the_selected_workload_stays_in_sight() {
    let mut app = App::default();
    let workloads = (0..100).map(|n| (format!("shop/p{n:03}"), workload("STRICT", 0, 0, 0))).collect();
    app.look(Ok(Sample { time_ns: 1, workloads, ..Sample::default() }));
    for _ in 0..60 {
        app.act(Action::Down);
    }
    assert!(screen(&app, 80, 24).iter().any(|line| line.starts_with("shop/p060")));
}

#[test]
fn bars_and_rates_are_short() {
    assert_eq!(spark([].into_iter()), "      ");
    assert_eq!(spark([1.0, 2.0].into_iter()), "    ▅█");
    assert_eq!(spark([0.0, 100.0, 0.1].into_iter()), "    █▁");
    assert_eq!(spark((0..20).map(f64::from)).chars().count(), SPARK);
    assert_eq!((fit("shop/cart", 9), fit("shop/cart", 6)), ("shop/cart".to_owned(), "…/cart".to_owned()));
    for (value, text) in [(0.0, "0"), (0.51, "0.5"), (12.4, "12"), (99_999.0, "99999"), (123_456.0, "123k")] {
        assert_eq!(rate(value), text);
    }
    assert_eq!([age(59), age(60), age(3600), age(90_000)], ["59s", "1m", "1h", "1d"]);
}
