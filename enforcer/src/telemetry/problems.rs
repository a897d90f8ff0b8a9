//! What needs a person on this node: one sentence each, with what to do. The one place that decides it, for
//! `enforcer status`, the metric `enforcer_problems` and the alerts. Pure.

use jiff::Timestamp;

use crate::agent::state::State;
use crate::certificate::report::CertificateReport;
use crate::datapath::attach::Way;
use crate::datapath::fill::MapFill;
use crate::datapath::load::PinnedProgram;
use crate::datapath::look::Look;
use crate::source::KindState;
use crate::telemetry::bypass::{self, BypassedPod};

/// Seconds after which an API that cannot be followed needs a person: enough for a control plane's restart.
const API_LIMIT: f64 = 60.0;

/// What was seen of the node.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What the agent knows, or wrote last.
    pub state: &'a State,
    /// What is wrong with the agent itself.
    pub agent: Option<&'a str>,
    /// The pinned programs.
    pub programs: &'a [PinnedProgram],
    /// The hooks of the pods' interfaces.
    pub interfaces: &'a [Look],
    /// Pods that packets reach past the hook.
    pub bypassed: &'a [BypassedPod],
    /// The pinned maps.
    pub maps: &'a [MapFill],
    /// The certificate checks.
    pub certificates: &'a CertificateReport,
    /// Now.
    pub now: Timestamp,
}

/// What needs a person; empty when nothing does.
#[must_use]
pub fn find(seen: &Seen<'_>) -> Vec<String> {
    let Seen { state, agent, programs, interfaces, bypassed, maps, certificates: checks, now } = *seen;
    let mut problems: Vec<String> = agent.map(str::to_owned).into_iter().collect();
    for way in Way::BOTH {
        if !programs.iter().any(|program| program.name == way.program()) {
            problems.push(format!("program {} is not pinned: start the agent again", way.program()));
        }
    }
    problems.extend(interfaces.iter().flat_map(Look::problems));
    problems.extend(bypassed.iter().map(BypassedPod::problem));
    // Those are told with what is known of them now.
    problems.extend(state.missing.iter().filter(|missing| !missing.starts_with(bypass::BEGINNING)).cloned());
    let unsupported = state.unsupported_interfaces.iter();
    problems.extend(
        unsupported.map(|name| format!("interface {name} cannot be hooked: its pod is not enforced")),
    );
    let unprotected = state.unprotected_pods.iter();
    problems.extend(unprotected.map(|pod| {
        format!("pod {pod} is in a mesh namespace and has no data plane: restart it for injection, or label it enforcer.io/enforce=true")
    }));
    problems.extend(maps.iter().filter_map(MapFill::problem));
    problems.extend(state.kinds.iter().filter_map(|kind| api_problem(kind, now)));
    problems.extend(certificates(checks));
    // An interface that could not be hooked is among what is missing already, with the same reason.
    let told = state.problems.iter().filter(|told| !state.missing.iter().any(|one| one.ends_with(*told)));
    problems.extend(told.cloned());
    problems
}

fn api_problem(kind: &KindState, now: Timestamp) -> Option<String> {
    let error = kind.error.as_ref()?;
    let since = now.duration_since(kind.failing_since?).as_secs_f64();
    if since < API_LIMIT {
        return None;
    }
    let what = &kind.kind;
    Some(format!(
        "{what} cannot be followed for {since:.0} s ({error}): what is in force stays; check the API server and the agent's RBAC"
    ))
}

/// What is wrong with certificates.
#[must_use]
pub fn certificates(report: &CertificateReport) -> Vec<String> {
    let mut problems: Vec<String> = report
        .bundle_problem
        .iter()
        .map(|why| format!("{why}; the last good trust bundle is in use"))
        .collect();
    let bad = report.entries.iter().filter(|entry| entry.history.state.is_bad() || entry.history.blocked);
    problems.extend(bad.map(|entry| {
        let state = entry.history.state;
        let blocked = if entry.history.blocked { ", and the port is blocked" } else { "" };
        format!(
            "certificate of {}/{} port {}: {state}{blocked}: {}",
            entry.namespace,
            entry.pod,
            entry.port,
            state.remedy()
        )
    }));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn found(state: &State, maps: &[MapFill], interfaces: &[Look]) -> Vec<String> {
        let programs = Way::BOTH.map(|way| PinnedProgram { name: way.program().to_owned(), id: 1 });
        find(&Seen {
            state,
            agent: None,
            programs: &programs,
            interfaces,
            bypassed: &[],
            maps,
            certificates: &CertificateReport::default(),
            now: time(2000),
        })
    }

    #[test]
    fn what_readyz_lacks_is_a_problem() {
        let missing = "no policy has been loaded yet";
        let state = State { missing: vec![missing.into()], ..State::default() };
        assert_eq!(found(&state, &[], &[]), [missing]);
        assert!(found(&State::default(), &[], &[]).is_empty());
    }

    #[test]
    fn an_interface_that_is_missing_is_told_once() {
        let why = "veth3: the kernel refuses";
        let state = State {
            missing: vec![format!("an interface is not hooked: veth3: {why}")],
            problems: vec![why.into(), "mesh.yaml: not a mode".into()],
            ..State::default()
        };
        assert_eq!(found(&state, &[], &[]).len(), 2);
    }

    #[test]
    fn hooks_maps_and_programs_are_looked_at() {
        let maps = [MapFill { name: "CLIENTS".into(), entries: Some(95), capacity: 100, memory_bytes: 0 }];
        let looks = [
            Look { interface: "veth1".into(), hooked: Some(false), ..Look::default() },
            Look { interface: "veth2".into(), hooked: Some(true), ..Look::default() },
            Look { interface: "veth3".into(), ..Look::default() },
        ];
        let all = found(&State::default(), &maps, &looks);
        assert!(
            matches!(all.as_slice(), [lost, full] if lost.contains("veth1") && full.contains("CLIENTS")),
            "{all:?}"
        );
        let none = find(&Seen {
            state: &State::default(),
            agent: Some("it hangs"),
            programs: &[],
            interfaces: &[],
            bypassed: &[],
            maps: &[],
            certificates: &CertificateReport::default(),
            now: time(0),
        });
        assert_eq!(none.len(), 3, "{none:?}");
    }

    #[test]
    fn an_api_that_is_away_for_long_needs_a_person() {
        let kind = KindState {
            kind: "pods".into(),
            failing_since: Some(time(1000)),
            error: Some("refused".into()),
            ..KindState::default()
        };
        assert_eq!(api_problem(&kind, time(1059)), None);
        let problem = api_problem(&kind, time(1060)).expect("a problem");
        assert!(
            problem.contains("pods") && problem.contains("60 s") && problem.contains("refused"),
            "{problem}"
        );
        assert_eq!(api_problem(&KindState { failing_since: None, error: None, ..kind }, time(9999)), None);
    }
}
