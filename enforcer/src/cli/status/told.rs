//! What should be known and needs nobody now, and what was refused: one sentence each. Pure.

use enforcer_common::{Reason, Verdict};

use super::{Events, Refused, Status};

impl Status {
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
                "{} events found the ring buffer full since the maps were made: flow records are missing, counters are complete",
                self.events.lost
            ));
        }
        let Events { suppressed, hellos_suppressed, .. } = self.events;
        if suppressed + hellos_suppressed > 0 {
            notes.push(format!(
                "{suppressed} verdicts and ends and {hellos_suppressed} pieces of hellos were over the limits per second (--events-per-second) since the maps were made: flow records, or what they say of hellos, are missing; counters are complete"
            ));
        }
        notes
    }
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
