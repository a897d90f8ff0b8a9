//! A real node with real pods: kubelet, containerd and a network plug-in beside a control plane, in namespaces of their
//! own. `cargo xtask kube node` raises it; it ends when dropped.

pub mod load;
pub mod remains;
pub mod walk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::lab::{Authority, Output, binary, demo_dir, finish_within};
use crate::{Pod, poll};

/// The namespace that the agent is installed into.
pub const NAMESPACE: &str = "enforcer-system";
/// How long a command may take; helm waits for pods.
const LIMIT: Duration = Duration::from_mins(4);
/// How long something in the cluster may take to come about.
pub const PATIENCE: Duration = Duration::from_mins(1);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A node. It ends when dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: TempDir,
    kubectl: PathBuf,
    enter: Vec<String>,
}

impl Node {
    /// Raises one with the image of the agent and that of the lab.
    ///
    /// `ENFORCER_IMAGE` names the archive of the agent's image; without it, it is made of this build's program.
    ///
    /// # Errors
    /// When something is not built or does not start.
    pub fn up() -> Result<Self> {
        Self::up_on("bridge")
    }

    /// The same with the pods on a network of this kind: `bridge`, or `ptp` for a pair and a route for each.
    ///
    /// # Errors
    /// As [`Node::up`].
    pub fn up_on(network: &str) -> Result<Self> {
        // Short: the runtime's sockets lie below it.
        let dir = tempfile::Builder::new().prefix("enforcer-node-").tempdir()?;
        let name = format!("enforcer-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let images = dir.path().join("images");
        let words = ["image", "--development", "--lab", "--output"].map(String::from);
        xtask(words.into_iter().chain([images.display().to_string()]), &[])?;
        let agent =
            std::env::var_os("ENFORCER_IMAGE").map_or_else(|| images.join("enforcer.tar"), PathBuf::from);
        let state = dir.path().join("kube");
        let mut words =
            ["kube", "node", "up", "--network", network, "--name", &name, "--dir"].map(String::from).to_vec();
        words.push(state.display().to_string());
        for image in [&agent, &images.join("lab.tar")] {
            words.extend([String::from("--image"), image.display().to_string()]);
        }
        // From here on there is something to end, also when it does not come up.
        let mut node = Self { name, dir, kubectl: PathBuf::new(), enter: Vec::new() };
        let said = xtask(words, &[])?;
        let line = said.stdout.lines().find_map(|line| line.strip_prefix("# "));
        node.enter =
            line.context("xtask does not say how to enter the node")?.split(' ').map(String::from).collect();
        let programs = xtask(["kube", "build", "--node"].map(String::from), &[])?;
        let programs =
            programs.stdout.lines().last().context("xtask names no folder of programs")?.to_owned();
        node.kubectl = Path::new(&programs).join("kubectl");
        Ok(node)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kube/admin.kubeconfig")
    }

    fn prefix(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs kubectl; `input` is its standard input.
    ///
    /// # Errors
    /// When it cannot be run; not when it fails.
    pub fn kubectl_with(&self, words: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = self.prefix();
        command.arg(&self.kubectl).args(words);
        finish_within(command, input, LIMIT)
    }

    /// The standard output of kubectl.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        Ok(self.kubectl_with(words, None)?.success()?.stdout)
    }

    /// What kubectl gets, as JSON.
    ///
    /// # Errors
    /// When it fails.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(words);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, documents: &str) -> Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], Some(documents))?.success()?;
        Ok(())
    }

    /// Runs a command in a pod's first container.
    ///
    /// # Errors
    /// When it cannot be run; not when it fails.
    pub fn exec(&self, pod: &str, words: &[&str]) -> Result<Output> {
        let (namespace, name) = pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
        let mut all = vec!["exec", "-n", namespace, name, "--"];
        all.extend(words);
        self.kubectl_with(&all, None)
    }

    /// Runs a command in the node's namespaces.
    ///
    /// # Errors
    /// When it cannot be run; not when it fails.
    pub fn on_node(&self, words: &[&str]) -> Result<Output> {
        let (first, rest) = self.enter.split_first().context("the node is not up")?;
        let mut command = Command::new(first);
        command.args(rest).args(words);
        finish_within(command, None, LIMIT)
    }

    /// Runs a command outside the node, where kubectl is on the path and knows the cluster; `path`: folders searched first.
    ///
    /// # Errors
    /// When it cannot be run; not when it fails.
    pub fn beside(&self, path: &Path, words: &[&str]) -> Result<Output> {
        let folders = [path.to_owned(), self.kubectl.parent().unwrap_or(path).to_owned()];
        let own = std::env::var_os("PATH").unwrap_or_default();
        let mut command = self.prefix();
        command.env("PATH", std::env::join_paths(folders.into_iter().chain(std::env::split_paths(&own)))?);
        command.args(words);
        finish_within(command, None, LIMIT)
    }

    /// Installs, upgrades or uninstalls the chart with Helm's engine, waiting for the end.
    ///
    /// # Errors
    /// When Helm says no.
    pub fn helm(&self, action: &str, values: &Value) -> Result<()> {
        let (values, kubeconfig) = (values.to_string(), self.kubeconfig().display().to_string());
        let words = ["chart", "helm", action, "--values", &values, "--kubeconfig", &kubeconfig];
        let prefix = ["nsenter", &format!("--net=/run/netns/{}", self.name)].map(String::from);
        xtask(words.map(String::from), &prefix)?;
        Ok(())
    }

    /// Waits until a pod is ready and gives its address.
    ///
    /// # Errors
    /// When it is not within a minute.
    pub fn ready(&self, pod: &str) -> Result<String> {
        let (namespace, name) = pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
        poll::until(&format!("{pod} to be ready"), PATIENCE, || {
            let status = self.get(&["-n", namespace, "pod", name])?["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|found| found["type"] == "Ready" && found["status"] == "True");
            ensure!(ready, "{status}");
            status["podIP"].as_str().map(str::to_owned).context("it has no address")
        })
    }

    /// The agent's pod, once there is exactly one and it is ready.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub fn agent(&self) -> Result<String> {
        poll::until("one agent, ready", PATIENCE, || {
            let pods = self.get(&["-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=enforcer"])?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let [pod] = pods.as_slice() else { anyhow::bail!("there are {} agents", pods.len()) };
            let ready = &pod["status"]["containerStatuses"][0]["ready"];
            ensure!(*ready == true && pod["metadata"]["deletionTimestamp"].is_null(), "{}", pod["status"]);
            let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
            Ok(format!("{NAMESPACE}/{name}"))
        })
    }

    /// Installs the definition of `PeerAuthentication`, creates the walk-through's namespaces, servers and clients, and
    /// waits for them.
    ///
    /// # Errors
    /// When they do not become ready.
    pub fn populate(&self) -> Result<()> {
        let read = |file: &str| -> Result<String> {
            let path = demo_dir().join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        self.apply(&read("kubernetes/peerauthentication-crd.yaml")?)?;
        // kubectl gives up at once when there is no condition at all yet.
        let wait = ["wait", "--for=condition=Established", "crd/peerauthentications.security.istio.io"];
        poll::until("the definition to be established", PATIENCE, || self.kubectl(&wait))?;
        self.apply(&read("namespaces.yaml")?)?;
        self.certificates()?;
        self.apply(&read("kubernetes/servers.yaml")?)?;
        let frontend = self.ready("hipstershopv1v2/frontend")?;
        let adservice = self.ready("hipstershopv1v2/adservice")?;
        let clients = read("kubernetes/clients.yaml")?;
        self.apply(&clients.replace("FRONTEND", &frontend).replace("ADSERVICE", &adservice))?;
        self.ready("noistio/sleep")?;
        self.ready("hipstershopv1v2/loadgenerator")?;
        Ok(())
    }

    /// The mesh's certificates, as a secret for the pods and as the config map that Istio would write.
    fn certificates(&self) -> Result<()> {
        let folder = self.dir.path().join("mesh");
        let authority = Authority::create(&folder, "mesh")?;
        for name in ["frontend", "adservice", "loadgenerator"] {
            let mut pod = Pod::new("hipstershopv1v2", name, 2);
            "default".clone_into(&mut pod.service_account);
            let own = authority.issue(&pod)?;
            fs::rename(own.certificate, folder.join(format!("{name}.pem")))?;
            fs::rename(own.key, folder.join(format!("{name}.key")))?;
        }
        let files = format!("--from-file={}", folder.display());
        self.kubectl(&["-n", "hipstershopv1v2", "create", "secret", "generic", "mesh", &files])?;
        let root = format!("--from-file=root-cert.pem={}", authority.certificate.display());
        self.kubectl(&["-n", "istio-system", "create", "configmap", "istio-ca-root-cert", &root])?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let words = ["kube", "node", "down", "--name", &self.name, "--dir"].map(String::from);
        let words = words.into_iter().chain([self.dir.path().join("kube").display().to_string()]);
        if let Err(error) = xtask(words, &[]) {
            eprintln!("node {}: {error:#}", self.name);
        }
    }
}

/// Runs this build's xtask, through `prefix`.
fn xtask(words: impl IntoIterator<Item = String>, prefix: &[String]) -> Result<Output> {
    let own = binary("xtask")?.display().to_string();
    let mut line = prefix.iter().cloned().chain([own]).chain(words);
    let mut command = Command::new(line.next().unwrap_or_default());
    command.args(line);
    finish_within(command, None, LIMIT)?.success()
}
