//! The lab itself, without any enforcement: if this fails, no other suite says anything.

use std::process::Command;

use anyhow::{Context, Result};
use enforcer_tests::lab::{Topology, demo_dir, run};
use enforcer_tests::record::End;
use enforcer_tests::{Lab, Pod};

#[test]
fn both_clients_are_served_over_both_families_and_topologies() -> Result<()> {
    for topology in [Topology::Routed, Topology::Bridge] {
        let lab = Lab::with(topology, Pod::cast())?;
        let (_frontend, records) = lab.sidecar("frontend", 8080)?;
        for family in ["-4", "-6"] {
            let plain = lab.curl("sleep", &[family, "http://frontend.hipstershopv1v2:8080"])?;
            assert_eq!((plain.code, plain.stdout.as_str()), (0, "200\n"), "{plain:?}");
            let mesh = lab.mesh_curl("loadgenerator", &[family, "https://frontend.hipstershopv1v2:8080"])?;
            assert_eq!((mesh.code, mesh.stdout.as_str()), (0, "200\n"), "{mesh:?}");
        }
        let records = records.at_least(4)?;
        assert_eq!(records.iter().filter(|record| record.class == "tls").count(), 2);
        assert!(records.iter().all(|record| record.end == End::Eof && record.read > 0), "{records:?}");
    }
    Ok(())
}

#[test]
fn the_front_refuses_clients_without_a_certificate() -> Result<()> {
    let lab = Lab::new()?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let authority = lab.authority().certificate.display().to_string();
    let url = "https://frontend.hipstershopv1v2:8080";
    let output = lab.curl("sleep", &["--cacert", &authority, url])?;
    assert_ne!(output.code, 0, "served without a certificate: {output:?}");
    Ok(())
}

#[test]
fn several_labs_run_at_once_and_leave_nothing() -> Result<()> {
    let labs = [Lab::new()?, Lab::new()?];
    let servers = labs.iter().map(|lab| lab.sidecar("frontend", 8080)).collect::<Result<Vec<_>>>()?;
    for lab in &labs {
        let output = lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?;
        assert_eq!(output.stdout, "200\n", "{output:?}");
    }
    let traces: Vec<_> = labs.iter().map(|lab| (lab.namespace(""), lab.dir().to_owned())).collect();
    drop(servers);
    drop(labs);
    let namespaces = run("ip", ["netns", "list"])?.success()?.stdout;
    for (prefix, dir) in traces {
        assert!(!namespaces.contains(&prefix), "left: {namespaces}");
        assert!(!dir.exists(), "left: {}", dir.display());
    }
    Ok(())
}

/// Set for the process that [`a_killed_lab_is_removed_by_the_next`] starts to be killed.
const VICTIM: &str = "ENFORCER_LAB_VICTIM";

#[test]
fn a_killed_lab_is_removed_by_the_next() -> Result<()> {
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::new()?;
        let _server = lab.sidecar("frontend", 8080)?;
        println!("victim {}", lab.namespace(""));
        // Killed without a chance to tidy up, as by the kernel.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
    }
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_killed_lab_is_removed_by_the_next", "--nocapture"])
        .env(VICTIM, "1")
        .output()?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let prefix = output.split("victim ").nth(1).and_then(|rest| rest.lines().next());
    let prefix = prefix.with_context(|| format!("no lab in {output}"))?;

    // This or a lab of another test cleans up.
    let _next = Lab::new()?;
    let namespaces = run("ip", ["netns", "list"])?.success()?.stdout;
    assert!(!namespaces.contains(prefix), "left: {namespaces}");
    Ok(())
}

#[test]
fn the_demo_documents_describe_the_cast() -> Result<()> {
    let text = std::fs::read_to_string(demo_dir().join("pods.yaml"))?;
    let documents: Vec<String> = Pod::cast().iter().map(Pod::manifest).collect();
    let body: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(format!("{}\n", body.join("\n")), documents.join("---\n"));
    Ok(())
}
