//! Configuration of containerd, the network plug-in and the kubelet.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::ADDRESS;

/// How pods are connected to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Network {
    /// All on one bridge.
    #[default]
    Bridge,
    /// Each by a pair of its own and a route, as Calico and the plug-ins of AWS and Google do.
    Ptp,
}

impl Network {
    /// The plug-in's own fields.
    const fn plugin(self) -> &'static str {
        match self {
            Self::Bridge => r#""type":"bridge","bridge":"cni0","isGateway":true"#,
            Self::Ptp => r#""type":"ptp""#,
        }
    }
}

/// The image that holds a pod's namespaces.
pub(super) const PAUSE: &str = "localhost/pause:1";

/// Folders that the node's mount namespace hides behind its own.
pub(super) const PLACES: [&str; 6] = [
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
    "/run/containerd",
    "/run/enforcer",
    "/var/lib/enforcer",
];

/// Writes all of it into the node's folder. `authority` signs the certificates of those who may ask the kubelet.
pub(super) fn write(
    folder: &Path,
    programs: &Path,
    cgroup: &str,
    authority: &Path,
    network: Network,
) -> Result<()> {
    let (home, programs, network) = (folder.display(), programs.display(), network.plugin());
    let plugin = format!(
        r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{{network},"ipMasq":false,
"ipam":{{"type":"host-local","dataDir":"{home}/ipam","ranges":[[{{"subnet":"10.244.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}
"#
    );
    let containerd = format!(
        r#"version = 2
root = "{home}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{programs}/cni"
    conf_dir = "{home}/cni"
"#
    );
    let authority = authority.display();
    // No iptables, no change of the machine's settings, no eviction because the machine's disk is full; short periods
    // make the node Ready sooner.
    let kubelet = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {ADDRESS}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}, x509: {{clientCAFile: {authority}}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
cgroupsPerQOS: true
enforceNodeAllocatable: []
evictionHard: {{memory.available: 1Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%}}
imageGCHighThresholdPercent: 100
failSwapOn: false
makeIPTablesUtilChains: false
readOnlyPort: 0
resolvConf: /dev/null
runtimeRequestTimeout: 2m
nodeStatusUpdateFrequency: 2s
syncFrequency: 5s
"
    );
    for (name, text) in
        [("cni/10-pods.conflist", plugin), ("containerd.toml", containerd), ("kubelet.yaml", kubelet)]
    {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
