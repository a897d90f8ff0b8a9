//! A `Pod`, and the pods that a template makes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::fields::{Fields, Reading, Wrong, target};
use crate::object::{ContainerPort, ObjectName, Pod, TargetPort};
use crate::policy::instant::creation_time;

/// A pod, or what a template makes pods of: there, `name` is the workload's.
pub(super) fn read(fields: &Fields, name: ObjectName) -> Reading<Pod> {
    let (metadata, spec, status) = (fields.get("metadata")?, fields.get("spec")?, fields.get("status")?);
    let mut containers = spec.list("containers")?;
    for container in spec.list("initContainers")? {
        // An init container that restarts always is a sidecar: it serves as long as the pod lives.
        if container.text("restartPolicy")? == Some("Always") {
            containers.push(container);
        }
    }
    let mut ports = Vec::new();
    let mut probes = Vec::new();
    for container in &containers {
        let own = container_ports(container)?;
        probe_ports(container, &own, &mut probes)?;
        ports.extend(own);
    }
    probes.sort_unstable();
    probes.dedup();
    let mut addresses = Vec::new();
    let mut listed =
        status.list("podIPs")?.iter().map(|entry| entry.text("ip")).collect::<Reading<Vec<_>>>()?;
    listed.push(status.text("podIP")?);
    for text in listed.into_iter().flatten() {
        let Ok(address) = text.parse() else {
            return Err(Wrong {
                field: "status.podIP".to_owned(),
                message: format!("`{text}` is no IP address: correct it"),
            });
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(Pod {
        name,
        uid: metadata.text("uid")?.unwrap_or_default().to_owned(),
        created: created(&metadata)?,
        labels: metadata.strings("labels")?,
        annotations: metadata.strings("annotations")?,
        addresses,
        host_network: spec.flag("hostNetwork")?,
        node: spec.text("nodeName")?.map(str::to_owned),
        service_account: spec.text("serviceAccountName")?.unwrap_or("default").to_owned(),
        ports,
        probe_ports: probes,
        finished: matches!(status.text("phase")?, Some("Succeeded" | "Failed")),
        deleting: metadata.text("deletionTimestamp")?.is_some(),
        claim: 0,
    })
}

fn created(metadata: &Fields) -> Reading<Option<Timestamp>> {
    let Some(text) = metadata.text("creationTimestamp")? else {
        return Ok(None);
    };
    creation_time(text).map_err(|_| Wrong {
        field: "metadata.creationTimestamp".to_owned(),
        message: format!(
            "`{text}` is no RFC 3339 time such as 2024-01-01T00:00:00Z: correct it or remove it"
        ),
    })
}

fn container_ports(container: &Fields) -> Reading<Vec<ContainerPort>> {
    let mut ports = Vec::new();
    for entry in container.list("ports")? {
        let Some(port) = entry.port("containerPort")? else {
            continue;
        };
        let tcp = entry.text("protocol")?.is_none_or(|protocol| protocol == "TCP");
        ports.push(ContainerPort { name: entry.text("name")?.map(str::to_owned), port, tcp });
    }
    Ok(ports)
}

fn probe_ports(container: &Fields, own: &[ContainerPort], found: &mut Vec<u16>) -> Reading<()> {
    let lifecycle = container.get("lifecycle")?;
    let handlers = [
        container.get("livenessProbe")?,
        container.get("readinessProbe")?,
        container.get("startupProbe")?,
        lifecycle.get("postStart")?,
        lifecycle.get("preStop")?,
    ];
    // Names refer to the ports of the probe's own container.
    let by_name: BTreeMap<_, _> =
        own.iter().filter_map(|port| Some((port.name.as_deref()?, port.port))).collect();
    for handler in handlers {
        for action in ["httpGet", "tcpSocket", "grpc"] {
            match target(&handler.get(action)?.get("port")?)? {
                Some(TargetPort::Number(port)) => found.push(port),
                Some(TargetPort::Name(name)) => found.extend(by_name.get(name.as_str())),
                None => {}
            }
        }
    }
    Ok(())
}
