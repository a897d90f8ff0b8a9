//! Policies from a real API server: every change is in force at once, and nothing that goes wrong there opens a pod.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer::agent::state;
use enforcer::certificate::report::CertificateReport;
use enforcer_common::Mode;
use enforcer_tests::agent::policy;
use enforcer_tests::cluster::{self, KubeScene};
use enforcer_tests::lab::Authority;
use enforcer_tests::poll;
use kube::api::ListParams;
use serde_json::{Value, json};

const APP: &str = "frontend.hipstershopv1v2.svc.cluster.local";

fn served() -> (String, i32) {
    ("200".to_owned(), 0)
}

fn reset() -> (String, i32) {
    ("000".to_owned(), 56)
}

fn mesh(mode: &str) -> String {
    policy("istio-system", "default", None, mode, &[])
}

#[test]
fn policies_come_change_and_go() -> Result<()> {
    let scene = KubeScene::new(&["v1", "v1beta1"])?;
    let (lab, cluster) = (&scene.lab, &scene.cluster);
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    assert_eq!(scene.curl()?, served());
    let start = Instant::now();
    cluster.apply_yaml(&mesh("STRICT"))?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    assert!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    assert_eq!(scene.curl()?, reset());
    assert_eq!(scene.curl()?, reset());
    // Where people look first: once, however often it happens.
    let events = poll::until("an event of the pod", Duration::from_secs(10), || {
        let list = cluster.with(async |client| {
            let events = cluster::api(&client, "v1", "Event", Some("hipstershopv1v2"));
            Ok(serde_json::to_value(events.list(&ListParams::default()).await?.items)?)
        })?;
        ensure!(list.as_array().is_some_and(|list| !list.is_empty()), "there is none");
        Ok(list)
    })?;
    let notes: Vec<_> =
        events.as_array().into_iter().flatten().map(|event| event["message"].as_str()).collect();
    let [Some(note)] = notes.as_slice() else { anyhow::bail!("{notes:?}") };
    assert!(
        note.contains("noistio/sleep") || note.contains("10.244.0.20") || note.contains("fd00:10:244::20"),
        "{note}"
    );
    assert!(note.contains("port 8080 was reset by istio-system/default (mesh): PLAINTEXT"), "{note}");

    // A number that only the Service has does nothing, which is said.
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "hipstershopv1v2", "name": "front"},
        "spec": {"selector": {"app": APP}, "ports": [{"port": 80, "targetPort": 8080}]}}))?;
    cluster.apply_yaml(&policy("hipstershopv1v2", "frontend", Some(APP), "STRICT", &[(80, "PERMISSIVE")]))?;
    scene.wait_said("80 is the port of Service front, not of the container, which listens on 8080")?;

    // Written under the older version, read under the newer one.
    let own = |mode: &str| policy("hipstershopv1v2", "frontend", Some(APP), mode, &[]);
    cluster.apply_yaml(&own("PERMISSIVE").replace("istio.io/v1", "istio.io/v1beta1"))?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    assert_eq!(lab.endpoint(lab.pod("adservice").v4().into())?.mode, Mode::STRICT);
    assert_eq!(scene.curl()?, served());

    // Fields of a later release are harmless.
    let mut later: Value = serde_saphyr::from_str(&own("STRICT"))?;
    later["spec"]["futureField"] = json!({"a": [1]});
    later["spec"]["mtls"]["futureField"] = json!(true);
    cluster.apply(&later)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    assert_eq!(scene.curl()?, reset());

    // What cannot be read keeps its last good form, and is told.
    cluster.apply_yaml(&own("LAX"))?;
    scene.wait_said("LAX")?;
    assert_eq!(scene.curl()?, reset());
    cluster.apply_yaml(&own("PERMISSIVE"))?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;

    cluster.delete_policy("hipstershopv1v2", "frontend")?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    cluster.delete_policy("istio-system", "default")?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    assert_eq!(scene.curl()?, served());
    assert_eq!(scene.kind("peerauthentications")?.version.as_deref(), Some("security.istio.io/v1"));
    Ok(())
}

/// Removing the definition sweeps all policies away. Nobody wanted each of them gone.
#[test]
fn without_the_definition_the_last_policy_stays() -> Result<()> {
    let mut scene = KubeScene::new(&["v1beta1"])?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    let beta = |mode: &str| mesh(mode).replace("istio.io/v1", "istio.io/v1beta1");
    scene.cluster.apply_yaml(&beta("STRICT"))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    assert_eq!(scene.kind("peerauthentications")?.version.as_deref(), Some("security.istio.io/v1beta1"));

    scene.cluster.uninstall()?;
    scene.wait_followed("peerauthentications", false)?;
    scene.wait_said("does not serve peerauthentications")?;
    assert_eq!(scene.curl()?, reset());
    let strict = |scene: &KubeScene| -> Result<()> {
        let found = scene.lab.endpoint(scene.lab.pod("frontend").v4().into())?.mode;
        ensure!(found == Mode::STRICT, "it is {found}; the agent said:\n{}", scene.agent.output());
        Ok(())
    };
    strict(&scene)?;

    // An agent that starts meanwhile knows what its predecessor knew.
    scene.agent.kill()?;
    scene.agent = scene.cluster.agent(&scene.lab, &[])?;
    scene.wait_said("peerauthentications were not listed since the agent started")?;
    strict(&scene)?;
    assert_eq!(scene.said("does not serve peerauthentications"), 1, "{}", scene.agent.output());

    // Installed anew, with another version: what the API server has is the policy again.
    scene.cluster.install(&["v1"])?;
    scene.cluster.apply_yaml(&policy("hipstershopv1v2", "frontend", Some(APP), "PERMISSIVE", &[]))?;
    scene.cluster.apply_yaml(&mesh("STRICT"))?;
    scene.wait_followed("peerauthentications", true)?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    scene.lab.wait_mode("adservice", Mode::STRICT)?;
    assert_eq!(scene.kind("peerauthentications")?.version.as_deref(), Some("security.istio.io/v1"));
    Ok(())
}

/// The trust bundle is followed: a server is measured by the roots that the mesh has now.
#[test]
fn the_trust_bundle_may_rotate() -> Result<()> {
    let scene = KubeScene::new(&["v1"])?;
    let (lab, cluster) = (&scene.lab, &scene.cluster);
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let bundle = |text: String| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
               "metadata": {"namespace": "istio-system", "name": "istio-ca-root-cert"},
               "data": {"root-cert.pem": text}})
    };
    let roots = || -> Result<String> {
        let report = CertificateReport::read(&state::certificates_path(&lab.state(), &lab.bpffs()))?;
        report.bundle.context("there is no trust bundle")
    };
    cluster.apply(&bundle(std::fs::read_to_string(&lab.authority().certificate)?))?;
    cluster.apply_yaml(&mesh("STRICT"))?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    let first = poll::until("the first bundle", Duration::from_secs(20), roots)?;
    let other = Authority::create(&lab.dir().join("other"), "another authority")?;
    cluster.apply(&bundle(std::fs::read_to_string(&other.certificate)?))?;
    poll::until("the other bundle", Duration::from_secs(20), || {
        ensure!(roots()? != first, "it is still the first");
        Ok(())
    })
}
