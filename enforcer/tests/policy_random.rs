//! Random sets of policies, written as files in all the forms that files have, against a second composition that is written
//! down as the reference tells it, step by step, and knows nothing of the first. Through the real binary.

use std::fs;
use std::process::Command;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// How many sets are tried.
const SETS: usize = 600;

/// A fixed generator: a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % (limit as u64)).expect("small")
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a policy says, before it is written down.
#[derive(Clone, Debug)]
struct Policy {
    namespace: &'static str,
    name: &'static str,
    /// Seconds; `None`: no creation time.
    created: Option<i64>,
    revision: Option<&'static str>,
    selector: Vec<(&'static str, &'static str)>,
    mode: &'static str,
    ports: Vec<(u16, &'static str)>,
}

const NAMESPACES: [&str; 6] = ["istio-system", "root", "shop", "shop", "shop", "other"];
const MODES: [&str; 6] = ["UNSET", "UNSET", "DISABLE", "PERMISSIVE", "STRICT", "STRICT"];
const KEYS: [&str; 2] = ["app", "tier"];
const VALUES: [&str; 7] = ["a", "a", "a", "a", "b", "A", ""];

fn policy(random: &mut Random) -> Policy {
    let mut selector: Vec<_> = KEYS
        .into_iter()
        .filter(|_| random.chance(45))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|key| (key, ""))
        .collect();
    for pair in &mut selector {
        pair.1 = random.one(&VALUES);
    }
    let ports: &[u16] = if random.chance(40) { &[] } else { &[1, 8080, 9090, 65535] };
    let ports = ports.iter().copied().filter(|_| random.chance(60)).collect::<Vec<_>>();
    Policy {
        namespace: random.one(&NAMESPACES),
        name: random.one(&["a", "b", "c", "default", "a-b", "a.b"]),
        created: random.chance(75).then(|| i64::try_from(random.below(4)).expect("small")),
        revision: random.chance(15).then(|| random.one(&["blue", "green"])),
        selector,
        mode: random.one(&MODES),
        ports: ports.into_iter().map(|port| (port, random.one(&MODES))).collect(),
    }
}

/// A time in one of the forms that Kubernetes takes.
fn time(second: i64, random: &mut Random) -> String {
    let offset = random.one(&[0_i64, 0, 90, -330]);
    let local = second + 12 * 3600 + offset * 60;
    let clock = format!("2024-05-01T{:02}:{:02}:{:02}", local / 3600, local / 60 % 60, local % 60);
    let zone = match offset {
        0 => "Z".to_owned(),
        _ => {
            format!("{}{:02}:{:02}", if offset < 0 { '-' } else { '+' }, offset.abs() / 60, offset.abs() % 60)
        }
    };
    clock + random.one(&["", ".0", ".000"]) + &zone
}

/// The mode's mapping: UNSET is also nothing at all.
fn mode(mode: &str, random: &mut Random) -> Value {
    if mode == "UNSET" && random.chance(50) { json!({}) } else { json!({ "mode": mode }) }
}

fn document(policy: &Policy, random: &mut Random) -> Value {
    let mut metadata = json!({"name": policy.name, "namespace": policy.namespace});
    match policy.created {
        Some(second) => metadata["creationTimestamp"] = time(second, random).into(),
        None if random.chance(30) => metadata["creationTimestamp"] = Value::Null,
        None => {}
    }
    if let Some(revision) = policy.revision {
        metadata["labels"] = json!({"istio.io/rev": revision, "x": "y"});
    }
    let mut spec = Map::new();
    if !policy.selector.is_empty() {
        let labels: Map<_, _> =
            policy.selector.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        spec.insert("selector".to_owned(), json!({ "matchLabels": labels }));
    } else if random.chance(20) {
        spec.insert(
            "selector".to_owned(),
            if random.chance(50) { json!({}) } else { json!({"matchLabels": {}}) },
        );
    }
    if policy.mode != "UNSET" || random.chance(50) {
        spec.insert("mtls".to_owned(), mode(policy.mode, random));
    }
    if !policy.ports.is_empty() {
        let ports: Map<_, _> =
            policy.ports.iter().map(|(port, own)| (port.to_string(), mode(own, random))).collect();
        spec.insert("portLevelMtls".to_owned(), Value::Object(ports));
    }
    let mut document = json!({
        "apiVersion": random.one(&["security.istio.io/v1", "security.istio.io/v1beta1"]),
        "kind": "PeerAuthentication",
        "metadata": metadata,
    });
    if !spec.is_empty() || random.chance(50) {
        document["spec"] = Value::Object(spec);
    }
    if random.chance(20) {
        document["status"] = json!({"observedGeneration": 3});
    }
    document
}

/// Documents as one file: YAML with strings or numbers as port keys, a list, a list of policies, JSON, a stream of JSON.
fn text(documents: &[Value], random: &mut Random) -> String {
    let yaml = |value: &Value| serde_saphyr::to_string(value).expect("it can be written");
    match random.below(5) {
        0 => documents.iter().map(yaml).collect::<Vec<_>>().join("---\n"),
        1 => {
            let text = documents.iter().map(yaml).collect::<Vec<_>>().join("---\n");
            let mut bare = text;
            for port in ["1", "8080", "9090", "65535"] {
                for quote in ['"', '\''] {
                    bare = bare.replace(&format!("{quote}{port}{quote}:"), &format!("{port}:"));
                }
            }
            format!("---\n# policies\n---\n{bare}")
        }
        2 => yaml(&json!({"apiVersion": "v1", "kind": "List", "items": documents})),
        3 => {
            let items: Vec<Value> = documents.to_vec();
            json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthenticationList", "items": items})
                .to_string()
        }
        _ => documents.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

/// The composition in the words of the reference.
fn composed(
    all: &[Policy],
    root: &str,
    revision: Option<&str>,
    namespace: &str,
    labels: &[(&str, &str)],
) -> Value {
    // Which policy objects exist at all.
    let mut all: Vec<&Policy> = all
        .iter()
        .filter(|policy| revision.is_none() || policy.revision.is_none() || policy.revision == revision)
        .collect();
    // One winner per scope: sort all by time, then name, then namespace; no time is before all times.
    all.sort_by_key(|policy| {
        (policy.created.map_or(i64::MIN, |second| second), policy.name, policy.namespace)
    });
    // Drop workload policies that do not match before looking at age.
    let first = |place: &str, selecting: bool| {
        all.iter().copied().find(|policy| {
            policy.namespace == place
                && policy.selector.is_empty() != selecting
                && policy.selector.iter().all(|pair| labels.contains(pair))
        })
    };
    let mesh = first(root, false);
    // The root namespace is the mesh's: no policy of it is a namespace or workload policy.
    let own = (namespace != root).then_some(namespace);
    let winners = [
        ("mesh", mesh),
        ("namespace", own.and_then(|own| first(own, false))),
        ("workload", own.and_then(|own| first(own, true))),
    ];
    let mut default = "PERMISSIVE";
    let mut chain = Vec::new();
    for (level, winner) in winners {
        if let Some(policy) = winner.filter(|policy| policy.mode != "UNSET") {
            default = policy.mode;
            chain.push(json!({"level": level, "policy": format!("{}/{}", policy.namespace, policy.name), "mode": policy.mode}));
        }
    }
    let mut ports = Map::new();
    if let Some(policy) = winners[2].1 {
        for (port, own) in &policy.ports {
            let own = if *own == "UNSET" { default } else { own };
            if own != default {
                ports.insert(port.to_string(), own.into());
                chain.push(json!({"level": "port", "policy": format!("{}/{}", policy.namespace, policy.name), "mode": own}));
            }
        }
    }
    json!({"pod": null, "default": default, "ports": ports, "decided_by": chain})
}

#[test]
fn the_binary_agrees_with_the_reference_on_random_sets() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut kinds = [0_usize; 5];
    for set in 0..SETS {
        let count = random.below(12);
        let mut policies: Vec<Policy> = Vec::new();
        for _ in 0..count {
            let new = policy(&mut random);
            if !policies.iter().any(|old| (old.namespace, old.name) == (new.namespace, new.name)) {
                policies.push(new);
            }
        }
        let root = random.one(&["istio-system", "istio-system", "root"]);
        let revision = random.chance(40).then(|| random.one(&["blue", "green", "red"]));
        let namespace = random.one(&["istio-system", "root", "shop", "shop", "shop", "empty"]);
        let labels: Vec<(&str, &str)> = KEYS
            .into_iter()
            .filter(|_| random.chance(75))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|key| (key, random.one(&VALUES)))
            .collect();

        let folder = TempDir::new().expect("a temporary folder");
        let cut = random.below(policies.len() + 1);
        for (file, part) in [("a.yaml", &policies[..cut]), ("b.json", &policies[cut..])] {
            let documents: Vec<Value> = part.iter().map(|policy| document(policy, &mut random)).collect();
            fs::write(folder.path().join(file), text(&documents, &mut random)).expect("written");
        }
        let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
        command.args(["policy", "explain", "-o", "json", "--root-namespace", root, "--namespace", namespace]);
        command.args(["--labels", &pairs.join(","), "--manifests", "."]).current_dir(folder.path());
        command
            .env_remove("ENFORCER_REVISION")
            .args(revision.map(|revision| format!("--revision={revision}")));
        let output = command.output().expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = composed(&policies, root, revision, namespace, &labels);
        let found: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("set {set}: {error}: {said}\n{policies:#?}"));
        assert_eq!(
            found, expected,
            "set {set}: root {root}, revision {revision:?}, pod in {namespace} with {labels:?}\n{policies:#?}\n{said}"
        );
        for (index, level) in ["mesh", "namespace", "workload", "port"].into_iter().enumerate() {
            let there = found["decided_by"]
                .as_array()
                .is_some_and(|list| list.iter().any(|entry| entry["level"] == level));
            kinds[index] += usize::from(there);
        }
        kinds[4] += usize::from(found["decided_by"] == json!([]));
    }
    // The sets say something of everything.
    assert!(kinds.iter().all(|count| *count > SETS / 40), "mesh, namespace, workload, port, none: {kinds:?}");
}
