//! Kubernetes Events: the first refusals of each pod, where `kubectl describe pod` shows them. Few by intention: one for
//! each pod, port, reason and client within an hour, and not more than a handful a minute for one pod and for all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::{debug, warn};

use crate::object::ObjectName;
use crate::telemetry::Shared;
use crate::telemetry::record::{Flow, Line};

/// The same is not told again before.
const AGAIN: Duration = Duration::from_hours(1);
/// Events per minute and node.
const PER_MINUTE: u32 = 10;
/// Events per minute and pod: one that is stormed leaves the others theirs.
const PER_POD: u32 = 3;
/// How many different refusals are remembered; beyond, nothing more is told until some are an hour old.
const REMEMBERED: usize = 1000;
/// How many records are read at once.
const BATCH: usize = 256;
/// How long the name of a client is waited for.
const NAME: Duration = Duration::from_secs(5);
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who reports, as `kubectl describe` shows it.
const REPORTER: &str = "enforcer";

/// Tells refusals until the process ends. What cannot be told is left out: events are a courtesy.
pub async fn tell(client: Client, shared: Arc<Shared>, node: String) {
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node) };
    let mut teller = Teller {
        recorder: Recorder::new(client, reporter),
        next: shared.log.next(),
        shared,
        budget: Budget::default(),
        waiting: VecDeque::new(),
        denied: false,
    };
    let mut wake = teller.shared.log.watch();
    loop {
        // Names come one by one.
        let look = if teller.waiting.is_empty() { AGAIN } else { NAME / 10 };
        if let Ok(Err(_)) = tokio::time::timeout(look, wake.changed()).await {
            return;
        }
        teller.read();
        while let Some(refusal) = teller.due(Instant::now()) {
            teller.publish(refusal).await;
        }
    }
}

/// A refusal that is to be told.
struct Refusal {
    flow: Flow,
    pod: ObjectName,
    uid: String,
    since: Instant,
}

struct Teller {
    recorder: Recorder,
    shared: Arc<Shared>,
    /// Number of the next record.
    next: u64,
    budget: Budget,
    /// Refusals whose clients have no name yet, oldest first. Bounded by the budget.
    waiting: VecDeque<Refusal>,
    denied: bool,
}

impl Teller {
    /// Takes in what was refused since the last look.
    fn read(&mut self) {
        loop {
            let batch = self.shared.log.read(self.next, BATCH);
            self.next = batch.next;
            if batch.records.is_empty() {
                return;
            }
            let objects = self.shared.view().snapshot.objects.clone();
            for record in &batch.records {
                let Line::Verdict(flow) = &record.line else { continue };
                let Some((_, pod)) = event(flow) else { continue };
                let Some(uid) = objects.pods.get(&pod).map(|pod| pod.uid.clone()) else { continue };
                let since = Instant::now();
                if self.budget.may_tell(&uid, &key(flow), since) {
                    self.waiting.push_back(Refusal { flow: flow.clone(), pod, uid, since });
                }
            }
        }
    }

    /// The next refusal whose client has a name, or will have none.
    fn due(&mut self, now: Instant) -> Option<Refusal> {
        let remote = &self.shared.remote;
        let named = |flow: &Flow| flow.client.pod.is_some() || flow.client.node;
        for refusal in self.waiting.iter_mut().filter(|refusal| !named(&refusal.flow)) {
            // Asks for it, if nobody has.
            if let Some(identity) = remote.get(refusal.flow.client.address, now) {
                refusal.flow.client.name(&identity);
            }
        }
        let due = self.waiting.iter().position(|refusal| {
            named(&refusal.flow) || !remote.asks() || now.duration_since(refusal.since) >= NAME
        });
        self.waiting.remove(due?)
    }

    async fn publish(&mut self, refusal: Refusal) {
        let Refusal { flow, pod, uid, .. } = refusal;
        let Some((event, _)) = event(&flow) else { return };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace),
            name: Some(pod.name),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        match tokio::time::timeout(PATIENCE, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                if !self.denied {
                    warn!(
                        "the agent may not create events: grant it in its role, else kubectl describe pod shows no refusals"
                    );
                }
                self.denied = true;
            }
            Ok(Err(error)) => debug!("an event could not be created: {error}"),
            Err(_) => debug!("an event was not taken in time"),
        }
    }
}

/// What makes two refusals of a pod the same for people. By the client's address: its name may come later.
fn key(flow: &Flow) -> String {
    format!("{} {} {} {}", flow.pod.port, flow.verdict, flow.reason, flow.client.address)
}

/// The event of a refusal, and the pod that it is about.
fn event(flow: &Flow) -> Option<(Event, ObjectName)> {
    if !flow.is_refused() {
        return None;
    }
    let pod = ObjectName::new(flow.pod.namespace.as_deref()?, flow.pod.pod.as_deref()?);
    let (reason, what) = match &*flow.verdict {
        "would_reset" => ("ConnectionWouldBeReset", "would be reset if it were enforced"),
        "drop" => ("ConnectionDropped", "was dropped"),
        _ => ("ConnectionReset", "was reset"),
    };
    let client = flow.client.pod_name().unwrap_or_else(|| flow.client.address.to_string());
    let because = match (flow.policy.as_deref(), flow.level.as_deref()) {
        (Some(policy), Some(level)) => format!(" by {policy} ({level})"),
        _ => String::new(),
    };
    let note = format!(
        "A connection from {client} to port {} {what}{because}: {}. {}",
        flow.pod.port, flow.reason, flow.remedy
    );
    // The API takes at most 1024 bytes.
    let note = note.chars().take(900).collect::<String>().trim_end().to_owned();
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Enforce".to_owned(),
        secondary: None,
    };
    Some((event, pod))
}

/// How much may be told.
#[derive(Debug, Default)]
struct Budget {
    /// By pod and refusal.
    told: BTreeMap<(String, String), Instant>,
    minute: Option<Instant>,
    used: u32,
    /// What each pod used of the minute.
    pods: BTreeMap<String, u32>,
}

impl Budget {
    /// Whether a refusal of the pod with this uid is to be told now.
    fn may_tell(&mut self, uid: &str, refusal: &str, now: Instant) -> bool {
        let key = (uid.to_owned(), refusal.to_owned());
        if self.told.get(&key).is_some_and(|last| now.duration_since(*last) < AGAIN) {
            return false;
        }
        if self.minute.is_none_or(|begun| now.duration_since(begun) >= Duration::from_mins(1)) {
            self.minute = Some(now);
            self.used = 0;
            self.pods.clear();
        }
        if self.used >= PER_MINUTE || self.pods.get(uid).is_some_and(|used| *used >= PER_POD) {
            return false;
        }
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, last| now.duration_since(*last) < AGAIN);
        }
        if self.told.len() >= REMEMBERED {
            return false;
        }
        self.used += 1;
        *self.pods.entry(uid.to_owned()).or_default() += 1;
        self.told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests;
