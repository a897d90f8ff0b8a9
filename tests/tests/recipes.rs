//! The recipes of `docs/maps.md` do what they say.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_common::map::LAYOUT_VERSION;
use enforcer_tests::Scene;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::lab::NODE;

/// The commands under "Recipes", in their order.
fn recipes() -> Result<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/maps.md");
    let page = std::fs::read_to_string(page)?;
    let (_, section) = page.split_once("## Recipes\n").context("no section Recipes")?;
    ensure!(section.contains(&format!("/v{LAYOUT_VERSION}/maps")), "the page is about another layout");
    let blocks =
        section.split("```sh\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.trim().to_owned()));
    Ok(blocks.collect())
}

#[test]
fn every_recipe_works_as_it_is_printed() -> Result<()> {
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    let lab = &scene.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    lab.wait_mode("adservice", Mode::STRICT)?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    for _ in 0..3 {
        lab.curl("sleep", &["-4", "http://frontend.hipstershopv1v2:8080"])?.success()?;
    }
    for _ in 0..2 {
        assert_eq!(lab.curl("sleep", &["-4", "http://adservice.hipstershopv1v2:9555"])?.code, 56);
    }
    lab.mesh_curl("loadgenerator", &["-4", "https://adservice.hipstershopv1v2:9555"])?.success()?;

    let id = |pod: &str| anyhow::Ok(lab.endpoint(lab.pod(pod).v4().into())?.workload);
    let (frontend, adservice) = (id("frontend")?, id("adservice")?);
    let expected = [
        vec![
            "ALLOW\tPLAINTEXT_PERMITTED\t3".to_owned(),
            "ALLOW\tTLS\t1".into(),
            "RESET\tPLAINTEXT\t2".into(),
        ],
        vec!["2".to_owned()],
        vec![format!("{adservice}\tPLAINTEXT\t2")],
        vec!["PERMISSIVE".to_owned()],
        vec![
            "10.244.0.10\tPERMISSIVE".to_owned(),
            "10.244.0.11\tSTRICT".into(),
            "10.244.0.12\tSTRICT".into(),
        ],
        vec![format!("10.244.0.20\t{frontend}\t8080\t3"), format!("10.244.0.20\t{adservice}\t9555\t2")],
        vec!["{\"lost\":0,\"suppressed\":0}".to_owned()],
    ];
    let recipes = recipes()?;
    assert_eq!(recipes.len(), expected.len(), "{recipes:#?}");
    let maps = lab.map_path("COUNTERS")?;
    let maps = maps.parent().context("the map is in no folder")?.display();
    for (recipe, mut expected) in recipes.iter().zip(expected) {
        let output = lab.exec(NODE, ["sh", "-c", &format!("M={maps}; {recipe}")])?.success()?;
        let mut lines: Vec<_> = output.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected, "{recipe}\n{}", output.stderr);
    }
    Ok(())
}
