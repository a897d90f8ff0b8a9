//! What needs a person, and what only should be known: one sentence each, with what to do. Pure.

use enforcer_common::{Reason, Verdict};
use jiff::Timestamp;

use super::{Refused, Status};
use crate::certificate::report::CertificateReport;
use crate::datapath::attach::Way;
use crate::source::KindState;

/// Seconds after which an API that cannot be followed needs a person: enough for a control plane's restart.
const API_LIMIT: f64 = 60.0;
/// Maps that refuse, forget or fail closed when they are full.
const LIMITED: [&str; 4] = ["ENDPOINTS", "PORT_MODES", "FLOWS", "WORKLOAD_COUNTERS"];

impl Status {
    /// What needs a person; `told` is what the agent itself found.
    pub(super) fn find_problems(&self, told: &[String], kinds: &[KindState], now: Timestamp) -> Vec<String> {
        let mut problems: Vec<String> = self.agent.problem().into_iter().collect();
        for way in Way::BOTH {
            if !self.programs.iter().any(|program| program.name == way.program()) {
                problems.push(format!("program {} is not pinned: start the agent again", way.program()));
            }
        }
        let bare = self.interfaces.iter().filter(|interface| interface.hooked == Some(false));
        problems.extend(bare.map(|i| {
            format!(
                "interface {} has lost our programs: its pod is not enforced; restart the agent",
                i.state.name
            )
        }));
        problems.extend(self.bypassed.iter().map(super::bypass::BypassedPod::problem));
        let hooked = self.interfaces.iter().filter(|interface| interface.hooked == Some(true));
        problems.extend(hooked.flat_map(|interface| interface.warnings.iter().cloned()));
        let unsupported = self.unsupported_interfaces.iter();
        problems.extend(
            unsupported.map(|name| format!("interface {name} cannot be hooked: its pod is not enforced")),
        );
        let unprotected = self.unprotected_pods.iter();
        problems.extend(unprotected.map(|pod| {
            format!("pod {pod} is in a mesh namespace and has no data plane: restart it for injection, or label it enforcer.io/enforce=true")
        }));
        for map in self.maps.iter().filter(|map| LIMITED.contains(&map.name)) {
            // Nine tenths: time to act before anything is refused for it.
            if map.entries.is_some_and(|entries| entries * 10 >= map.capacity as usize * 9) {
                problems.push(format!(
                    "map {} is nearly full: run enforcer detach and start the agent with --map-size {}={}",
                    map.name,
                    map.name,
                    map.capacity.saturating_mul(2)
                ));
            }
        }
        problems.extend(kinds.iter().filter_map(|kind| api_problem(kind, now)));
        problems.extend(self.certificates.problems.iter().cloned());
        problems.extend(told.iter().cloned());
        problems
    }

    /// What should be known and needs nobody now.
    pub(super) fn find_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.mode == "audit" {
            notes.push("audit mode: nothing is refused, what would be is counted as would_reset".to_owned());
        }
        if self.endpoints.is_empty() {
            notes.push(
                "no pod is enforced on this node: see that the source has meshed pods of this node"
                    .to_owned(),
            );
        }
        if self.events.lost > 0 {
            notes.push(format!(
                "{} events found the ring buffer full since the start: flow records are missing, counters are complete",
                self.events.lost
            ));
        }
        if self.events.suppressed > 0 {
            notes.push(format!(
                "{} events were over the limit per second (--events-per-second): flow records are missing, counters are complete",
                self.events.suppressed
            ));
        }
        notes
    }
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
pub(super) fn certificates(report: &CertificateReport) -> Vec<String> {
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

/// The refusals by reason, most connections first, each with what can be done.
pub(super) fn refused(counters: impl Iterator<Item = (Verdict, Reason, u64)>) -> Vec<Refused> {
    let mut all: Vec<Refused> = Vec::new();
    for (verdict, reason, connections) in counters {
        if !matches!(verdict, Verdict::RESET | Verdict::DROP | Verdict::WOULD_RESET) || connections == 0 {
            continue;
        }
        match all.iter_mut().find(|one| one.verdict == verdict.name() && one.reason == reason.name()) {
            Some(one) => one.connections += connections,
            None => all.push(Refused {
                verdict: verdict.name(),
                reason: reason.name(),
                connections,
                summary: reason.summary(),
                remedy: reason.remedy(),
            }),
        }
    }
    all.sort_by(|a, b| b.connections.cmp(&a.connections).then(a.reason.cmp(b.reason)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
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

    #[test]
    fn refusals_are_summed_over_directions_and_ordered() {
        let counters = [
            (Verdict::RESET, Reason::PLAINTEXT, 3),
            (Verdict::ALLOW, Reason::TLS, 50),
            (Verdict::RESET, Reason::SERVER_FIRST, 9),
            (Verdict::RESET, Reason::PLAINTEXT, 4),
            (Verdict::DROP, Reason::FRAGMENT, 0),
        ];
        let all = refused(counters.into_iter());
        let found: Vec<_> = all.iter().map(|one| (one.reason, one.connections)).collect();
        assert_eq!(found, [("SERVER_FIRST", 9), ("PLAINTEXT", 7)]);
        assert!(all.iter().all(|one| !one.remedy.is_empty()));
    }
}
