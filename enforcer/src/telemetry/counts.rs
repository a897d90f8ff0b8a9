//! What the counters of verdicts and reasons mean to people: the one place where they are added up to TLS, plaintext and
//! refused.

use enforcer_common::{Reason, Verdict};

/// Connections of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// TLS that came through.
    pub tls: u64,
    /// Plaintext that came through, also because of audit mode.
    pub plaintext: u64,
    /// Refused, whatever for.
    pub refused: u64,
    /// Would have been refused, whatever for, but for audit mode. Those in plaintext are in `plaintext` as well.
    pub would_refuse: u64,
}

impl Counts {
    /// Adds the connections of one counter.
    pub fn add(&mut self, verdict: Verdict, reason: Reason, connections: u64) {
        let add = |number: &mut u64| *number = number.saturating_add(connections);
        match verdict {
            Verdict::ALLOW if matches!(reason, Reason::TLS | Reason::MESH_TLS) => add(&mut self.tls),
            Verdict::ALLOW if reason == Reason::PLAINTEXT_PERMITTED => add(&mut self.plaintext),
            Verdict::RESET | Verdict::DROP => add(&mut self.refused),
            Verdict::WOULD_RESET => {
                add(&mut self.would_refuse);
                if is_plaintext(reason) {
                    add(&mut self.plaintext);
                }
            }
            Verdict::NONE | Verdict::ALLOW | Verdict::WAIT => {}
        }
    }
}

/// The reason says that plaintext was spoken.
const fn is_plaintext(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PLAINTEXT_PERMITTED | Reason::PLAINTEXT | Reason::SERVER_FIRST | Reason::POLICY_CHANGED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(Verdict, Reason)]) -> Counts {
        let mut counts = Counts::default();
        for (verdict, reason) in all {
            counts.add(*verdict, *reason, 1);
        }
        counts
    }

    #[test]
    fn what_would_be_refused_is_plaintext_only_where_plaintext_was_spoken() {
        for reason in [Reason::PLAINTEXT, Reason::SERVER_FIRST, Reason::POLICY_CHANGED] {
            let found = counts(&[(Verdict::WOULD_RESET, reason)]);
            assert_eq!(found, Counts { plaintext: 1, would_refuse: 1, ..Counts::default() }, "{reason}");
        }
        for reason in [Reason::CERTIFICATE, Reason::SERVER_NOT_TLS, Reason::MIDSTREAM, Reason::UNKNOWN_POD] {
            let found = counts(&[(Verdict::WOULD_RESET, reason)]);
            assert_eq!(found, Counts { would_refuse: 1, ..Counts::default() }, "{reason}");
        }
    }

    #[test]
    fn every_verdict_has_its_place() {
        let found = counts(&[
            (Verdict::ALLOW, Reason::TLS),
            (Verdict::ALLOW, Reason::MESH_TLS),
            (Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED),
            (Verdict::ALLOW, Reason::PROBE),
            (Verdict::ALLOW, Reason::EXISTING),
            (Verdict::RESET, Reason::PLAINTEXT),
            (Verdict::DROP, Reason::FRAGMENT),
            (Verdict::WAIT, Reason::OUT_OF_ORDER),
        ]);
        assert_eq!(found, Counts { tls: 2, plaintext: 1, refused: 2, would_refuse: 0 });
    }
}
