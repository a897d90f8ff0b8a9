//! One document to one object: what the agent needs of Pods, Services and the rest. Policies are read by
//! `policy::validate`; kinds that nobody asked for are passed over.

use serde_json::Value;

use crate::object::{
    ApiServerClient, ConfigMap, Namespace, ObjectName, Objects, Origin, PeerAuthentication, Pod, Service,
    ServicePort, TargetPort,
};
use crate::policy::problem::Problem;
use crate::policy::validate::{type_name, validate};
use crate::source::manifest::{Bypassed, FileContent};

mod fields;
mod pod;

use fields::{Fields, Reading, Wrong, target};

/// An object with where it was read.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// A `Namespace`.
    Namespace(Namespace, Origin),
    /// A `Pod`.
    Pod(Box<Pod>, Origin),
    /// A `PeerAuthentication`.
    Policy(Box<PeerAuthentication>),
    /// A `Service`.
    Service(Service, Origin),
    /// A `ConfigMap`.
    ConfigMap(ConfigMap, Origin),
    /// The kind of a workload, and the pods that its template makes, under the workload's name.
    Template(String, Box<Pod>, Origin),
    /// All endpoints that one webhook configuration or `APIService` calls.
    Clients(String, Vec<ApiServerClient>, Origin),
}

impl Object {
    /// Kind, namespace and name: what makes two documents the same object.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Namespace(object, _) => format!("Namespace {}", object.name),
            Self::Pod(object, _) => format!("Pod {}", object.name),
            Self::Policy(object) => format!("PeerAuthentication {}", object.name),
            Self::Service(object, _) => format!("Service {}", object.name),
            Self::ConfigMap(object, _) => format!("ConfigMap {}", object.name),
            Self::Template(kind, object, _) => format!("{kind} {}", object.name),
            Self::Clients(name, ..) => name.clone(),
        }
    }

    /// Where it was read.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Policy(object) => &object.origin,
            Self::Namespace(_, origin)
            | Self::Pod(_, origin)
            | Self::Service(_, origin)
            | Self::ConfigMap(_, origin)
            | Self::Template(_, _, origin)
            | Self::Clients(_, _, origin) => origin,
        }
    }

    /// Adds the object to a set, in place of an earlier version.
    pub fn insert(&self, objects: &mut Objects) {
        match self.clone() {
            Self::Namespace(object, _) => drop(objects.namespaces.insert(object.name.clone(), object)),
            Self::Pod(object, _) => drop(objects.pods.insert(object.name.clone(), *object)),
            Self::Policy(object) => drop(objects.policies.insert(object.name.clone(), *object)),
            Self::Service(object, _) => drop(objects.services.insert(object.name.clone(), object)),
            Self::ConfigMap(object, _) => drop(objects.config_maps.insert(object.name.clone(), object)),
            Self::Template(kind, object, _) => {
                objects.templates.insert(format!("{kind} {}", object.name), *object);
            }
            Self::Clients(name, clients, _) => {
                objects.api_server_clients.retain(|client| client.description != name);
                objects.api_server_clients.extend(clients);
            }
        }
    }
}

/// Reads one document into `content`.
pub fn read(document: &Value, origin: &Origin, content: &mut FileContent) {
    let text = |key| document.get(key).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let name = document["metadata"]["name"].as_str().unwrap_or_default();
    if !document.is_object() || kind.is_empty() {
        let message = if document.is_object() {
            "has no `kind`: a manifest document needs apiVersion and kind".to_owned()
        } else {
            format!(
                "is {}, not a mapping: a manifest document needs apiVersion and kind",
                type_name(document)
            )
        };
        content.problems.push(Problem::new(origin, "", "kind", "kind", message));
        content.nameless = true;
        return;
    }
    if kind == "PeerAuthentication" {
        return policy(document, origin, content);
    }
    if let Some(message) = misspelt(kind) {
        content.problems.push(Problem::new(origin, format!("{kind} {name}"), "kind", "kind", message));
        let namespace = document["metadata"]["namespace"].as_str().filter(|text| !text.is_empty());
        content.refused.push(format!("PeerAuthentication {}/{name}", namespace.unwrap_or("default")));
        content.nameless |= name.is_empty();
        return;
    }
    if let Some((rule, message)) = looks_wrong(group, version, kind) {
        content.warnings.push(Problem::new(origin, format!("{kind} {name}"), "kind", rule, message));
        return;
    }
    let fields = Fields { value: document, path: String::new() };
    let object = match (group, kind) {
        ("", "Namespace") => namespace(&fields, origin).map(Some),
        ("", "Pod") => fields
            .name()
            .and_then(|name| pod::read(&fields, name))
            .map(|pod| Some(Object::Pod(Box::new(pod), origin.clone()))),
        ("", "Service") => service(&fields, origin).map(Some),
        ("", "ConfigMap") => config_map(&fields, origin).map(Some),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job" | "CronJob") => Ok(template(&fields, kind, origin).unwrap_or_default()),
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        )
        | ("apiregistration.k8s.io", "APIService")
        | ("apiextensions.k8s.io", "CustomResourceDefinition") => clients(&fields, kind, origin).map(Some),
        _ => Ok(None),
    };
    match object {
        Ok(object) => content.objects.extend(object),
        Err(Wrong { field, message }) => {
            let namespaced = !matches!(kind, "Namespace") && group.is_empty();
            let namespace = document["metadata"]["namespace"].as_str().unwrap_or("default");
            let object =
                if namespaced { format!("{kind} {namespace}/{name}") } else { format!("{kind} {name}") };
            content.refused.push(object.clone());
            content.nameless |= field.starts_with("metadata.name");
            content.problems.push(Problem::new(origin, object, field, "type", message));
        }
    }
}

fn policy(document: &Value, origin: &Origin, content: &mut FileContent) {
    let validated = validate(document, origin);
    let good = validated.errors.is_empty();
    if !good {
        let metadata = &document["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let namespace = metadata["namespace"].as_str().filter(|text| !text.is_empty());
        content.refused.push(format!("PeerAuthentication {}/{name}", namespace.unwrap_or("default")));
        content.nameless |= validated.nameless;
    }
    content.problems.extend(validated.errors);
    content.warnings.extend(validated.warnings);
    let Some(policy) = validated.policy else { return };
    // What the API server answers is in force there, whatever admission says today.
    if good || (origin.file.is_none() && policy.created.is_some()) {
        content.objects.push(Object::Policy(Box::new(policy)));
    } else if origin.file.is_some() {
        content.bypassed.push(Bypassed { policy, held: validated.held });
    }
}

/// Why a kind that is nearly `PeerAuthentication` has no effect.
fn misspelt(kind: &str) -> Option<String> {
    let squeezed: String =
        kind.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    (distance(&squeezed, "peerauthentication") <= 3).then(|| {
        format!("`{kind}` is not a kind of Istio: write PeerAuthentication, else the document has no effect")
    })
}

/// Why a document that is passed over deserves a look: its kind is one that Istio had before `PeerAuthentication`, none of
/// Kubernetes at all, or one of others.
fn looks_wrong(group: &str, version: &str, kind: &str) -> Option<(&'static str, String)> {
    if group == "authentication.istio.io" {
        let message = format!(
            "`{kind}` of `{version}` is of Istio before 1.6 and has no effect any more: write a PeerAuthentication of security.istio.io/v1"
        );
        return Some(("kind-legacy", message));
    }
    if group.is_empty() && !CORE.contains(&kind.strip_suffix("List").unwrap_or(kind)) {
        let meant =
            CORE.iter().find(|known| distance(&known.to_ascii_lowercase(), &kind.to_ascii_lowercase()) <= 1);
        let advice =
            meant.map_or_else(|| "correct it, or take it out".to_owned(), |meant| format!("write {meant}"));
        let message = format!(
            "`{kind}` of `{version}` is no kind of Kubernetes, and the document is passed over: {advice}"
        );
        return Some(("kind-unknown", message));
    }
    let own = ["", "apps", "batch", "autoscaling", "policy", "extensions"].contains(&group)
        || group.ends_with(".k8s.io")
        || group.ends_with(".istio.io");
    (!own).then(|| {
        let message = format!(
            "`{kind}` of `{version}` is not a kind that enforcer reads, and the document is passed over"
        );
        ("kind-foreign", message)
    })
}

/// The kinds of Kubernetes' core.
const CORE: [&str; 18] = [
    "",
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "Service",
    "ServiceAccount",
];

/// Edit distance of two short words.
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 16 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let next = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

fn namespace(fields: &Fields, origin: &Origin) -> Reading<Object> {
    let labels = fields.get("metadata")?.strings("labels")?;
    Ok(Object::Namespace(Namespace { name: fields.name()?.name, labels }, origin.clone()))
}

fn config_map(fields: &Fields, origin: &Origin) -> Reading<Object> {
    Ok(Object::ConfigMap(ConfigMap { name: fields.name()?, data: fields.strings("data")? }, origin.clone()))
}

fn service(fields: &Fields, origin: &Origin) -> Reading<Object> {
    let spec = fields.get("spec")?;
    let mut ports = Vec::new();
    for entry in spec.list("ports")? {
        let Some(port) = entry.port("port")? else { continue };
        let target = target(&entry.get("targetPort")?)?.unwrap_or(TargetPort::Number(port));
        ports.push(ServicePort { name: entry.text("name")?.map(str::to_owned), port, target });
    }
    Ok(Object::Service(
        Service { name: fields.name()?, selector: spec.strings("selector")?, ports },
        origin.clone(),
    ))
}

/// The pods that a workload will have; nothing where it has no template.
///
/// What cannot be read of it is passed over: nothing is enforced by it.
fn template(fields: &Fields, kind: &str, origin: &Origin) -> Reading<Option<Object>> {
    let mut spec = fields.get("spec")?;
    if kind == "CronJob" {
        spec = spec.get("jobTemplate")?.get("spec")?;
    }
    let template = spec.get("template")?;
    if template.value.is_null() {
        return Ok(None);
    }
    let pod = fields.name().and_then(|name| pod::read(&template, name));
    Ok(pod.ok().map(|pod| Object::Template(kind.to_owned(), Box::new(pod), origin.clone())))
}

fn clients(fields: &Fields, kind: &str, origin: &Origin) -> Reading<Object> {
    let description = format!("{kind} {}", fields.name()?.name);
    let mut services = Vec::new();
    if kind == "APIService" {
        services.push(fields.get("spec")?.get("service")?);
    }
    if kind == "CustomResourceDefinition" {
        let conversion = fields.get("spec")?.get("conversion")?.get("webhook")?;
        services.push(conversion.get("clientConfig")?.get("service")?);
    }
    for webhook in fields.list("webhooks")? {
        services.push(webhook.get("clientConfig")?.get("service")?);
    }
    let mut clients = Vec::new();
    for service in services {
        let Some(name) = service.text("name")? else {
            continue;
        };
        let service_name = ObjectName::new(service.text("namespace")?.unwrap_or("default"), name);
        let port = service.port("port")?.unwrap_or(443);
        clients.push(ApiServerClient { description: description.clone(), service: service_name, port });
    }
    Ok(Object::Clients(description, clients, origin.clone()))
}
