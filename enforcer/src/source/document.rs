//! One document to one object: what the agent needs of Pods, Services and the rest. Policies are read by
//! `policy::validate`; kinds that nobody asked for are passed over.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::object::{
    ApiServerClient, ConfigMap, ContainerPort, Map, Namespace, ObjectName, Objects, Origin,
    PeerAuthentication, Pod, Service, ServicePort, TargetPort,
};
use crate::policy::instant::creation_time;
use crate::policy::problem::Problem;
use crate::policy::validate::{type_name, validate};
use crate::source::manifest::FileContent;

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
        return;
    }
    if kind == "PeerAuthentication" {
        let validated = validate(document, origin);
        if !validated.errors.is_empty() {
            let namespace = document["metadata"]["namespace"].as_str().filter(|text| !text.is_empty());
            content.refused.push(format!("PeerAuthentication {}/{name}", namespace.unwrap_or("default")));
        }
        content.problems.extend(validated.errors);
        content.warnings.extend(validated.warnings);
        content.objects.extend(validated.policy.map(|policy| Object::Policy(Box::new(policy))));
        return;
    }
    let squeezed: String =
        kind.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    if distance(&squeezed, "peerauthentication") <= 3 {
        let message = format!(
            "`{kind}` is not a kind of Istio: write PeerAuthentication, else the document has no effect"
        );
        content.problems.push(Problem::new(origin, format!("{kind} {name}"), "kind", "kind", message));
        return;
    }
    let fields = Fields { value: document, path: String::new() };
    let object = match (group, kind) {
        ("", "Namespace") => namespace(&fields, origin).map(Some),
        ("", "Pod") => pod(&fields, origin).map(Some),
        ("", "Service") => service(&fields, origin).map(Some),
        ("", "ConfigMap") => config_map(&fields, origin).map(Some),
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        )
        | ("apiregistration.k8s.io", "APIService") => clients(&fields, kind, origin).map(Some),
        _ => {
            if !is_familiar(group) {
                let message = format!(
                    "`{kind}` of `{version}` is not a kind that enforcer reads, and the document is passed over: correct it, or take it out"
                );
                content.warnings.push(Problem::new(
                    origin,
                    format!("{kind} {name}"),
                    "kind",
                    "kind-unknown",
                    message,
                ));
            }
            Ok(None)
        }
    };
    match object {
        Ok(object) => content.objects.extend(object),
        Err(Wrong { field, message }) => {
            let namespaced = !matches!(kind, "Namespace") && group.is_empty();
            let namespace = document["metadata"]["namespace"].as_str().unwrap_or("default");
            let object =
                if namespaced { format!("{kind} {namespace}/{name}") } else { format!("{kind} {name}") };
            content.refused.push(object.clone());
            content.problems.push(Problem::new(origin, object, field, "type", message));
        }
    }
}

/// Groups of Kubernetes and Istio themselves: what `kubectl get` prints of them is passed over without a word.
fn is_familiar(group: &str) -> bool {
    matches!(group, "" | "apps" | "batch" | "autoscaling" | "policy" | "extensions")
        || group.ends_with(".k8s.io")
        || group.ends_with(".istio.io")
}

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

struct Wrong {
    field: String,
    message: String,
}

type Reading<T> = Result<T, Wrong>;

/// A value with its path, for reading with exact messages.
struct Fields<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Fields<'a> {
    fn wrong<T>(&self, expected: &str) -> Reading<T> {
        Err(Wrong {
            field: self.path.clone(),
            message: format!("must be {expected}, not {}: correct it", type_name(self.value)),
        })
    }

    fn get(&self, key: &str) -> Reading<Fields<'a>> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        match self.value {
            Value::Object(fields) => Ok(Fields { value: fields.get(key).unwrap_or(&Value::Null), path }),
            Value::Null => Ok(Fields { value: &Value::Null, path }),
            _ => self.wrong("a mapping"),
        }
    }

    fn text(&self, key: &str) -> Reading<Option<&'a str>> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text).filter(|text| !text.is_empty()).map(String::as_str)),
            _ => field.wrong("a string (in quotes)"),
        }
    }

    fn flag(&self, key: &str) -> Reading<bool> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            _ => field.wrong("true or false"),
        }
    }

    fn port(&self, key: &str) -> Reading<Option<u16>> {
        let field = self.get(key)?;
        if field.value.is_null() {
            return Ok(None);
        }
        match field.value.as_u64().and_then(|port| u16::try_from(port).ok()) {
            Some(port) if port > 0 => Ok(Some(port)),
            _ => field.wrong("a port number from 1 to 65535"),
        }
    }

    fn list(&self, key: &str) -> Reading<Vec<Fields<'a>>> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(Vec::new()),
            Value::Array(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, value)| Fields { value, path: format!("{}[{index}]", field.path) })
                .collect()),
            _ => field.wrong("a list"),
        }
    }

    fn strings(&self, key: &str) -> Reading<Map> {
        let field = self.get(key)?;
        match field.value {
            Value::Null => Ok(Map::new()),
            Value::Object(pairs) => pairs
                .keys()
                .map(|key| Ok((key.clone(), field.text(key)?.unwrap_or_default().to_owned())))
                .collect(),
            _ => field.wrong("a mapping"),
        }
    }

    fn name(&self) -> Reading<ObjectName> {
        let metadata = self.get("metadata")?;
        let Some(name) = metadata.text("name")? else {
            return Err(Wrong {
                field: "metadata.name".to_owned(),
                message: "the object has no name: add one".to_owned(),
            });
        };
        Ok(ObjectName::new(metadata.text("namespace")?.unwrap_or("default"), name))
    }
}

fn namespace(fields: &Fields, origin: &Origin) -> Reading<Object> {
    let labels = fields.get("metadata")?.strings("labels")?;
    Ok(Object::Namespace(Namespace { name: fields.name()?.name, labels }, origin.clone()))
}

fn config_map(fields: &Fields, origin: &Origin) -> Reading<Object> {
    Ok(Object::ConfigMap(ConfigMap { name: fields.name()?, data: fields.strings("data")? }, origin.clone()))
}

/// A port given as a number or as the name of a port.
fn target(field: &Fields) -> Reading<Option<TargetPort>> {
    match field.value {
        Value::Null => Ok(None),
        Value::String(text) => {
            Ok(Some(text.parse().map_or_else(|_| TargetPort::Name(text.clone()), TargetPort::Number)))
        }
        Value::Number(number) => match number.as_u64().and_then(|port| u16::try_from(port).ok()) {
            // A targetPort of 0 is the same as none.
            Some(0) => Ok(None),
            Some(port) => Ok(Some(TargetPort::Number(port))),
            None => field.wrong("a port number or the name of a port"),
        },
        _ => field.wrong("a port number or the name of a port"),
    }
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

fn clients(fields: &Fields, kind: &str, origin: &Origin) -> Reading<Object> {
    let description = format!("{kind} {}", fields.name()?.name);
    let mut services = Vec::new();
    if kind == "APIService" {
        services.push(fields.get("spec")?.get("service")?);
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

fn pod(fields: &Fields, origin: &Origin) -> Reading<Object> {
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
    let pod = Pod {
        name: fields.name()?,
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
    };
    Ok(Object::Pod(Box::new(pod), origin.clone()))
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
