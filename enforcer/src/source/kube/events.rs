//! Kubernetes Events: the first refusals of each pod, where `kubectl describe pod` shows them. Few by intention: one for
//! each pod, port, reason and client within an hour, and not more than a handful a minute.

use std::collections::BTreeMap;
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
/// How many different refusals are remembered; beyond, nothing more is told until some are an hour old.
const REMEMBERED: usize = 1000;
/// How many records are read at once.
const BATCH: usize = 256;

/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who reports, as `kubectl describe` shows it.
const REPORTER: &str = "enforcer";

/// Tells refusals until the process ends. What cannot be told is left out: events are a courtesy.
pub async fn tell(client: Client, shared: Arc<Shared>, node: String) {
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node) };
    let recorder = Recorder::new(client, reporter);
    let mut wake = shared.log.watch();
    let mut next = shared.log.next();
    let mut budget = Budget::default();
    let mut denied = false;
    while wake.changed().await.is_ok() {
        loop {
            let batch = shared.log.read(next, BATCH);
            next = batch.next;
            if batch.records.is_empty() {
                break;
            }
            for record in &batch.records {
                let Line::Verdict(flow) = &record.line else { continue };
                let Some((event, pod)) = event(flow) else { continue };
                let objects = shared.view().snapshot.objects.clone();
                let Some(uid) = objects.pods.get(&pod).map(|pod| pod.uid.clone()) else { continue };
                if !budget.may_tell(&key(flow, &uid), Instant::now()) {
                    continue;
                }
                let reference = ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    namespace: Some(pod.namespace),
                    name: Some(pod.name),
                    uid: Some(uid),
                    ..ObjectReference::default()
                };
                let Ok(told) = tokio::time::timeout(PATIENCE, recorder.publish(&event, &reference)).await
                else {
                    debug!("an event was not taken in time");
                    continue;
                };
                match told {
                    Ok(()) => {}
                    Err(kube::Error::Api(status)) if status.code == 403 => {
                        if !denied {
                            warn!(
                                "the agent may not create events: grant it in its role, else kubectl describe pod shows no refusals"
                            );
                        }
                        denied = true;
                    }
                    Err(error) => debug!("an event could not be created: {error}"),
                }
            }
        }
    }
}

/// What makes two refusals the same for people.
fn key(flow: &Flow, uid: &str) -> String {
    // A client without a name is one of many behind changing ports and, often, addresses.
    let client = flow.client.pod_name().unwrap_or_else(|| flow.client.address.to_string());
    format!("{uid} {} {} {} {client}", flow.pod.port, flow.verdict, flow.reason)
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
    told: BTreeMap<String, Instant>,
    minute: Option<Instant>,
    used: u32,
}

impl Budget {
    fn may_tell(&mut self, key: &str, now: Instant) -> bool {
        if self.told.get(key).is_some_and(|last| now.duration_since(*last) < AGAIN) {
            return false;
        }
        if self.minute.is_none_or(|begun| now.duration_since(begun) >= Duration::from_mins(1)) {
            self.minute = Some(now);
            self.used = 0;
        }
        if self.used >= PER_MINUTE {
            return false;
        }
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, last| now.duration_since(*last) < AGAIN);
        }
        if self.told.len() >= REMEMBERED {
            return false;
        }
        self.used += 1;
        self.told.insert(key.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests;
