//! The policies that are safe to apply now: STRICT for what is ready, with exceptions for the ports that are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::judge::{Readiness, Workload};
use super::{Governing, Labels, Mode, Nodes, PodData};

/// Labels that change with every pod or version of a workload.
const PASSING: [&str; 12] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "controller-revision-hash",
    "controller-uid",
    "istio.io/rev",
    "pod-template-generation",
    "pod-template-hash",
    "security.istio.io/tlsMode",
    "service.istio.io/canonical-revision",
    "statefulset.kubernetes.io/pod-name",
    "topology.istio.io/network",
];
/// Labels that people select by, the usual ones first.
const USUAL: [&str; 3] = ["app.kubernetes.io/name", "app", "k8s-app"];

/// What one document is for.
struct Group<'a> {
    workloads: Vec<&'a Workload>,
    pods: Vec<&'a PodData>,
    governing: Option<Governing>,
}

/// The documents as one YAML stream, with a comment for everything that is left out.
#[must_use]
pub fn documents(nodes: &Nodes, workloads: &[Workload]) -> String {
    let pods: Vec<&PodData> = nodes.iter().flat_map(|node| &node.pods).filter(|pod| pod.present).collect();
    let mut groups: BTreeMap<(&str, String), Group<'_>> = BTreeMap::new();
    let mut text = String::new();
    for workload in workloads {
        let own: Vec<&PodData> = pods
            .iter()
            .copied()
            .filter(|pod| pod.namespace == workload.namespace && pod.workload == workload.workload)
            .collect();
        let governing: BTreeSet<_> = own.iter().map(|pod| pod.posture.governed_by.clone()).collect();
        let mut governing = governing.into_iter();
        match (governing.next(), governing.next()) {
            (Some(governing), None) => {
                // A policy that governs several workloads can only be changed for all of them at once.
                let key = governing.as_ref().map_or_else(
                    || format!("workload {}", workload.workload),
                    |g| format!("policy {}", g.policy),
                );
                let group = groups.entry((&workload.namespace, key)).or_insert(Group {
                    workloads: Vec::new(),
                    pods: Vec::new(),
                    governing,
                });
                group.workloads.push(workload);
                group.pods.extend(own);
            }
            _ => comment(&mut text, workload, "its pods are under different policies: give them one"),
        }
    }
    for ((namespace, _), group) in &groups {
        match group.document(namespace, nodes, &pods) {
            Ok(document) => text.push_str(&document),
            Err(why) => group.workloads.iter().for_each(|workload| comment(&mut text, workload, &why)),
        }
    }
    text
}

fn comment(text: &mut String, workload: &Workload, more: &str) {
    let Workload { namespace, workload: name, verdict, why, .. } = workload;
    let _ = writeln!(text, "# {namespace}/{name}: {}: {why}", verdict.word());
    if !more.is_empty() {
        let _ = writeln!(text, "#   no policy: {more}");
    }
}

impl Group<'_> {
    fn document(&self, namespace: &str, nodes: &Nodes, all: &[&PodData]) -> Result<String, String> {
        let ports = || self.workloads.iter().flat_map(|workload| &workload.ports);
        if !ports().any(|port| port.verdict == Readiness::Ready) {
            return Err("none of its ports is ready".to_owned());
        }
        let (name, selector) = if let Some(governing) = &self.governing {
            (governing.policy.clone(), governing.selector.clone())
        } else {
            let workload = self.workloads.first().map_or("", |workload| &workload.workload);
            (free_name(nodes, namespace, workload), self.selector(all)?)
        };
        // Ports that somebody disabled stay as they are.
        let disabled = self.pods.iter().any(|pod| pod.posture.mode == Mode::Disable);
        let mut exceptions: BTreeMap<u16, &str> = BTreeMap::new();
        for pod in &self.pods {
            let kept = pod.posture.ports.iter().filter(|(port, _)| !pod.posture.exempt.contains(port));
            for (port, mode) in kept {
                match mode {
                    Mode::Disable => drop(exceptions.insert(*port, "DISABLE")),
                    Mode::Strict if disabled => drop(exceptions.insert(*port, "STRICT")),
                    Mode::Strict | Mode::Permissive => {}
                }
            }
        }
        for port in ports().filter(|port| disabled && port.verdict == Readiness::Ready) {
            exceptions.insert(port.port, "STRICT");
        }
        for port in ports().filter(|port| port.verdict != Readiness::Ready && port.port != 0) {
            exceptions.insert(port.port, "PERMISSIVE");
        }
        let mut text = String::from("---\n");
        for workload in &self.workloads {
            comment(&mut text, workload, "");
            for port in workload.ports.iter().filter(|port| port.verdict != Readiness::Ready) {
                let _ = writeln!(text, "#   port {}: {}: {}", port.port, port.verdict.word(), port.why);
            }
        }
        let _ = write!(
            text,
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n  selector:\n    matchLabels:\n",
            scalar(&name),
            scalar(namespace)
        );
        for (key, value) in &selector {
            let _ = writeln!(text, "      {}: {}", scalar(key), scalar(value));
        }
        let _ = writeln!(text, "  mtls:\n    mode: {}", if disabled { "DISABLE" } else { "STRICT" });
        if !exceptions.is_empty() {
            text.push_str("  portLevelMtls:\n");
        }
        for (port, mode) in &exceptions {
            let _ = writeln!(text, "    {port}:\n      mode: {mode}");
        }
        Ok(text)
    }

    /// The fewest labels that all pods of the workload have and no other pod of the namespace.
    fn selector(&self, all: &[&PodData]) -> Result<Labels, String> {
        let Some((first, rest)) = self.pods.split_first() else {
            return Err("it has no pod now".to_owned());
        };
        let mut common = first.labels.clone();
        common.retain(|key, value| {
            !PASSING.contains(&key.as_str()) && rest.iter().all(|pod| pod.labels.get(key) == Some(value))
        });
        let others: Vec<_> = all
            .iter()
            .filter(|pod| pod.namespace == first.namespace && pod.workload != first.workload)
            .collect();
        let unique = |labels: &Labels| {
            !labels.is_empty()
                && !others
                    .iter()
                    .any(|pod| labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
        };
        let rank = |key: &str| USUAL.iter().position(|usual| *usual == key).unwrap_or(USUAL.len());
        let mut single: Vec<_> = common.iter().collect();
        single.sort_by_key(|(key, _)| (rank(key), (*key).clone()));
        let single = single.into_iter().map(|(key, value)| Labels::from([(key.clone(), value.clone())]));
        single.chain([common.clone()]).find(unique).ok_or_else(|| {
            "no label tells its pods from those of other workloads of the namespace: add one".to_owned()
        })
    }
}

/// A name that no policy of the namespace has.
fn free_name(nodes: &Nodes, namespace: &str, wanted: &str) -> String {
    let taken: BTreeSet<&String> =
        nodes.iter().filter_map(|node| node.policies.get(namespace)).flatten().collect();
    let mut name = wanted.to_owned();
    let mut number = 1;
    while taken.contains(&name) {
        number += 1;
        name = format!("{wanted}-{number}");
    }
    name
}

/// A YAML scalar that is read as this string.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'));
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
    );
    if plain && !word { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests;
