use super::*;
use crate::certificate::finding::{Accepted, Refused};

fn accepted(client: Client) -> Finding {
    Finding::ForbiddenAccepted { client, server_name: None, why: Accepted::NotAsked }
}

/// One finding for every state but `verified`.
fn finding_for(state: State) -> Option<Finding> {
    let text = String::new;
    let at = Timestamp::UNIX_EPOCH;
    Some(match state {
        State::Verified => return None,
        State::Expiring => Finding::Expiring { certificate: text(), not_after: at },
        State::Expired => Finding::Expired { certificate: text(), not_after: at },
        State::Untrusted => Finding::Untrusted { detail: text() },
        State::WrongIdentity => Finding::WrongIdentity { expected: text(), presented: Vec::new() },
        State::NoClientAuth => accepted(Client::NoCertificate),
        State::AcceptsForeign => accepted(Client::ForeignCa),
        State::NotTls => Finding::NotTls { detail: text() },
        State::Unreachable => Finding::Unreachable { detail: text() },
        State::Unchecked => Finding::NoTrustBundle,
    })
}

#[test]
fn every_set_of_findings_has_the_weightiest_state() {
    for set in 0_u32..1 << PRECEDENCE.len() {
        let chosen = (0..PRECEDENCE.len()).filter(|bit| set & (1 << bit) != 0).map(|bit| PRECEDENCE[bit]);
        let chosen: Vec<State> = chosen.collect();
        // The order of the findings must not matter.
        let findings: Vec<Finding> = chosen.iter().rev().filter_map(|state| finding_for(*state)).collect();
        let weightiest = chosen.first().copied().unwrap_or(State::Verified);
        assert_eq!(judge(&findings), weightiest, "{chosen:?}");
    }
}

#[test]
fn every_state_has_its_place_and_its_word() {
    for state in State::ALL {
        assert_eq!(PRECEDENCE.iter().filter(|other| **other == state).count(), 1);
        assert_eq!(serde_json::to_value(state).expect("a word"), state.as_str());
    }
}

#[test]
fn every_forbidden_client_counts() {
    for client in Client::FORBIDDEN.into_iter().chain([Client::Named]) {
        let state = if client.is_anonymous() { State::NoClientAuth } else { State::AcceptsForeign };
        assert_eq!(judge(&[accepted(client)]), state);
    }
    assert_eq!(judge(&[Finding::MeshClientRefused { how: Refused::Closed }]), State::Untrusted);
    assert_eq!(judge(&[Finding::Revoked]), State::Untrusted);
}

const BLOCK: Consequences =
    Consequences { on_failure: OnFailure::Block, unchecked: UncheckedPorts::Allow, failures_to_block: 2 };

fn after(consequences: Consequences, states: &[State]) -> History {
    let mut history = History::new(consequences);
    for state in states {
        history.record(*state, *state, Timestamp::UNIX_EPOCH, consequences);
    }
    history
}

#[test]
fn report_never_blocks() {
    for state in State::ALL {
        assert!(!after(Consequences::default(), &[state; 5]).blocked, "{state}");
    }
}

#[test]
fn only_proven_failures_block_and_only_when_they_come_again() {
    for state in State::ALL {
        assert!(!after(BLOCK, &[state]).blocked, "{state} once");
        assert_eq!(after(BLOCK, &[state, state]).blocked, state.is_bad(), "{state} twice");
    }
    let kinds = [State::NoClientAuth, State::Untrusted];
    assert!(after(BLOCK, &kinds).blocked, "two kinds are two failures");
    let between = [State::NoClientAuth, State::Verified, State::NoClientAuth];
    assert!(!after(BLOCK, &between).blocked, "a good check forgets a bad one");
    let lost = [State::NoClientAuth, State::Unreachable, State::NoClientAuth];
    assert!(after(BLOCK, &lost).blocked, "a lost check forgets nothing");
}

#[test]
fn one_good_check_opens_and_an_uncertain_one_does_not() {
    let closed = [State::NotTls, State::NotTls];
    for uncertain in [State::Unreachable, State::Unchecked] {
        let states = [closed[0], closed[1], uncertain, uncertain, uncertain];
        assert!(after(BLOCK, &states).blocked);
    }
    for good in [State::Verified, State::Expiring] {
        assert!(!after(BLOCK, &[closed[0], closed[1], good]).blocked);
    }
}

#[test]
fn one_lost_packet_changes_nothing() {
    let history = after(BLOCK, &[State::Verified, State::Unreachable]);
    assert_eq!((history.state, history.blocked), (State::Verified, false));
    let history = after(BLOCK, &[State::Verified, State::Unreachable, State::Unreachable]);
    assert_eq!((history.state, history.blocked), (State::Unreachable, false));
    assert_eq!(after(BLOCK, &[State::Unreachable]).state, State::Unreachable, "nothing better is known");
}

#[test]
fn unchecked_ports_open_with_their_first_good_check() {
    let closed = Consequences { unchecked: UncheckedPorts::Block, ..BLOCK };
    assert!(after(closed, &[]).blocked);
    assert!(after(closed, &[State::Unreachable]).blocked);
    assert!(!after(closed, &[State::Verified]).blocked);
    assert!(!after(closed, &[State::Verified, State::Unreachable]).blocked);
    assert!(after(closed, &[State::NoClientAuth]).blocked, "a bad first check opens nothing");
    let report = Consequences { on_failure: OnFailure::Report, ..closed };
    assert!(!after(report, &[]).blocked, "reporting closes nothing");
}

#[test]
fn a_refused_mesh_client_is_told_and_closes_nothing() {
    let refused = Finding::MeshClientRefused { how: Refused::Alert { alert: "unknown_ca".to_owned() } };
    let (state, effect_of) = (judge(std::slice::from_ref(&refused)), effect(std::slice::from_ref(&refused)));
    assert_eq!((state, effect_of), (State::Untrusted, State::Verified));
    let mut history = History::new(BLOCK);
    for _ in 0..3 {
        history.record(state, effect_of, Timestamp::UNIX_EPOCH, BLOCK);
    }
    assert_eq!((history.state, history.blocked), (State::Untrusted, false));
    // What is wrong beside it counts as ever.
    let both = [refused, accepted(Client::NoCertificate)];
    assert_eq!((judge(&both), effect(&both)), (State::NoClientAuth, State::NoClientAuth));
    // A mesh client of which nothing can be said takes nothing from the proof.
    let unsaid = Finding::Inconclusive { client: Client::Mesh, server_name: None, detail: String::new() };
    assert_eq!(judge(&[unsaid]), State::Verified);
}
