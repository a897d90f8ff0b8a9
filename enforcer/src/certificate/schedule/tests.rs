use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> ScheduleSettings {
    ScheduleSettings {
        interval: 600 * SECOND,
        retry: 5 * SECOND,
        uncertain: 15 * SECOND,
        concurrency: 2,
        per_group: 1,
        spacing: SECOND / 10,
    }
}

impl Key for &'static str {
    /// Their first letter.
    type Group = Option<char>;
    fn group(&self) -> Option<char> {
        self.chars().next()
    }
}

impl Key for i32 {
    type Group = i32;
    fn group(&self) -> i32 {
        *self
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_new_server_is_due_at_once_and_then_once_per_interval() {
    let mut schedule = Schedule::new(settings());
    assert_eq!(schedule.next(at(0)), Next::Idle);
    schedule.request("a", at(1));
    assert_eq!(schedule.next(at(1)), Next::Start("a"));
    assert_eq!(schedule.next(at(1)), Next::Idle, "a running check is not started twice");
    schedule.finished(&"a", at(2), Ending::Good, None, 0);
    assert_eq!(schedule.next(at(2)), Next::Wait(at(602)));
    assert_eq!(schedule.next(at(602)), Next::Start("a"));
}

#[test]
fn jitter_shortens_by_at_most_a_tenth() {
    for (chance, due) in [(0, 600.0), (500, 570.0), (999, 540.06), (5000, 540.06)] {
        let mut schedule = Schedule::new(settings());
        schedule.request("a", at(0));
        schedule.next(at(0));
        schedule.finished(&"a", at(0), Ending::Good, None, chance);
        assert_eq!(schedule.next(at(0)), Next::Wait(Duration::from_secs_f64(due)), "{chance}");
    }
}

#[test]
fn failures_are_repeated_soon_and_then_ever_later() {
    let mut schedule = Schedule::new(settings());
    schedule.request("a", at(0));
    let mut now = at(0);
    for pause in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
        assert_eq!(schedule.next(now), Next::Start("a"));
        schedule.finished(&"a", now, Ending::Bad, None, 0);
        now += at(pause);
        assert_eq!(schedule.next(now.saturating_sub(SECOND)), Next::Wait(now));
    }
    schedule.next(now);
    schedule.finished(&"a", now, Ending::Good, None, 0);
    schedule.next(now + at(600));
    schedule.finished(&"a", now + at(600), Ending::Bad, None, 0);
    assert_eq!(schedule.next(now + at(600)), Next::Wait(now + at(605)), "a good check forgets the failures");
}

#[test]
fn an_expiry_comes_before_the_interval_but_never_in_the_past() {
    for (change, due) in [(100, 100), (700, 600), (0, 600)] {
        let mut schedule = Schedule::new(settings());
        schedule.request("a", at(0));
        schedule.next(at(0));
        schedule.finished(&"a", at(0), Ending::Good, Some(at(change)), 0);
        assert_eq!(schedule.next(at(0)), Next::Wait(at(due)));
    }
}

#[test]
fn concurrency_and_rate_are_bounded() {
    let mut schedule = Schedule::new(settings());
    for key in 0..10 {
        schedule.request(key, at(0));
    }
    assert_eq!(schedule.next(at(0)), Next::Start(0));
    assert_eq!(schedule.next(at(0)), Next::Wait(SECOND / 10), "spaced");
    assert_eq!(schedule.next(at(1)), Next::Start(1));
    assert_eq!(schedule.next(at(2)), Next::Idle, "two are running");
    schedule.finished(&0, at(2), Ending::Good, None, 0);
    assert_eq!(schedule.next(at(2)), Next::Start(2));
}

#[test]
fn a_change_during_a_check_repeats_it() {
    let mut schedule = Schedule::new(settings());
    schedule.request("a", at(0));
    schedule.next(at(0));
    schedule.request_all(at(1));
    schedule.finished(&"a", at(2), Ending::Good, None, 0);
    assert_eq!(schedule.next(at(2)), Next::Start("a"));
    schedule.finished(&"a", at(3), Ending::Good, None, 0);
    assert_eq!(schedule.next(at(3)), Next::Wait(at(603)));
}

#[test]
fn a_removed_server_frees_its_place_when_its_check_ends() {
    let mut schedule = Schedule::new(ScheduleSettings { concurrency: 1, ..settings() });
    schedule.request("a", at(0));
    schedule.request("b", at(0));
    assert_eq!(schedule.next(at(0)), Next::Start("a"));
    schedule.remove(&"a");
    assert_eq!(schedule.next(at(1)), Next::Idle);
    schedule.finished(&"a", at(2), Ending::Good, None, 0);
    assert_eq!(schedule.next(at(2)), Next::Start("b"));
}

#[test]
fn what_found_out_nothing_is_repeated_soon() {
    let mut schedule = Schedule::new(settings());
    schedule.request("a", at(0));
    let mut now = at(0);
    for pause in [5, 10, 15, 15, 15] {
        assert_eq!(schedule.next(now), Next::Start("a"));
        schedule.finished(&"a", now, Ending::Uncertain, None, 0);
        now += at(pause);
        assert_eq!(schedule.next(now.saturating_sub(SECOND)), Next::Wait(now));
    }
}

#[test]
fn one_group_does_not_hold_up_the_others() {
    let mut schedule = Schedule::new(settings());
    for (key, due) in [("a1", 0), ("a2", 1), ("b1", 2)] {
        schedule.request(key, at(due));
    }
    assert_eq!(schedule.next(at(10)), Next::Start("a1"));
    assert_eq!(schedule.next(at(20)), Next::Start("b1"), "the other of its group waits");
    assert_eq!(schedule.overdue(at(20)), at(19));
    schedule.finished(&"a1", at(30), Ending::Good, None, 0);
    assert_eq!(schedule.next(at(30)), Next::Start("a2"));
    assert_eq!(schedule.overdue(at(30)), Duration::ZERO);
    // One that is removed while it runs leaves its place when it ends.
    schedule.remove(&"a2");
    schedule.finished(&"a2", at(31), Ending::Good, None, 0);
    schedule.request("a3", at(32));
    assert_eq!(schedule.next(at(32)), Next::Start("a3"));
}
