use super::super::{Mode, Posture};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn pod(hooked: bool, created: Option<i64>) -> ObservedPod {
    ObservedPod {
        namespace: "shop".into(),
        pod: "cart-0".into(),
        workload: "cart".into(),
        labels: Labels::new(),
        posture: Posture {
            mode: Mode::Permissive,
            ports: BTreeMap::new(),
            exempt: BTreeSet::new(),
            declared: BTreeSet::new(),
            governed_by: None,
        },
        unwatched: (!hooked).then(|| "its interface 3 is not hooked".to_owned()),
        data_plane: true,
        created: created.map(|second| Timestamp::from_second(second).expect("in range")),
    }
}

fn observed(pods: &[(u32, ObservedPod)]) -> Observed {
    Observed { pods: pods.iter().cloned().collect(), ..Observed::default() }
}

/// The boot was at second 1000 of the wall clock.
fn look(now: u64, first: bool) -> Look<'static> {
    Look {
        boot: "b1",
        now_ns: now * SECOND,
        wall: Timestamp::from_second(1000 + now.cast_signed()).expect("in range"),
        first,
        crowded: false,
    }
}

fn data(history: &History, now: u64, clients: &[Seen]) -> NodeData {
    let reading = Reading {
        wall: look(now, false).wall,
        now_ns: now * SECOND,
        enforcing: true,
        alive: false,
        notes: Vec::new(),
    };
    history.data("n1", &reading, clients)
}

/// Seconds since the boot that count as watched.
fn watched(history: &History, now: u64) -> Vec<(i64, i64)> {
    let data = data(history, now, &[]);
    let spans = data.pods[0].watched.minus(&data.pods[0].blind);
    spans.as_slice().iter().map(|s| (s.from.as_second() - 1000, s.to.as_second() - 1000)).collect()
}

#[test]
fn the_watch_begins_with_the_agent_and_stops_with_it() {
    let mut history = History::default();
    let pods = observed(&[(1, pod(true, None))]);
    history.look(&look(100, true), &pods, &[], &Hellos::default());
    assert_eq!(watched(&history, 100), []);
    history.look(&look(110, false), &pods, &[], &Hellos::default());
    history.look(&look(120, false), &pods, &[], &Hellos::default());
    assert_eq!(watched(&history, 500), [(100, 120)], "what comes after the last look is not known");
    let alive = Reading {
        wall: look(125, false).wall,
        now_ns: 125 * SECOND,
        enforcing: true,
        alive: true,
        notes: Vec::new(),
    };
    assert_eq!(history.data("n1", &alive, &[]).pods[0].watched.seconds(), 25, "the agent lives: until now");
    // A new agent: the time between was not watched.
    history.look(&look(200, true), &pods, &[], &Hellos::default());
    history.look(&look(230, false), &pods, &[], &Hellos::default());
    assert_eq!(watched(&history, 230), [(100, 120), (200, 230)]);
}

#[test]
fn a_pod_that_was_there_before_was_not_seen_since_it_was_made() {
    let mut history = History::default();
    history.look(&look(100, true), &observed(&[(1, pod(true, Some(1040)))]), &[], &Hellos::default());
    let blind = |history: &History| {
        data(history, 100, &[]).pods[0]
            .blind
            .as_slice()
            .iter()
            .map(|s| (s.from.as_second(), s.to.as_second()))
            .collect::<Vec<_>>()
    };
    assert_eq!(blind(&history), [(1040, 1100)]);
    let mut history = History::default();
    history.look(&look(100, true), &observed(&[(1, pod(true, None))]), &[], &Hellos::default());
    assert_eq!(blind(&history), [(0, 1100)], "it may have been there for ever");
    let mut history = History::default();
    history.look(&look(100, true), &observed(&[(1, pod(true, Some(400)))]), &[], &Hellos::default());
    assert_eq!(blind(&history), [(0, 1100)], "before this boot nothing was seen");
}

#[test]
fn a_pod_that_comes_under_the_agents_eyes_misses_nothing() {
    let mut history = History::default();
    history.look(&look(100, true), &Observed::default(), &[], &Hellos::default());
    history.look(&look(110, false), &observed(&[(1, pod(true, Some(1105)))]), &[], &Hellos::default());
    history.look(&look(120, false), &observed(&[(1, pod(true, Some(1105)))]), &[], &Hellos::default());
    assert_eq!(data(&history, 120, &[]).pods[0].blind, Spans::default());
    assert_eq!(watched(&history, 120), [(110, 120)]);
    // One that was made long before it was behind a hook.
    let late = ObservedPod { pod: "late-0".into(), ..pod(true, Some(1050)) };
    history.look(&look(130, false), &observed(&[(2, late)]), &[], &Hellos::default());
    let spans = &data(&history, 130, &[]).pods[1].blind;
    assert_eq!(spans.as_slice().len(), 1);
    assert_eq!(spans.start().map(Timestamp::as_second), Some(1050));
}

#[test]
fn a_pod_that_is_not_hooked_is_not_watched() {
    let mut history = History::default();
    history.look(&look(100, true), &Observed::default(), &[], &Hellos::default());
    for (now, hooked) in [(110, true), (120, true), (130, false), (140, true), (150, true)] {
        history.look(&look(now, false), &observed(&[(1, pod(hooked, None))]), &[], &Hellos::default());
    }
    assert_eq!(watched(&history, 150), [(110, 120), (130, 150)]);
}

#[test]
fn a_crowded_map_makes_everything_before_unwatched() {
    let mut history = History::default();
    let pods = observed(&[(1, pod(true, None))]);
    history.look(&look(100, true), &pods, &[], &Hellos::default());
    history.look(&look(110, false), &pods, &[], &Hellos::default());
    history.look(&Look { crowded: true, ..look(120, false) }, &pods, &[], &Hellos::default());
    history.look(&look(150, false), &pods, &[], &Hellos::default());
    assert_eq!(watched(&history, 150), [(120, 150)]);
    assert!(data(&history, 150, &[]).notes[0].contains("--map-size CLIENTS"));
}

#[test]
fn another_boot_starts_anew() {
    let mut history = History::default();
    let pods = observed(&[(1, pod(true, None))]);
    history.look(&look(100, true), &pods, &[], &Hellos::default());
    history.look(&look(900, false), &pods, &[], &Hellos::default());
    let mut other = history.clone();
    other.look(&Look { boot: "b2", ..look(50, true) }, &pods, &[], &Hellos::default());
    assert!(other.is_of("b2") && !other.is_of("b1"));
    assert_eq!(watched(&other, 50), []);
    // The clock of the same boot cannot go back; if it does, the file is not what it seems.
    history.look(&look(10, true), &pods, &[], &Hellos::default());
    assert_eq!(watched(&history, 10), []);
}

#[test]
fn a_pod_that_is_gone_keeps_its_clients_and_its_name_goes_with_its_id() {
    let mut history = History::default();
    let pods = observed(&[(1, pod(true, None))]);
    history.look(&look(100, true), &pods, &[], &Hellos::default());
    history.look(&look(110, false), &pods, &[], &Hellos::default());
    history.look(&look(120, false), &Observed::default(), &[], &Hellos::default());
    let seen = Seen {
        workload: 1,
        port: 80,
        class: Class::Plaintext,
        client: [10, 0, 0, 9].into(),
        connections: 2,
        first_ns: 105 * SECOND,
        last_ns: 108 * SECOND,
        verdict: Verdict::ALLOW,
        reason: Reason::TLS,
    };
    let told = data(&history, 120, &[seen]);
    assert!(!told.pods[0].present);
    assert_eq!(told.pods[0].clients[0].first.as_second(), 1105);
    assert_eq!(told.pods[0].clients[0].last.as_second(), 1108);
    // It comes back after a time in which nobody can say what was.
    history.look(&look(130, false), &pods, &[], &Hellos::default());
    history.look(&look(140, false), &pods, &[], &Hellos::default());
    assert_eq!(watched(&history, 140), [(100, 110), (130, 140)]);
    // Another pod under the same id has nothing of the first one's.
    let other = ObservedPod { pod: "other-0".into(), ..pod(true, None) };
    history.look(&look(150, false), &observed(&[(1, other)]), &[], &Hellos::default());
    assert_eq!(watched(&history, 150), []);
}

#[test]
fn who_is_not_watched_now_is_blind_since_the_last_look() {
    let mut history = History::default();
    let pods = observed(&[(1, pod(true, Some(1100)))]);
    history.look(&look(100, false), &pods, &[], &Hellos::default());
    history.look(&look(110, false), &pods, &[], &Hellos::default());
    let reading = |now: u64, alive| Reading {
        wall: look(now, false).wall,
        now_ns: now * SECOND,
        enforcing: true,
        alive,
        notes: Vec::new(),
    };
    let told = history.data("n1", &reading(120, true), &[]);
    assert_eq!((told.looked, told.watching), (Some(look(120, false).wall), true));
    assert_eq!(told.pods[0].blind, Spans::default());
    // The agent is dead; or it lives, and its watch has stopped.
    for (now, alive) in [(120, false), (200, true)] {
        let told = history.data("n1", &reading(now, alive), &[]);
        assert_eq!((told.looked, told.watching), (Some(look(110, false).wall), false));
        assert_eq!(told.pods[0].blind, Spans::one(look(110, false).wall, look(now, false).wall));
    }
    let never = History::default().data("n1", &reading(120, true), &[]);
    assert_eq!((never.looked, never.watching), (None, false));
}

#[test]
fn a_pod_that_is_not_hooked_says_why() {
    let mut history = History::default();
    history.look(&look(100, false), &observed(&[(1, pod(false, None))]), &[], &Hellos::default());
    let told = data(&history, 100, &[]);
    assert_eq!(told.pods[0].unwatched.as_deref(), Some("its interface 3 is not hooked"));
    assert!(told.pods[0].present);
}

#[test]
fn memory_is_bounded() {
    let mut history = History::default();
    let pods = observed(&[(1, pod(true, None))]);
    for start in 0..1000 {
        history.look(&look(start * 10 + 1, true), &pods, &[], &Hellos::default());
        history.look(&look(start * 10 + 5, false), &pods, &[], &Hellos::default());
    }
    assert!(history.pods[&1].watched.len() <= MOST_STRETCHES);
    let many: Vec<_> =
        (0..9000_u32).map(|id| (id, ObservedPod { pod: format!("p{id}"), ..pod(true, None) })).collect();
    history.look(&look(20_000, false), &observed(&many), &[], &Hellos::default());
    history.look(&look(20_010, false), &pods, &[], &Hellos::default());
    assert!(history.pods.len() <= MOST_PODS);
    assert!(history.pods.contains_key(&1));
}
