//! Bad manifests: one sentence each that says where, and the last good policy stays in force.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::{MESH_STRICT, policy};
use enforcer_tests::{Scene, poll};

const LIMIT: Duration = Duration::from_secs(5);

/// Waits for a line of the agent's log that has all these words.
fn wait_for_line(scene: &Scene, words: &[&str]) -> Result<()> {
    poll::until(&format!("a log line with {words:?}"), LIMIT, || {
        let output = scene.agent.output();
        let found = output.lines().any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(found, "the log is:\n{output}");
        Ok(())
    })
}

/// Waits for the sentence about the file `bad.yaml` and checks that enforcement goes on.
fn assert_reported(scene: &Scene, text: &str, words: &[&str]) -> Result<()> {
    scene.lab.apply("bad.yaml", text)?;
    let words: Vec<&str> = std::iter::once("bad.yaml").chain(words.iter().copied()).collect();
    wait_for_line(scene, &words)?;
    assert_strict(scene)
}

fn assert_strict(scene: &Scene) -> Result<()> {
    for address in scene.lab.pod("frontend").addresses() {
        assert_eq!(scene.lab.endpoint(address)?.mode, Mode::STRICT);
    }
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    let plain = scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{plain:?}");
    Ok(())
}

#[test]
fn broken_yaml() -> Result<()> {
    assert_reported(&Scene::strict()?, "apiVersion: v1\nkind: [Pod\nmetadata: }\n", &[])
}

#[test]
fn the_document_and_the_field_are_named() -> Result<()> {
    let text = format!("{MESH_STRICT}---\n{}", policy("hipstershopv1v2", "frontend", None, "strict", &[]));
    assert_reported(&Scene::strict()?, &text, &["2", "mode", "strict"])
}

#[test]
fn wrong_types() -> Result<()> {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [1, 2]\n  namespace: x\n";
    assert_reported(&Scene::strict()?, text, &["name"])
}

#[test]
fn unknown_kind() -> Result<()> {
    let text = "apiVersion: example.org/v1\nkind: Surprise\nmetadata:\n  name: x\n";
    assert_reported(&Scene::strict()?, text, &["Surprise"])
}

#[test]
fn empty_file() -> Result<()> {
    assert_reported(&Scene::strict()?, "", &[])
}

#[test]
fn a_file_that_breaks_keeps_its_last_good_content() -> Result<()> {
    let scene = Scene::strict()?;
    scene.lab.apply("mesh.yaml", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nspec: ][\n")?;
    wait_for_line(&scene, &["mesh.yaml"])?;
    assert_strict(&scene)?;
    scene.lab.apply("mesh.yaml", &MESH_STRICT.replace("STRICT", "DISABLE"))?;
    scene.lab.wait_mode("frontend", Mode::DISABLE)
}

/// What is misspelt may be what says which object it is, and null may make a selector wider than it was meant.
#[test]
fn a_policy_whose_kind_or_name_is_misspelt_stays_in_force() -> Result<()> {
    let scene = Scene::strict()?;
    for (right, wrong) in [
        ("kind: PeerAuthentication", "kind: PeerAuthentcation"),
        ("namespace: istio-system", "namespac: istio-system"),
        ("name: default", "nam: default"),
        ("kind: PeerAuthentication", "kid: PeerAuthentication"),
    ] {
        ensure!(MESH_STRICT.contains(right), "{MESH_STRICT}");
        scene.lab.apply("mesh.yaml", &MESH_STRICT.replace(right, wrong))?;
        let word =
            wrong.split_once(": ").map_or(wrong, |(key, value)| if key == "kind" { value } else { key });
        let shown = if word == "kid" { "has no `kind`" } else { word };
        wait_for_line(&scene, &["mesh.yaml", shown])?;
        assert_strict(&scene)?;
    }
    // A dated policy that only its null selector makes mesh-wide is not put in force over what is.
    let open = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: hipstershopv1v2, creationTimestamp: '2020-01-01T00:00:00Z'}\nspec: {selector: null, mtls: {mode: DISABLE}}\n";
    assert_reported(&scene, open, &["spec.selector", "null"])
}

#[test]
fn a_folder_that_vanishes() -> Result<()> {
    let scene = Scene::strict()?;
    let (folder, aside) = (scene.lab.manifests(), scene.lab.dir().join("aside"));
    fs::rename(&folder, &aside)?;
    wait_for_line(&scene, &["manifests"])?;
    assert_strict(&scene)?;
    // And it is read again when it is back.
    fs::rename(&aside, &folder)?;
    scene.lab.apply("mesh.yaml", &MESH_STRICT.replace("STRICT", "DISABLE"))?;
    scene.lab.wait_mode("frontend", Mode::DISABLE)
}
