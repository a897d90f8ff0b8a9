use std::time::{Duration, Instant};

use super::{AGAIN, Budget, PER_MINUTE, PER_POD, REMEMBERED, event, key};
use crate::telemetry::record::Flow;

fn flow(verdict: &str, client_port: u16) -> Flow {
    serde_json::from_value(serde_json::json!({
        "time": "2024-01-01T00:00:00Z", "direction": "to_pod", "class": "plaintext",
        "client": {"address": "10.0.0.9", "port": client_port, "namespace": "noistio", "pod": "sleep"},
        "pod": {"address": "10.0.0.1", "port": 8080, "namespace": "shop", "pod": "frontend"},
        "verdict": verdict, "reason": "PLAINTEXT", "remedy": "Give the client a mesh certificate.",
        "policy": "istio-system/default", "level": "mesh",
        "generation": 1, "bytes_to_pod": 0, "bytes_from_pod": 0,
    }))
    .expect("a flow")
}

#[test]
fn an_event_says_who_what_why_and_what_to_do() {
    let (told, pod) = event(&flow("reset", 1)).expect("it was refused");
    assert_eq!((pod.to_string().as_str(), told.reason.as_str()), ("shop/frontend", "ConnectionReset"));
    assert_eq!(
        told.note.as_deref(),
        Some(
            "A connection from noistio/sleep to port 8080 was reset by istio-system/default (mesh): PLAINTEXT. \
             Give the client a mesh certificate."
        )
    );
    assert!(event(&flow("allow", 1)).is_none());
    let (told, _) = event(&flow("would_reset", 1)).expect("it would be");
    assert_eq!(told.reason, "ConnectionWouldBeReset");
}

#[test]
fn a_refusal_is_told_once_an_hour_whatever_port_or_name_the_client_has() {
    let mut budget = Budget::default();
    let start = Instant::now();
    let one = key(&flow("reset", 1));
    assert_eq!(one, key(&flow("reset", 2)));
    let mut unnamed = flow("reset", 1);
    (unnamed.client.pod, unnamed.client.namespace) = (None, None);
    assert_eq!(one, key(&unnamed), "its name comes later");
    assert!(budget.may_tell("uid", &one, start));
    assert!(!budget.may_tell("uid", &one, start + AGAIN / 2));
    assert!(budget.may_tell("another pod of the same name", &one, start + AGAIN / 2));
    assert!(budget.may_tell("uid", &one, start + AGAIN));
}

#[test]
fn a_pod_that_is_stormed_leaves_the_others_theirs() {
    let mut budget = Budget::default();
    let start = Instant::now();
    let told = |budget: &mut Budget, uid: &str, now: Instant| {
        (0..100).filter(|number| budget.may_tell(uid, &format!("{number}"), now)).count()
    };
    assert_eq!(told(&mut budget, "stormed", start), PER_POD as usize);
    assert_eq!(told(&mut budget, "quiet", start), PER_POD as usize);
    assert_eq!(told(&mut budget, "third", start), PER_POD as usize);
    assert_eq!(told(&mut budget, "fourth", start), PER_MINUTE as usize - 3 * PER_POD as usize);
    let later = start + Duration::from_mins(1);
    assert_eq!(told(&mut budget, "stormed", later), PER_POD as usize);
}

#[test]
fn a_storm_of_different_refusals_is_bounded() {
    let mut budget = Budget::default();
    let start = Instant::now();
    let told = |budget: &mut Budget, minute: u32| {
        let now = start + Duration::from_mins(1) * minute;
        let all = (0..100).filter(|number| {
            budget.may_tell(&format!("{}", number % 10), &format!("{minute}-{number}"), now)
        });
        all.count()
    };
    let per_minute = PER_MINUTE as usize;
    for minute in 0..59 {
        assert_eq!(told(&mut budget, minute), per_minute);
    }
    assert!(budget.told.len() <= REMEMBERED);
    // Many hours without the minute's limit in the way: what is remembered stays bounded.
    for minute in 59..1000 {
        told(&mut budget, minute);
        assert!(budget.told.len() <= REMEMBERED);
    }
}
