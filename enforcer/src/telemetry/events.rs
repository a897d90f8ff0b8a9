//! Events out of the ring buffer, into the flow log and, one line per kind, into the agent's log.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{Map, MapData, RingBuf};
use enforcer_common::Reason;
use enforcer_common::event::{Event, Record, decode};
use enforcer_common::map::{EventBudget, TrafficClass};
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::connections::{Connections, Id, Ready};
use super::describe::{self, Describer};
use super::record::{Line, Suppressed};
use super::verdict_log::VerdictLog;
use super::{Shared, View};
use crate::agent::monotonic_ns;
use crate::datapath::load::Pinned;
use crate::datapath::maps::event_budget;

/// How long events are collected before they are read. The kernel wakes its reader for the first event after it has read
/// all: without a pause every event would be a wake-up of its own.
const COLLECT: Duration = Duration::from_millis(10);
/// How often it is looked whether events are missing.
const LOSSES: Duration = Duration::from_secs(1);
/// How long events wait for the first policy after the agent's start.
const FIRST_POLICY: Duration = Duration::from_secs(5);
/// How many events are read before other tasks have a turn.
const TURN: usize = 1024;
/// How many connections are remembered between their events.
const CONNECTIONS: usize = 16_384;

/// The reader of `EVENTS`.
pub(super) struct Events {
    buffer: AsyncFd<RingBuf<MapData>>,
    pinned: Pinned,
    shared: Arc<Shared>,
    connections: Connections,
    log: VerdictLog,
    /// Ports that were told of since the last look.
    noted: HashSet<([u8; 16], u16)>,
    /// What became of the events, as it was last seen.
    missing: Option<EventBudget>,
}

impl Events {
    /// Takes the ring buffer. Must be called on telemetry's own runtime.
    pub(super) fn open(map: Map, pinned: Pinned, shared: Arc<Shared>) -> anyhow::Result<Self> {
        let buffer = RingBuf::try_from(map).context("map EVENTS is no ring buffer")?;
        // SAFETY: the ring buffer owns its descriptor, which neither changes nor closes before the buffer is dropped.
        let buffer = unsafe { AsyncFd::register_with_interest(buffer, tokio::io::Interest::READABLE) };
        let mut events = Self {
            buffer: buffer.context("cannot wait for events")?,
            pinned,
            shared,
            connections: Connections::new(CONNECTIONS),
            log: VerdictLog::default(),
            noted: HashSet::new(),
            missing: None,
        };
        // What went missing before is not this agent's to tell.
        events.losses();
        Ok(events)
    }

    /// Reads for ever.
    pub(super) async fn run(mut self) {
        let mut look = tokio::time::interval(LOSSES);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Without the first policy no event could be given its names; they keep in the ring buffer.
        let patience = Instant::now() + FIRST_POLICY;
        while self.shared.view().snapshot.state.policy_applied.is_none() && Instant::now() < patience {
            tokio::time::sleep(COLLECT).await;
        }
        loop {
            tokio::select! {
                ready = self.buffer.readable() => match ready {
                    // The readiness is cleared before the buffer is drained: what comes meanwhile wakes the next wait.
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return,
                },
                _ = look.tick() => {
                    let missing = self.losses();
                    self.shared.log.extend(missing.map(Line::Suppressed));
                    self.log.tidy(Instant::now());
                    self.noted.clear();
                }
            }
            while self.turn() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(COLLECT).await;
            self.overdue();
        }
    }

    /// Reads some events. True when there may be more.
    fn turn(&mut self) -> bool {
        let Self { buffer, connections, log, shared, noted, .. } = self;
        let views = shared.views();
        let now = Instant::now();
        let describer = Describer {
            views: &views,
            plans: &shared.plans,
            remote: &shared.remote,
            epoch: describe::epoch(Timestamp::now(), monotonic_ns()),
            now,
        };
        let mut lines = Vec::new();
        let mut read = 0;
        while read < TURN {
            let Some(item) = buffer.get_mut().next() else { break };
            read += 1;
            match decode(&item) {
                Ok(Record::Hello(hello)) => {
                    let id = Id::new(&hello.header.key, hello.header.opened_ns);
                    let ready = connections.chunk(id, hello.header.offset, hello.bytes);
                    write(&describer, shared, &ready, None, log, &mut lines);
                }
                Ok(Record::Verdict(event)) => {
                    note(shared, &views[0], &event, noted);
                    let id = Id::new(&event.key, event.opened_ns);
                    let tls = matches!(event.class, TrafficClass::TLS | TrafficClass::MESH_TLS);
                    let protocol = describe::protocol(&event);
                    let ready = connections.verdict(id, event, tls, protocol, now);
                    write(&describer, shared, &ready, None, log, &mut lines);
                }
                Ok(Record::End(event)) => {
                    let mut ready = connections.end(Id::new(&event.key, event.opened_ns), event);
                    let end = ready.pop();
                    write(&describer, shared, &ready, end.as_ref(), log, &mut lines);
                }
                Err(error) => debug!("a record in EVENTS is not valid: {error}"),
            }
        }
        if !lines.is_empty() {
            shared.log.extend(lines);
        }
        read == TURN
    }

    /// Writes verdicts whose hello never became complete.
    fn overdue(&mut self) {
        let now = Instant::now();
        let ready = self.connections.overdue(now);
        if ready.is_empty() {
            return;
        }
        let views = self.shared.views();
        let epoch = describe::epoch(Timestamp::now(), monotonic_ns());
        let describer =
            Describer { views: &views, plans: &self.shared.plans, remote: &self.shared.remote, epoch, now };
        let mut lines = Vec::new();
        write(&describer, &self.shared, &ready, None, &mut self.log, &mut lines);
        self.shared.log.extend(lines);
    }

    /// Events that went missing since the last look.
    fn losses(&mut self) -> Option<Suppressed> {
        let budget = self.pinned.map("EVENT_BUDGET").ok().and_then(|map| event_budget(map).ok())?;
        let before = self.missing.replace(budget)?;
        let gap = Suppressed {
            time: Timestamp::now(),
            suppressed: budget.suppressed.saturating_sub(before.suppressed),
            hellos_suppressed: budget.hellos_suppressed.saturating_sub(before.hellos_suppressed),
            lost: budget.lost.saturating_sub(before.lost),
            missed: 0,
        };
        (gap.suppressed + gap.hellos_suppressed + gap.lost > 0).then_some(gap)
    }
}

/// Where clients are seen, the certificate checks look too; their own probes tell nothing.
fn note(shared: &Shared, view: &View, event: &Event, noted: &mut HashSet<([u8; 16], u16)>) {
    let plan = view.snapshot.wanted.plan(event.key.pod);
    let Some(plan) = plan.filter(|plan| plan.workload == event.workload && event.reason != Reason::PROBE)
    else {
        return;
    };
    if noted.insert((event.key.pod.bytes, event.key.pod_port)) {
        shared.note_served(&plan.pod, event.key.pod_port);
    }
}

/// Writes records, the end of a connection last, and what of it belongs into the agent's log.
fn write(
    describer: &Describer<'_>,
    shared: &Shared,
    verdicts: &[Ready],
    end: Option<&Ready>,
    log: &mut VerdictLog,
    lines: &mut Vec<Line>,
) {
    shared.hellos.note(verdicts.iter().chain(end));
    for ready in verdicts {
        let flow = describer.flow(ready, false);
        log.tell(&flow, describer.now);
        lines.push(Line::Verdict(flow));
    }
    lines.extend(end.map(|ready| Line::End(describer.flow(ready, true))));
}
