//! A flow record names the policy that decided, also in the moment of a change.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer::telemetry::client;
use enforcer::telemetry::record::{Line, Record};
use enforcer_common::Mode;
use enforcer_tests::agent::policy;
use enforcer_tests::load::{Load, Plaintext, Plan};
use enforcer_tests::{Scene, poll};

const NAMESPACE: &str = "hipstershopv1v2";
const APP: &str = "frontend.hipstershopv1v2.svc.cluster.local";
/// How often the policy changes.
const FLIPS: usize = 20;
/// How long each policy stays.
const STAY: Duration = Duration::from_millis(300);

/// What is wrong with a record, if anything.
fn wrong(record: &Record) -> Option<String> {
    let (Line::Verdict(flow) | Line::End(flow)) = &record.line else { return None };
    let wanted = match (&*flow.verdict, &*flow.reason) {
        ("reset", "PLAINTEXT" | "POLICY_CHANGED") => (Some("hipstershopv1v2/strict"), Some("STRICT")),
        ("allow", "PLAINTEXT_PERMITTED") => (Some("hipstershopv1v2/permissive"), Some("PERMISSIVE")),
        _ => return None,
    };
    ((flow.policy.as_deref(), flow.mode.as_deref()) != wanted).then(|| format!("{record:?}"))
}

#[test]
fn every_record_names_the_policy_that_decided_while_policies_change() -> Result<()> {
    let permissive = policy(NAMESPACE, "permissive", Some(APP), "PERMISSIVE", &[]);
    let strict = policy(NAMESPACE, "strict", Some(APP), "STRICT", &[]);
    let scene = Scene::new(&[("frontend.yaml", &permissive)])?;
    let lab = &scene.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let mut answer = client::follow(&lab.socket(), "/v1/flows?follow=1&last=0&port=8080")?;
    answer.get_ref().set_read_timeout(Some(Duration::from_secs(2)))?;
    let reader = std::thread::spawn(move || -> Result<Vec<Record>> {
        let (mut records, mut line) = (Vec::new(), Vec::new());
        loop {
            match answer.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(records),
                Ok(_) if line.ends_with(b"\n") => {
                    records.push(serde_json::from_slice(&line)?);
                    line.clear();
                }
                Ok(_) => {}
                // Nothing has come for two seconds: the load is over.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(records),
                Err(error) => return Err(error.into()),
            }
        }
    });
    let load = Load::start(
        lab,
        Plan {
            to: "frontend",
            port: 8080,
            tls_from: "loadgenerator",
            plain_from: "sleep",
            lasting: 0,
            fresh: 0,
            plain: 12,
            expected: Plaintext::Either,
            pause: Duration::from_millis(1),
        },
    )?;
    for flip in 0..FLIPS {
        let (text, mode) =
            if flip % 2 == 0 { (&strict, Mode::STRICT) } else { (&permissive, Mode::PERMISSIVE) };
        lab.apply("frontend.yaml", text)?;
        lab.wait_mode("frontend", mode)?;
        std::thread::sleep(STAY);
    }
    load.finish()?;
    let records = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let mut counts: BTreeMap<(String, String, u16), usize> = BTreeMap::new();
    for flow in records.iter().filter_map(|record| record.line.flow()) {
        *counts.entry((flow.verdict.to_string(), flow.reason.to_string(), flow.generation)).or_default() += 1;
    }
    ensure!(counts.len() > FLIPS, "too little was seen: {counts:?}");
    let wrong: Vec<_> = records.iter().filter_map(wrong).collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} records name another policy than the one that decided; the first: {}",
        wrong.len(),
        records.len(),
        wrong[0]
    );
    Ok(())
}

#[test]
fn without_an_agent_a_connection_judged_by_an_earlier_policy_names_none() -> Result<()> {
    let permissive = policy(NAMESPACE, "permissive", Some(APP), "PERMISSIVE", &[]);
    let mut scene = Scene::new(&[("frontend.yaml", &permissive)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    let of_table = |lab: &enforcer_tests::Lab| -> Result<Vec<Record>> {
        let output = lab.enforcer(&["flows", "--kernel", "-o", "json", "--port", "8080"])?.success()?;
        output.stdout.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
    };
    let policies = |records: &[Record]| -> Vec<Option<String>> {
        let flows = records.iter().filter_map(|record| record.line.flow());
        flows.map(|flow| flow.policy.as_deref().map(str::to_owned)).collect()
    };
    let before = of_table(&scene.lab)?;
    assert_eq!(policies(&before), [Some("hipstershopv1v2/permissive".to_owned())], "{before:?}");
    let flow = before[0].line.flow().context("no connection")?;
    assert_eq!((&*flow.direction, &*flow.reason), ("to_pod", "PLAINTEXT_PERMITTED"));
    scene.lab.apply("frontend.yaml", &policy(NAMESPACE, "strict", Some(APP), "STRICT", &[]))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    poll::until("the state file", Duration::from_secs(5), || {
        let after = of_table(&scene.lab)?;
        ensure!(policies(&after) == [None], "{after:?}");
        Ok(())
    })?;
    scene.agent.kill()?;
    assert_eq!(policies(&of_table(&scene.lab)?), [None]);
    Ok(())
}
