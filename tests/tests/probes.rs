//! Who may probe a STRICT pod in plaintext: sockets of the node, at the ports that the pod names for probes. Its address alone,
//! which forwarded packets carry too, exempts nobody.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::Lab;
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::{NODE, Running};
use enforcer_tests::record::Records;

const PORT: u16 = 8080;

/// A frontend that names its port for probes, and an adservice that names none.
fn lab() -> Result<(Lab, Vec<(Running, Records)>)> {
    let lab = Lab::new()?;
    lab.describe()?;
    let probe = "      readinessProbe:\n        httpGet:\n          port: 8080\n      ports:\n";
    let manifest = lab.pod("frontend").manifest();
    ensure!(manifest.contains("      ports:\n"), "{manifest}");
    let cluster = fs::read_to_string(lab.manifests().join("cluster.yaml"))?;
    lab.apply("cluster.yaml", &cluster.replace(&manifest, &manifest.replace("      ports:\n", probe)))?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let servers = vec![lab.sidecar("frontend", PORT)?, lab.sidecar("adservice", 9555)?];
    Ok((lab, servers))
}

fn start(lab: &Lab, more: &[&str]) -> Result<Running> {
    let agent = lab.agent_with(more)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    lab.wait_port_mode("frontend", PORT, Mode::STRICT)?;
    Ok(agent)
}

fn url(lab: &Lab, pod: &str, port: u16, v6: bool) -> String {
    format!("http://{}/", lab.address(pod, port, v6))
}

/// What curl prints and how it ends, run by the node itself.
fn from_node(lab: &Lab, url: &str) -> Result<(String, i32)> {
    let output = lab.curl(NODE, &[url])?;
    Ok((output.stdout.trim().to_owned(), output.code))
}

#[test]
fn the_node_probes_what_the_pod_names() -> Result<()> {
    let (lab, servers) = lab()?;
    let _agent = start(&lab, &["--kubelet-cgroup", "any"])?;
    for v6 in [false, true] {
        assert_eq!(from_node(&lab, &url(&lab, "frontend", PORT, v6))?, ("200".to_owned(), 0));
        assert_eq!(from_node(&lab, &url(&lab, "adservice", 9555, v6))?, ("000".to_owned(), 56));
        let other = lab.curl("sleep", &[&url(&lab, "frontend", PORT, v6)])?;
        assert_eq!((other.stdout.trim(), other.code), ("000", 56));
    }
    assert_eq!(lab.count(Verdict::ALLOW, Reason::PROBE)?.connections, 2);
    assert!(servers[1].1.all()?.iter().all(|record| record.read == 0));
    Ok(())
}

#[test]
fn what_the_node_forwards_in_its_own_name_is_no_probe() -> Result<()> {
    let (lab, servers) = lab()?;
    let _agent = start(&lab, &["--kubelet-cgroup", "any"])?;
    let rules = lab.new_file("masquerade.nft");
    let text = "table inet enforcer_test {\n\
                  chain out {\n\
                    type nat hook postrouting priority 100;\n\
                    ip saddr 10.244.0.20 tcp dport 8080 snat ip to 10.244.0.1\n\
                    ip6 saddr fd00:10:244::20 tcp dport 8080 snat ip6 to fd00:10:244::1\n\
                  }\n\
                }\n";
    fs::write(&rules, text)?;
    lab.exec(NODE, ["nft", "-f", &rules.display().to_string()])?.success()?;
    for v6 in [false, true] {
        let before = lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections;
        let masked = lab.curl("sleep", &[&url(&lab, "frontend", PORT, v6)])?;
        assert_eq!((masked.stdout.trim(), masked.code), ("000", 56), "{masked:?}");
        assert_eq!(lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections, before + 1);
        // The node's own probe goes on beside it.
        assert_eq!(from_node(&lab, &url(&lab, "frontend", PORT, v6))?, ("200".to_owned(), 0));
    }
    // Each came from an address of the node, as the server saw, and only the probes were read.
    let records = servers[0].1.at_least(4)?;
    assert_eq!(records.iter().filter(|record| record.read > 0).count(), 2, "{records:?}");
    Ok(())
}

/// A cgroup of its own, removed at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup v2 is mounted")?;
        let root = mount.split(' ').nth(4).context("no mount point")?;
        let path = PathBuf::from(root).join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// curl, by a process in this cgroup on the node.
    fn curl(&self, lab: &Lab, url: &str) -> Result<(String, i32)> {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec curl -sS --max-time 20 -o /dev/null -w '%{{http_code}}' {url}",
            self.0.display()
        );
        let output = lab.inside(NODE, || Command::new("sh").args(["-c", &script]).output())??;
        Ok((String::from_utf8(output.stdout)?, output.status.code().unwrap_or(-1)))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn of_the_nodes_processes_only_the_kubelet_probes() -> Result<()> {
    let (lab, _servers) = lab()?;
    let name = format!("enforcer-test-{}.service", std::process::id());
    let mut agent = lab.start_agent(&["--kubelet-cgroup", &name])?;
    lab.wait_enforcing(&mut agent)?;
    lab.wait_port_mode("frontend", PORT, Mode::STRICT)?;
    // Before it is there nobody is the kubelet.
    let url = url(&lab, "frontend", PORT, false);
    assert_eq!(from_node(&lab, &url)?, ("000".to_owned(), 56));
    assert!(lab.enforcer(&["status"])?.stdout.contains("--kubelet-cgroup"));
    for _restart in 0..2 {
        let kubelet = Cgroup::new(&name)?;
        enforcer_tests::poll::until("the kubelet's probe", std::time::Duration::from_secs(10), || {
            let got = kubelet.curl(&lab, &url)?;
            ensure!(got == ("200".to_owned(), 0), "{got:?}");
            Ok(())
        })?;
        assert_eq!(from_node(&lab, &url)?, ("000".to_owned(), 56));
    }
    Ok(())
}
