//! A real Kubernetes API server for one lab: etcd and kube-apiserver run in the namespace of the lab's node, so that no
//! two labs share ports, and end with it. Pods have no kubelet: what it would report of them, the test does.

mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::{NODE, Running, binary, run};
use crate::{Lab, Pod, poll};

pub use self::scene::KubeScene;

/// The node that the lab's pods are bound to.
pub const NODE_NAME: &str = "node-a";

const PORT: u16 = 6443;

/// The definition of `PeerAuthentication`, under the versions that are served.
#[must_use]
pub fn definition(versions: &[&str]) -> Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = |name: &&str| {
        json!({"name": name, "served": true, "storage": *name == versions[0],
               "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": schema}}}})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "peerauthentications.security.istio.io"},
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": {"kind": "PeerAuthentication", "listKind": "PeerAuthenticationList",
                      "plural": "peerauthentications", "singular": "peerauthentication"},
            "versions": versions.iter().map(version).collect::<Vec<_>>(),
        }
    })
}

/// A control plane. It ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    namespace: String,
}

impl Cluster {
    /// Starts one for a lab.
    ///
    /// # Errors
    /// When its programs are not built or do not start.
    pub fn start(lab: &Lab) -> Result<Self> {
        let cluster = Self { dir: lab.dir().join("kube"), namespace: lab.namespace(NODE) };
        cluster.up()?;
        Ok(cluster)
    }

    /// Starts what does not run of it, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn up(&self) -> Result<()> {
        let netns = format!("/run/netns/{}", self.namespace);
        let xtask = binary("xtask")?.display().to_string();
        let (dir, port) = (self.dir.display().to_string(), PORT.to_string());
        run(&xtask, ["kube", "up", "--dir", &dir, "--port", &port, "--netns", &netns])?.success()?;
        Ok(())
    }

    /// Kills one of its programs: `etcd` or `kube-apiserver`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, program: &str) -> Result<()> {
        let pid = self.pid(program)?;
        kill(pid, Signal::SIGKILL).with_context(|| format!("cannot kill {program}"))?;
        poll::until(&format!("the end of {program}"), Duration::from_secs(10), || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie is as good as gone: whoever inherited it may be slow to bury it.
            ensure!(stat.is_empty() || stat.contains(") Z "), "{stat}");
            Ok(())
        })
    }

    /// Sends a signal to one of its programs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, program: &str, signal: Signal) -> Result<()> {
        kill(self.pid(program)?, signal).with_context(|| format!("cannot signal {program}"))
    }

    fn pid(&self, program: &str) -> Result<Pid> {
        let file = self.dir.join(format!("{program}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("{program} was not started"))?;
        Ok(Pid::from_raw(text.trim().parse()?))
    }

    /// The folder of its data and logs.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Lists that the API server was asked for, and watches that have ended, where `is` takes their path and query; from its
    /// audit log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn asked(&self, is: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.dir.join("audit.log")).context("no audit log")?;
        let asked = text.lines().filter_map(|line| {
            // The last line is being written.
            let event: Value = serde_json::from_str(line).ok()?;
            let complete = event["stage"] == "ResponseComplete";
            // Not what it asks itself, nor kubelets and controllers.
            let own = event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kube"));
            event["requestURI"].as_str().filter(|_| complete && !own).map(str::to_owned)
        });
        Ok(asked.filter(|uri| is(uri)).collect())
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A kubeconfig of a user who may do only what a role grants him.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_of(&self, user: &str) -> Result<PathBuf> {
        let text = fs::read_to_string(self.kubeconfig())?;
        let path = self.dir.join(format!("{user}.kubeconfig"));
        fs::write(&path, text.replace("user: {client-", &format!("user: {{as: {user}, client-")))?;
        Ok(path)
    }

    /// Runs work with a client, in the node's namespace.
    ///
    /// # Errors
    /// When there is no client, or the work fails.
    pub fn with<T: Send, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnOnce(Client) -> F + Send,
    ) -> Result<T> {
        crate::lab::inside(&self.namespace, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                // Another thread may have said so already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let file = Kubeconfig::read_from(self.kubeconfig())?;
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
                work(Client::try_from(config)?).await
            })
        })?
    }

    /// Creates or replaces an object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.with(async |client| apply(&client, object).await)
    }

    /// The same from YAML documents.
    ///
    /// # Errors
    /// As [`Cluster::apply`].
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        for document in serde_saphyr::from_multiple::<Value>(text)? {
            self.apply(&document)?;
        }
        Ok(())
    }

    /// Removes an object at once, without a grace period.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&self, version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Result<()> {
        let parameters = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.delete_with(version, kind, namespace, name, &parameters)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_with(
        &self,
        version: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        parameters: &DeleteParams,
    ) -> Result<()> {
        self.with(async |client| {
            api(&client, version, kind, namespace).delete(name, parameters).await?;
            Ok(())
        })
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_policy(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete("security.istio.io/v1", "PeerAuthentication", Some(namespace), name)
    }

    /// Installs the definition of `PeerAuthentication` and waits until it is served.
    ///
    /// # Errors
    /// When it is not.
    pub fn install(&self, versions: &[&str]) -> Result<()> {
        self.apply(&definition(versions))?;
        for version in versions {
            poll::until("the definition to be served", Duration::from_secs(20), || {
                let version = format!("security.istio.io/{version}");
                self.with(async |client| {
                    api(&client, &version, "PeerAuthentication", Some("default"))
                        .list(&kube::api::ListParams::default())
                        .await?;
                    Ok(())
                })
            })?;
        }
        Ok(())
    }

    /// Removes the definition of `PeerAuthentication` and with it all policies; waits until it is gone.
    ///
    /// # Errors
    /// When it stays.
    pub fn uninstall(&self) -> Result<()> {
        let (version, kind, name) =
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "peerauthentications.security.istio.io");
        self.delete(version, kind, None, name)?;
        poll::until("the definition to be gone", Duration::from_secs(30), || {
            self.with(async |client| {
                let found = api(&client, version, kind, None).get_opt(name).await?;
                ensure!(found.is_none(), "it is there");
                Ok(())
            })
        })
    }

    /// Creates namespaces and the lab's pods, bound to the node and running at the lab's addresses.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn describe(&self, lab: &Lab) -> Result<()> {
        let mut namespaces: Vec<&str> = lab.pods().iter().map(|pod| pod.namespace.as_str()).collect();
        namespaces.push("istio-system");
        namespaces.sort_unstable();
        namespaces.dedup();
        for name in namespaces {
            self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
        }
        for pod in lab.pods() {
            self.add_pod(pod, NODE_NAME, &pod.addresses())?;
        }
        Ok(())
    }

    /// Creates a pod on a node and reports it as running at these addresses; none: as created only.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn add_pod(&self, pod: &Pod, node: &str, addresses: &[IpAddr]) -> Result<()> {
        let object = pod_object(pod, node);
        self.with(async |client| {
            apply(&client, &object).await?;
            if addresses.is_empty() {
                return Ok(());
            }
            report(&client, &pod.namespace, &pod.name, addresses).await
        })
    }

    /// Removes a pod's object at once.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_pod(&self, pod: &Pod) -> Result<()> {
        self.delete("v1", "Pod", Some(&pod.namespace), &pod.name)
    }

    /// Starts an agent for the lab that reads this cluster, and waits until it enforces.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn agent(&self, lab: &Lab, more: &[&str]) -> Result<Running> {
        let mut agent = self.start_agent(lab, &self.kubeconfig(), more)?;
        lab.wait_enforcing(&mut agent)?;
        Ok(agent)
    }

    /// Starts an agent with a kubeconfig, without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, lab: &Lab, kubeconfig: &std::path::Path, more: &[&str]) -> Result<Running> {
        let mut words = vec![crate::agent::enforcer_binary()?.display().to_string()];
        let kubeconfig = kubeconfig.display().to_string();
        let own = ["run", "--kube", "--kubeconfig", &kubeconfig, "--node-name", NODE_NAME];
        words.extend(own.iter().chain(more).map(|&word| word.to_owned()));
        words.extend(lab.places());
        lab.spawn(NODE, words)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let dir = self.dir.display().to_string();
        let ended = binary("xtask")
            .and_then(|xtask| run(&xtask.display().to_string(), ["kube", "down", "--dir", &dir])?.success());
        if let Err(error) = ended {
            eprintln!("control plane in {dir}: {error:#}");
        }
    }
}

/// A pod as its creator describes it.
fn pod_object(pod: &Pod, node: &str) -> Value {
    let map = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeMap<_, _>>();
    let ports: Vec<Value> = pod.ports.iter().map(|port| json!({"containerPort": port})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": pod.namespace, "name": pod.name,
                     "labels": map(&pod.labels), "annotations": map(&pod.annotations)},
        "spec": {"nodeName": node, "serviceAccountName": pod.service_account,
                 "containers": [{"name": "app", "image": "app", "ports": ports}]},
    })
}

/// Reports a pod as running, as its kubelet would.
///
/// # Errors
/// When the API server refuses.
pub async fn report(client: &Client, namespace: &str, name: &str, addresses: &[IpAddr]) -> Result<()> {
    let first = addresses.first().context("a pod that runs has an address")?;
    let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let status = json!({"status": {"phase": "Running", "podIP": first, "podIPs": ips}});
    let pods = api(client, "v1", "Pod", Some(namespace));
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Creates an object, or replaces it when there is one.
///
/// # Errors
/// When the API server refuses it.
pub async fn apply(client: &Client, object: &Value) -> Result<Value> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let field = |name: &str| text(&object[name]).with_context(|| format!("an object without {name}"));
    let name = text(&object["metadata"]["name"]).context("an object without a name")?;
    let namespace = text(&object["metadata"]["namespace"]);
    let api = api(client, &field("apiVersion")?, &field("kind")?, namespace.as_deref());
    let mut new: DynamicObject = serde_json::from_value(object.clone())?;
    for _ in 0..5 {
        let done = match api.get_opt(&name).await? {
            Some(old) => {
                new.metadata.resource_version = old.metadata.resource_version;
                api.replace(&name, &PostParams::default(), &new).await
            }
            None => api.create(&PostParams::default(), &new).await,
        };
        match done {
            Ok(done) => return Ok(serde_json::to_value(done)?),
            // Somebody else was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => new.metadata.resource_version = None,
            Err(error) => return Err(error).with_context(|| format!("cannot apply {name}")),
        }
    }
    bail!("{name} changes all the time")
}

/// The API of a kind; cluster-wide without a namespace.
#[must_use]
pub fn api(client: &Client, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}
