//! Verdicts in the agent's log: a line for the first of its kind, and once a minute how many more there were. What clients do
//! must not fill the disk.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::record::{Flow, Word};

/// How long the next line of the same kind waits.
const QUIET: Duration = Duration::from_mins(1);
/// How many kinds are told apart.
const KINDS: usize = 4096;

/// Verdicts of one kind: from one client to one port of a pod, with one outcome.
type Kind = (IpAddr, IpAddr, u16, Word, Word);

/// What was told.
#[derive(Debug, Default)]
pub(super) struct VerdictLog {
    kinds: HashMap<Kind, (Instant, u64)>,
    /// Verdicts for which there was no room.
    untold: u64,
}

impl VerdictLog {
    /// Tells of a verdict, unless its kind was told lately.
    pub(super) fn tell(&mut self, flow: &Flow, now: Instant) {
        if let Some(repeats) = self.repeats(flow, now) {
            log(flow, repeats);
        }
    }

    /// How many like it were not told before it; `None` when it is not to be told either.
    fn repeats(&mut self, flow: &Flow, now: Instant) -> Option<u64> {
        let kind =
            (flow.client.address, flow.pod.address, flow.pod.port, flow.verdict.clone(), flow.reason.clone());
        if let Some((told, repeats)) = self.kinds.get_mut(&kind) {
            if now.saturating_duration_since(*told) < QUIET {
                *repeats += 1;
                return None;
            }
            *told = now;
            return Some(std::mem::take(repeats));
        }
        if self.kinds.len() >= KINDS {
            self.untold += 1;
            return None;
        }
        self.kinds.insert(kind, (now, 0));
        Some(0)
    }

    /// Forgets kinds that have come to rest, and tells what was not told of them.
    pub(super) fn tidy(&mut self, now: Instant) {
        let mut repeats = 0;
        self.kinds.retain(|_, (told, more)| {
            let keep = now.saturating_duration_since(*told) < QUIET;
            repeats += if keep { 0 } else { *more };
            keep
        });
        let untold = std::mem::take(&mut self.untold);
        if repeats > 0 {
            info!(repeats, "more verdicts of kinds that were told before; enforcer flows shows them");
        }
        if untold > 0 {
            warn!(
                suppressed = untold,
                "verdicts were of too many kinds to log each; the counters have them all"
            );
        }
    }
}

fn log(flow: &Flow, repeats: u64) {
    let client = flow.client.pod_name().unwrap_or_default();
    let pod = flow.pod.pod_name().unwrap_or_default();
    let (verdict, reason, class) = (&*flow.verdict, &*flow.reason, &*flow.class);
    let from = std::net::SocketAddr::new(flow.client.address, flow.client.port);
    let to = std::net::SocketAddr::new(flow.pod.address, flow.pod.port);
    let policy = flow.policy.as_deref().unwrap_or("none");
    let level = flow.level.as_deref().unwrap_or("none");
    let protocol = flow.protocol.as_deref().unwrap_or("unknown");
    if flow.is_refused() {
        let direction = &*flow.direction;
        warn!(verdict, reason, class, protocol, client = %from, client_pod = client, server = %to, pod, policy, level, direction, repeats, remedy = &*flow.remedy, "verdict");
    } else {
        info!(verdict, reason, class, client = %from, client_pod = client, server = %to, pod, policy, level, repeats, "verdict");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::filter::tests::flow;

    #[test]
    fn a_kind_is_told_once_a_minute_with_what_was_not_told() {
        let mut log = VerdictLog::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut one = flow();
        assert_eq!(log.repeats(&one, after(0)), Some(0));
        // Another connection of the same client is of the same kind.
        one.client.port += 1;
        assert_eq!(log.repeats(&one, after(1)), None);
        assert_eq!(log.repeats(&one, after(59)), None);
        let other = Flow { verdict: "would_reset".into(), ..one.clone() };
        assert_eq!(log.repeats(&other, after(59)), Some(0));
        assert_eq!(log.repeats(&one, after(60)), Some(2));
        assert_eq!(log.repeats(&one, after(61)), None);
        log.tidy(after(119));
        assert_eq!(log.kinds.len(), 1);
        log.tidy(after(120));
        assert!(log.kinds.is_empty());
    }

    #[test]
    fn kinds_are_bounded() {
        let mut log = VerdictLog::default();
        let now = Instant::now();
        for number in 0..5000_u16 {
            let mut one = flow();
            one.pod.port = number;
            log.repeats(&one, now);
        }
        assert_eq!((log.kinds.len(), log.untold), (KINDS, 5000 - KINDS as u64));
        log.tidy(now);
        assert_eq!(log.untold, 0);
    }
}
