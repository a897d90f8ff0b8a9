//! The families of the metrics: names, help and samples.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::numbers::Numbers;

/// Writes families.
pub(super) struct Writer<'a>(pub(super) DescriptorEncoder<'a>);

/// Writes the samples of one family.
struct Family<'a>(MetricEncoder<'a>);

impl Family<'_> {
    fn counter(&mut self, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
        self.0.encode_family(labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)
    }

    fn gauge(&mut self, labels: &impl EncodeLabelSet, value: f64) -> fmt::Result {
        self.0.encode_family(labels)?.encode_gauge(&value)
    }
}

impl Writer<'_> {
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        samples: impl FnOnce(&mut Family<'_>) -> fmt::Result,
    ) -> fmt::Result {
        samples(&mut Family(self.0.encode_descriptor(name, help, None, MetricType::Counter)?))
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl FnOnce(&mut Family<'_>) -> fmt::Result,
    ) -> fmt::Result {
        samples(&mut Family(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?))
    }

    fn counter(&mut self, name: &str, help: &str, value: Option<u64>) -> fmt::Result {
        value.map_or(Ok(()), |value| {
            let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a floating point number")]
    fn gauge(&mut self, name: &str, help: &str, value: Option<usize>) -> fmt::Result {
        self.real(name, help, value.map(|value| value as f64))
    }

    fn real(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        value.map_or(Ok(()), |value| {
            self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
        })
    }

    fn info(&mut self, name: &str, help: &str, labels: &impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }
}

/// Writes all of them.
pub(super) fn write(n: &Numbers, problems: u64, to: &mut Writer<'_>) -> fmt::Result {
    about(n, to)?;
    connections(n, to)?;
    fill(n, to)?;
    state(n, to)?;
    certificates(n, to)?;
    process(n, to)?;
    to.gauge(
        "scrape_errors",
        "Maps or files that could not be read for this answer",
        usize::try_from(problems).ok(),
    )
}

fn about(n: &Numbers, to: &mut Writer<'_>) -> fmt::Result {
    let version = env!("CARGO_PKG_VERSION");
    let layout = enforcer_common::map::LAYOUT_VERSION;
    to.info(
        "build",
        "Version of the agent and of the layout of its maps",
        &[("version", version.to_owned()), ("layout", layout.to_string())],
    )?;
    if let Some([mode, action, unknown_pods]) = n.settings {
        to.info(
            "settings",
            "How verdicts are carried out",
            &[("mode", mode), ("action", action), ("unknown_pods", unknown_pods)],
        )?;
    }
    Ok(())
}

fn connections(n: &Numbers, to: &mut Writer<'_>) -> fmt::Result {
    to.counters("connections", "Connections to meshed pods that got a verdict; beyond the largest number of workloads those of the others are together under workload=\"other\"", |family| {
        n.connections.iter().try_for_each(|(key, value)| {
            let (verdict, reason) = (key.verdict.name(), key.reason.name());
            let (namespace, workload) = (key.namespace.as_str(), key.workload.as_str());
            family.counter(&[("verdict", verdict), ("reason", reason), ("namespace", namespace), ("workload", workload)], *value)
        })
    })?;
    to.counters("tls_hellos", "TLS connections whose hello was read since the agent's start, those to the mesh's tunnel port excepted: class mesh_tls offers Istio's ALPN, tls does not; what is counted as TLS and missing here was not read", |family| {
        n.hellos.iter().try_for_each(|((namespace, workload), tally)| {
            [("mesh_tls", tally.mesh), ("tls", tally.other)].into_iter().try_for_each(|(class, value)| {
                family.counter(&[("class", class), ("namespace", namespace), ("workload", workload)], value)
            })
        })
    })?;
    to.counters("node_verdicts", "Connections of this node that got a verdict", |family| {
        n.verdicts().iter().try_for_each(|((verdict, reason), value)| {
            family.counter(&[("verdict", verdict.name()), ("reason", reason.name())], *value)
        })
    })?;
    to.counters("node_packets", "Packets that a verdict was applied to", |family| {
        n.node.iter().try_for_each(|(key, counter)| {
            let (verdict, reason) = (key.verdict.name(), key.reason.name());
            family.counter(
                &[("verdict", verdict), ("reason", reason), ("direction", key.direction.name())],
                counter.packets,
            )
        })
    })?;
    to.counters("node_bytes", "Payload bytes of the packets that a verdict was applied to", |family| {
        n.node.iter().try_for_each(|(key, counter)| {
            let (verdict, reason) = (key.verdict.name(), key.reason.name());
            family.counter(
                &[("verdict", verdict), ("reason", reason), ("direction", key.direction.name())],
                counter.bytes,
            )
        })
    })?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a floating point number")]
fn fill(n: &Numbers, to: &mut Writer<'_>) -> fmt::Result {
    to.gauge(
        "flows",
        "Judged TLS connections: those that no flood can push out",
        n.map("FLOWS").and_then(|fill| fill.entries),
    )?;
    to.gauge(
        "flow_table_capacity",
        "Judged TLS connections that the kernel side can keep",
        n.map("FLOWS").and_then(|fill| usize::try_from(fill.capacity).ok()),
    )?;
    to.gauges("map_entries", "Entries of a map", |family| {
        n.maps.iter().try_for_each(|fill| match fill.entries {
            Some(entries) => family.gauge(&[("map", fill.name.as_str())], entries as f64),
            None => Ok(()),
        })
    })?;
    to.gauges("map_capacity", "Entries that a map can have", |family| {
        let mut counted = n.maps.iter().filter(|fill| fill.entries.is_some());
        counted.try_for_each(|fill| family.gauge(&[("map", fill.name.as_str())], f64::from(fill.capacity)))
    })?;
    to.gauges("map_memory_bytes", "Kernel memory of a map", |family| {
        n.maps
            .iter()
            .try_for_each(|fill| family.gauge(&[("map", fill.name.as_str())], fill.memory_bytes as f64))
    })?;
    to.counter("events_lost", "Events that found the ring buffer full", n.events.map(|events| events.lost))?;
    to.counter(
        "events_suppressed",
        "Verdicts and ends of connections beyond the limit per second: records that are missing",
        n.events.map(|events| events.suppressed),
    )?;
    to.counter(
        "hellos_suppressed",
        "Pieces of clients' hellos beyond the limit per second: records that lack what the hello says",
        n.events.map(|events| events.hellos_suppressed),
    )?;
    to.counter("flow_records", "Records written to the flow log", Some(n.flow_records))?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a floating point number")]
fn state(n: &Numbers, to: &mut Writer<'_>) -> fmt::Result {
    to.gauges("endpoints", "Addresses of meshed pods by the mode of their policy", |family| {
        n.endpoints.iter().try_for_each(|(mode, count)| family.gauge(&[("mode", mode.name())], *count as f64))
    })?;
    to.gauge(
        "unprotected_pods",
        "Pods that a mesh namespace leaves without a data plane",
        Some(n.unprotected_pods),
    )?;
    to.gauge("attached_interfaces", "Interfaces of pods whose packets are judged", Some(n.attached))?;
    to.gauge(
        "unsupported_interfaces",
        "Interfaces that look like a pod's and are of a kind that cannot be hooked",
        Some(n.unsupported),
    )?;
    to.gauge(
        "unhooked_interfaces",
        "Interfaces of pods that should be hooked and are not",
        Some(n.unhooked),
    )?;
    to.gauge(
        "bypassed_pods",
        "Pods that packets reach past the hook on the host side of their interface, so that they are not enforced",
        Some(n.bypassed),
    )?;
    to.gauge("problems", "What needs a person on this node, as enforcer status lists it", n.problems)?;
    to.real("policy_applied_timestamp_seconds", "When policy was last put in force", n.policy_applied)?;
    to.real("start_time_seconds", "When the agent started", n.started)?;
    to.gauge(
        "ready",
        "1 when every endpoint of this node is enforced by its policy, as /readyz",
        Some(usize::from(n.ready)),
    )?;
    Ok(())
}

fn certificates(n: &Numbers, to: &mut Writer<'_>) -> fmt::Result {
    to.gauges(
        "certificate_check",
        "Result of the last check of a server's certificate: 1 for the state it is in",
        |family| {
            n.certificates.iter().try_for_each(|((namespace, pod, port), check)| {
                let (port, state) = (port.to_string(), check.state.as_str());
                family.gauge(
                    &[("namespace", namespace.as_str()), ("pod", pod), ("port", &port), ("state", state)],
                    1.0,
                )
            })
        },
    )?;
    to.gauges(
        "certificate_expiry_timestamp_seconds",
        "When whatever in a server's certificate chain ends first is no longer valid",
        |family| {
            n.certificates.iter().try_for_each(|((namespace, pod, port), check)| match check.expires {
                Some(expires) => family.gauge(
                    &[("namespace", namespace.as_str()), ("pod", pod), ("port", &port.to_string())],
                    expires,
                ),
                None => Ok(()),
            })
        },
    )?;
    to.gauge(
        "certificate_blocked_ports",
        "Ports that are closed after a failed certificate check",
        Some(n.blocked_ports),
    )?;
    to.real(
        "certificate_check_overdue_seconds",
        "How long the certificate check that has waited longest for its turn has been due",
        Some(n.check_overdue),
    )?;
    Ok(())
}

fn process(n: &Numbers, to: &mut Writer<'_>) -> fmt::Result {
    to.real("process_resident_memory_bytes", "Memory of the agent", n.resident_bytes)?;
    if let Some(seconds) = n.cpu_seconds {
        let mut metric = to.0.encode_descriptor(
            "process_cpu_seconds",
            "Processor time of the agent",
            None,
            MetricType::Counter,
        )?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&seconds, None)?;
    }
    Ok(())
}
