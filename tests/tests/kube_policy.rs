//! Policies from a real API server: every change is in force at once, and nothing that goes wrong there opens a pod.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::policy;
use enforcer_tests::cluster::Cluster;
use enforcer_tests::lab::Running;
use enforcer_tests::{Lab, poll};
use serde_json::json;

/// Dropped in this order.
struct Scene {
    agent: Running,
    cluster: Cluster,
    lab: Lab,
}

fn scene(versions: &[&str]) -> Result<Scene> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    cluster.install(versions)?;
    cluster.describe(&lab)?;
    let agent = cluster.agent(&lab, &[])?;
    Ok(Scene { agent, cluster, lab })
}

/// What curl says to the client outside the mesh: (code, exit).
fn curl(lab: &Lab) -> Result<(String, i32)> {
    let output = lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?;
    Ok((output.stdout.trim().to_owned(), output.code))
}

#[test]
fn policies_come_change_and_go() -> Result<()> {
    let Scene { agent: _agent, cluster, lab } = &scene(&["v1", "v1beta1"])?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    assert_eq!(curl(lab)?, ("200".to_owned(), 0));
    let start = Instant::now();
    cluster.apply_yaml(&policy("istio-system", "default", None, "STRICT", &[]))?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    assert!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    assert_eq!(curl(lab)?, ("000".to_owned(), 56));
    Ok(())
}
