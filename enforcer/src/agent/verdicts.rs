//! Verdicts out of the ring buffer, one log line each.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use enforcer_common::event::{Event, InvalidRecord, Record, decode};
use enforcer_common::{Address, Reason, Verdict};
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};

use crate::datapath::Datapath;
use crate::datapath::desired::{Desired, EndpointPlan};
use crate::object::ObjectName;

/// Lines per second; what is beyond is counted and told in one line.
const LINES_PER_SECOND: u32 = 200;

/// The reader of `EVENTS`.
pub(super) struct Verdicts {
    buffer: AsyncFd<RingBuf<MapData>>,
    window: Instant,
    lines: u32,
    suppressed: u64,
}

impl Verdicts {
    pub(super) fn open(datapath: &mut Datapath) -> anyhow::Result<Self> {
        let map = datapath.take_map("EVENTS").context("map EVENTS is missing")?;
        let buffer = RingBuf::try_from(map).context("map EVENTS is no ring buffer")?;
        // SAFETY: the ring buffer owns its descriptor, which neither changes nor closes before the buffer is dropped.
        let buffer = unsafe { AsyncFd::register_with_interest(buffer, tokio::io::Interest::READABLE) };
        let buffer = buffer.context("cannot wait for events")?;
        Ok(Self { buffer, window: Instant::now(), lines: 0, suppressed: 0 })
    }

    /// Waits for events.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        // The readiness is cleared before the buffer is drained: what comes meanwhile wakes the next wait.
        self.buffer.readable().await.context("cannot wait for events")?.clear_ready();
        Ok(())
    }

    /// Logs all events that are there. `observe` is told at which ports of which pods clients were seen.
    pub(super) fn drain(&mut self, wanted: &Desired, observe: &mut dyn FnMut(&ObjectName, u16)) {
        while let Some(event) = self.next() {
            match event {
                Ok(Some(event)) => {
                    if let Some(plan) = plan(&event, wanted).filter(|_| event.reason != Reason::PROBE) {
                        observe(&plan.pod, event.key.pod_port);
                    }
                    if self.may_log() {
                        log(&event, wanted);
                    }
                }
                Ok(None) => {}
                Err(error) => debug!("a record in EVENTS is not valid: {error}"),
            }
        }
    }

    /// The next record; `None` inside for one that is not logged.
    fn next(&mut self) -> Option<Result<Option<Event>, InvalidRecord>> {
        let record = self.buffer.get_mut().next()?;
        Some(decode(&record).map(|record| match record {
            Record::Verdict(event) => Some(event),
            Record::End(_) | Record::Hello(_) => None,
        }))
    }

    fn may_log(&mut self) -> bool {
        if self.window.elapsed() >= Duration::from_secs(1) {
            if self.suppressed > 0 {
                warn!(
                    suppressed = self.suppressed,
                    "verdicts were too many to log each; the counters have them all"
                );
            }
            self.window = Instant::now();
            self.lines = 0;
            self.suppressed = 0;
        }
        self.lines += 1;
        let may = self.lines <= LINES_PER_SECOND;
        self.suppressed += u64::from(!may);
        may
    }
}

fn plan<'a>(event: &Event, wanted: &'a Desired) -> Option<&'a EndpointPlan> {
    wanted.endpoints.get(&event.key.pod).filter(|plan| plan.workload == event.workload)
}

fn log(event: &Event, wanted: &Desired) {
    let client = socket(event.key.client, event.key.client_port);
    let server = socket(event.key.pod, event.key.pod_port);
    let plan = plan(event, wanted);
    let pod = plan.map_or_else(String::new, |plan| plan.pod.to_string());
    let decision = plan.and_then(|plan| {
        let for_port = plan.decided_by.iter().rfind(|decision| decision.port == Some(event.key.pod_port));
        for_port.or_else(|| plan.decided_by.iter().rfind(|decision| decision.port.is_none()))
    });
    let policy = decision.map_or_else(|| "none".to_owned(), |decision| decision.policy.to_string());
    let level = decision.map_or("none", |decision| decision.level.name());
    let (verdict, reason) = (event.verdict, event.reason);
    if verdict == Verdict::ALLOW {
        info!(%verdict, %reason, %client, %server, pod, policy, level, "verdict");
    } else {
        warn!(%verdict, %reason, %client, %server, pod, policy, level, direction = %event.direction, remedy = reason.remedy(), "verdict");
    }
}

fn socket(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}
