//! Refusals as Kubernetes Events of the pod that they are about.

use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::policy;
use enforcer_tests::cluster::{KubeScene, api};
use enforcer_tests::poll;
use kube::api::ListParams;

const NAMESPACE: &str = "hipstershopv1v2";

/// What is told of the frontend.
fn notes(scene: &KubeScene) -> Result<Vec<String>> {
    scene.cluster.with(async |client| {
        let events = api(&client, "events.k8s.io/v1", "Event", Some(NAMESPACE));
        let all = events.list(&ListParams::default()).await?;
        let of_frontend = all.items.into_iter().filter(|event| event.data["regarding"]["name"] == "frontend");
        Ok(of_frontend.map(|event| event.data["note"].as_str().unwrap_or_default().to_owned()).collect())
    })
}

#[test]
fn a_client_of_another_node_is_told_of_once_and_by_its_name() -> Result<()> {
    let scene = KubeScene::new(&["v1"])?;
    // To the agent it is a pod elsewhere, whose name must be asked for.
    let sleep = scene.lab.pod("sleep").clone();
    scene.cluster.delete_pod(&sleep)?;
    scene.cluster.add_pod(&sleep, "node-b", &sleep.addresses())?;
    scene.cluster.apply_yaml(&policy("istio-system", "default", None, "STRICT", &[]))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    let refused = || -> Result<()> {
        assert_eq!(scene.lab.curl("sleep", &["-4", "http://frontend.hipstershopv1v2:8080"])?.code, 56);
        Ok(())
    };
    refused()?;
    refused()?;
    let told = poll::until("the event", Duration::from_secs(20), || {
        let notes = notes(&scene)?;
        ensure!(!notes.is_empty(), "nothing is told");
        Ok(notes)
    })?;
    assert!(matches!(told.as_slice(), [one] if one.contains("from noistio/sleep to port 8080")), "{told:?}");
    // Now that its name is known it is not told of again.
    refused()?;
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(notes(&scene)?, told);
    Ok(())
}
