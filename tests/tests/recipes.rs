//! The recipes of `docs/maps.md` do what they say, and its dumps are what bpftool prints (`UPDATE_DOCS=1` writes them anew).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_common::map::LAYOUT_VERSION;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::client::tls;
use enforcer_tests::lab::NODE;
use enforcer_tests::{Lab, Scene, flood, poll};
use serde_json::Value;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/maps.md")
}

/// The commands under "Recipes", in their order.
fn recipes() -> Result<Vec<String>> {
    let page = std::fs::read_to_string(path())?;
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

/// The maps that bpftool prints, and those that it cannot.
const DUMPED: [&str; 17] = [
    "ENDPOINTS",
    "LINKS",
    "PORT_MODES",
    "EXEMPT",
    "HALF_OPEN",
    "FLOWS",
    "TRANSIENT",
    "CLIENTS",
    "OUTBOUND",
    "OUTBOUND_ENDED",
    "COUNTERS",
    "WORKLOAD_COUNTERS",
    "PENDING",
    "SETTINGS",
    "RESET_BUDGET",
    "CLIENT_RESETS",
    "EVENT_BUDGET",
];
const OPAQUE: [&str; 2] = ["SOCKETS", "EVENTS"];
/// Empty where no pod is enforced at its own device and none is bypassed.
const OF_OWN_DEVICES: [&str; 3] = ["BYPASSED", "OWN_PROBES", "POD_LINKS"];

/// The command that the page names, and what it prints for each map.
fn section(page: &str) -> Result<(String, Vec<(String, Value)>)> {
    let (_, section) = page.split_once("## Dumps\n").context("no section Dumps")?;
    let (section, _) = section.split_once("\n## ").context("the page ends with the dumps")?;
    let (_, rest) = section.split_once("```sh\n").context("no command")?;
    let (command, rest) = rest.split_once("```").context("an open block")?;
    let mut dumps = Vec::new();
    for block in rest.split("```json\n").skip(1) {
        for line in block.split("```").next().unwrap_or_default().lines() {
            let (name, json) = line.split_once(": ").with_context(|| line.to_owned())?;
            dumps.push((name.to_owned(), serde_json::from_str(json).with_context(|| line.to_owned())?));
        }
    }
    Ok((command.trim().to_owned(), dumps))
}

/// Names of fields and kinds of values; what the values are changes with every run.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|(name, value)| format!("{name}:{}", shape(value))).collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(values) => format!("[{}]", values.iter().map(shape).collect::<Vec<_>>().join(",")),
        Value::String(_) => "word".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) | Value::Null => value.to_string(),
    }
}

/// An entry in every map, as long as the connections are there.
fn fill(lab: &Lab) -> Result<(std::net::TcpStream, tls::Stream)> {
    lab.curl("sleep", &["-4", "http://frontend.hipstershopv1v2:8080"])?.success()?;
    assert_eq!(lab.curl("sleep", &["-4", "http://adservice.hipstershopv1v2:9555"])?.code, 56);
    lab.mesh_get("loadgenerator", "frontend", 8080)?;
    let (shape, host) = (tls::Shape::default(), lab.pod("adservice").host());
    let stream = lab.connect("loadgenerator", lab.address("adservice", 9555, false))?;
    let mut open = tls::start(stream, tls::config(lab, "loadgenerator", shape)?, &host, shape)?;
    tls::get(&mut open, &host)?;
    flood::syns(lab, "sleep", lab.address("frontend", 8080, false), 1, 1)?;
    // The first half of what could become a hello.
    let mut half = lab.connect("sleep", lab.address("adservice", 9555, false))?;
    half.write_all(b"\x16\x03\x01")?;
    Ok((half, open))
}

#[test]
fn the_dumps_are_what_bpftool_prints() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.apply("frontend.yaml", FRONTEND_PERMISSIVE)?;
    let agent = lab.agent_with(&["--undecided-timeout", "60"])?;
    let scene = Scene { agent, lab };
    let lab = &scene.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    lab.wait_mode("adservice", Mode::STRICT)?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    let _open = fill(lab)?;
    let folder = lab.map_path("COUNTERS")?.parent().context("the map is in no folder")?.to_owned();
    let files = std::fs::read_dir(&folder)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    let files: BTreeSet<String> = files.collect::<Result<_>>()?;
    let told: BTreeSet<String> =
        DUMPED.iter().chain(&OPAQUE).chain(&OF_OWN_DEVICES).map(|&name| name.to_owned()).collect();
    assert_eq!(files, told, "the page is about other maps");

    let page = std::fs::read_to_string(path())?;
    let (command, dumps) = section(&page)?;
    let mut lines = String::new();
    for name in DUMPED {
        let command = format!("M={}; {}", folder.display(), command.replace("NAME", name));
        let (text, printed) = poll::until(&format!("an entry in {name}"), Duration::from_secs(5), || {
            let output = lab.exec(NODE, ["sh", "-c", &command])?.success()?;
            let printed: Value =
                serde_json::from_str(&output.stdout).with_context(|| format!("{name}: {output:?}"))?;
            Ok((output.stdout, printed))
        })?;
        let _ = writeln!(lines, "{name}: {}", text.trim());
        if std::env::var_os("UPDATE_DOCS").is_none() {
            let (_, told) =
                dumps.iter().find(|(map, _)| map == name).with_context(|| format!("no {name}"))?;
            assert_eq!(shape(told), shape(&printed), "{name}: run UPDATE_DOCS=1 with this test");
        }
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let (before, rest) = page.split_once("```json\n").context("no block for the dumps")?;
        let (_, after) = rest.split_once("```").context("an open block")?;
        std::fs::write(path(), format!("{before}```json\n{lines}```{after}"))?;
    } else {
        assert_eq!(dumps.len(), DUMPED.len());
    }
    Ok(())
}
