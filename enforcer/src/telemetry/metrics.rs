//! Prometheus metrics. Nothing is counted twice: what the kernel side counts is read from the maps when somebody asks, so
//! that the numbers survive the agent and are the same as those of `bpftool`.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing::warn;

use self::families::{Writer, write};
use self::numbers::Numbers;
use self::slots::Slots;
use super::{Options, Shared};

mod classic;
mod families;
mod numbers;
mod slots;

/// Prefix of every name.
const PREFIX: &str = "enforcer";

/// What the policy loop measures. Lost with the agent.
#[derive(Clone, Debug)]
pub struct Timings {
    /// From the objects to the last map write, for each change.
    pub policy_apply: Histogram,
    /// From the appearance of a pod's interface to its policy in the map.
    pub pod_gap: Histogram,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            // 0.1 ms to 3 s.
            policy_apply: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            // 1 ms to 65 s: it holds what the API server and the container runtime take too.
            pod_gap: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
        }
    }
}

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Classic,
}

impl Format {
    /// What a client that sends this `Accept` header gets.
    #[must_use]
    pub fn of_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Classic }
    }

    /// The content type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The metrics of one agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Of the agent with these pins and files.
    #[must_use]
    pub fn new(shared: Arc<Shared>, options: &Options) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register(
            "policy_apply_seconds",
            "Time from a change of the objects to the last write to the maps",
            shared.timings.policy_apply.clone(),
        );
        registry.register(
            "pod_gap_seconds",
            "Time from the appearance of a pod's interface to its policy in the maps",
            shared.timings.pod_gap.clone(),
        );
        registry.register_collector(Box::new(Maps {
            shared,
            bpffs: options.bpffs.clone(),
            certificates: options.certificates.clone(),
            slots: Mutex::new(Slots::new(options.metrics_workloads)),
        }));
        Self { registry }
    }

    /// All of them now.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Classic => classic::from_open_metrics(&text),
        })
    }
}

/// Reads the maps and what the policy loop published.
#[derive(Debug)]
struct Maps {
    shared: Arc<Shared>,
    bpffs: PathBuf,
    certificates: PathBuf,
    slots: Mutex<Slots>,
}

impl Collector for Maps {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (numbers, problems) = Numbers::read(&self.bpffs, &self.shared, &self.certificates, &mut slots);
        for problem in &problems {
            warn!("metrics: {problem}");
        }
        write(&numbers, problems.len() as u64, &mut Writer(encoder))
    }
}

#[cfg(test)]
mod tests;
