//! What follows from certificate checks: ports are closed and opened, inputs are watched, the command line answers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::Running;
use enforcer_tests::{Lab, Pod, Topology, poll};
use serde_json::Value;

const URL: &str = "https://frontend.hipstershopv1v2:8080";
const INSIST: &[&str] = &["-Verify", "2", "-verify_return_error"];
const LIMIT: Duration = Duration::from_mins(1);

fn strict_lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    Ok(lab)
}

fn server(lab: &Lab, verify: &[&str]) -> Result<Running> {
    lab.openssl("frontend", 8080, &lab.tls("frontend"), verify)
}

/// The states of both addresses of a pod's port; `None` where it is not checked.
fn states(lab: &Lab, pod: &str, port: u16) -> Result<Vec<Option<String>>> {
    let output = lab.enforcer(&["certs", "-o", "json"])?;
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let entries = report["entries"].as_array().context("entries")?;
    let state = |address: std::net::IpAddr| {
        let found = entries.iter().find(|entry| {
            entry["address"] == address.to_string() && entry["port"] == port && entry["pod"] == pod
        });
        found.and_then(|entry| entry["state"].as_str()).map(ToOwned::to_owned)
    };
    Ok(lab.pod(pod).addresses().map(state).to_vec())
}

fn wait_state(lab: &Lab, pod: &str, port: u16, state: &str) -> Result<()> {
    poll::until(&format!("{pod} port {port} to be {state}"), LIMIT, || {
        let found = states(lab, pod, port)?;
        ensure!(found.iter().all(|found| found.as_deref() == Some(state)), "{found:?}");
        Ok(())
    })
}

fn is_blocked(lab: &Lab) -> Result<()> {
    let stranger = lab.curl("sleep", &["-k", URL])?;
    ensure!(stranger.code == 35 || stranger.code == 56, "{stranger:?}");
    Ok(())
}

fn is_open(lab: &Lab) -> Result<()> {
    lab.mesh_curl("loadgenerator", &[URL])?.success()?;
    Ok(())
}

#[test]
fn a_server_that_does_not_insist_is_blocked_until_it_does() -> Result<()> {
    const INTERVAL: Duration = Duration::from_secs(8);
    let lab = strict_lab()?;
    let bundle = lab.authority().certificate.display().to_string();
    // It asks for a certificate and goes on without one.
    let lax = server(&lab, &["-verify", "2"])?;
    let mut words = vec!["--trust-bundle", &bundle, "--on-certificate-failure", "block"];
    words.extend(["--certificate-check-interval", "8"]);
    let mut agent = lab.agent_with(&words)?;
    poll::until("the port to be blocked", LIMIT, || is_blocked(&lab))?;
    ensure!(lab.count(Verdict::RESET, Reason::CERTIFICATE)?.connections > 0, "the reset has another reason");

    // A successor does not open it, not even for a moment: the first thing that it writes is what was known.
    let before = lab.count(Verdict::ALLOW, Reason::TLS)?.connections;
    agent.kill()?;
    let mut successor = lab.start_agent(&words)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        is_blocked(&lab)?;
    }
    lab.wait_enforcing(&mut successor)?;
    is_blocked(&lab)?;
    ensure!(lab.count(Verdict::ALLOW, Reason::TLS)?.connections == before, "a client came through");

    drop(lax);
    let _strict = server(&lab, INSIST)?;
    let repaired = Instant::now();
    poll::until("the port to be open again", LIMIT, || is_open(&lab))?;
    // And what the check and curl itself take.
    let slack = Duration::from_secs(6);
    ensure!(repaired.elapsed() < INTERVAL + slack, "it took {:?}", repaired.elapsed());
    Ok(())
}

/// Rules of network plug-ins write their own bits into the mark of every packet that leaves the node; what is left are those
/// that none of them uses.
const OTHERS_MARKS: &str =
    "table inet plugins { chain out { type filter hook output priority mangle; policy accept;
    meta l4proto tcp meta mark set meta mark and 0x000030ff
    meta l4proto tcp meta mark set meta mark or 0xabcdcf00; }; }";

#[test]
fn checks_stay_our_own_although_others_write_into_the_mark() -> Result<()> {
    let lab = strict_lab()?;
    lab.exec("node", ["nft", OTHERS_MARKS])?.success()?;
    let bundle = lab.authority().certificate.display().to_string();
    let lax = server(&lab, &["-verify", "2"])?;
    let mut words = vec!["--trust-bundle", &bundle, "--on-certificate-failure", "block"];
    words.extend(["--certificate-check-interval", "5"]);
    let _agent = lab.agent_with(&words)?;
    poll::until("the port to be blocked", LIMIT, || is_blocked(&lab))?;
    drop(lax);
    // Its checks reach the closed port, which opens.
    let _strict = server(&lab, INSIST)?;
    poll::until("the port to be open again", LIMIT, || is_open(&lab))?;
    ensure!(lab.count(Verdict::ALLOW, Reason::PROBE)?.connections > 10, "no probes");
    let rules = lab.exec("node", ["nft", "list", "table", "inet", "plugins"])?.success()?;
    ensure!(rules.stdout.contains("0xabcdcf00"), "the rules are gone: {rules:?}");
    Ok(())
}

#[test]
fn unchecked_ports_stay_closed_until_the_first_good_check() -> Result<()> {
    let mut lab = strict_lab()?;
    let bundle = lab.dir().join("late.pem");
    let words = ["--trust-bundle", &bundle.display().to_string(), "--on-certificate-failure", "block"];
    let words: Vec<&str> = words.into_iter().chain(["--unchecked-ports", "block"]).collect();
    let words: Vec<&str> = words.into_iter().chain(["--certificate-check-interval", "3"]).collect();
    let _server = server(&lab, INSIST)?;
    let _agent = lab.agent_with(&words)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    // There is no bundle: nothing can be known, and `status` says why.
    ensure!(lab.mesh_curl("loadgenerator", &[URL])?.code != 0, "it is open without a check");
    wait_state(&lab, "frontend", 8080, "unchecked")?;
    poll::until("status to tell", LIMIT, || {
        let status = lab.enforcer(&["status"])?;
        ensure!(status.code == 1 && status.stdout.contains("late.pem"), "{status:?}");
        Ok(())
    })?;
    std::fs::copy(&lab.authority().certificate, &bundle)?;
    poll::until("the port to open", LIMIT, || is_open(&lab))?;
    wait_state(&lab, "frontend", 8080, "verified")?;
    let status = lab.enforcer(&["status"])?;
    ensure!(!status.stdout.contains("late.pem"), "{status:?}");

    // A broken bundle changes nothing but is told; so does none at all.
    std::fs::write(&bundle, "-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")?;
    poll::until("status to tell of the broken bundle", LIMIT, || {
        let status = lab.enforcer(&["status"])?;
        ensure!(status.code == 1 && status.stdout.contains("the last good trust bundle"), "{status:?}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(4));
    wait_state(&lab, "frontend", 8080, "verified")?;
    is_open(&lab)?;

    // A pod that is new is closed from its first moment.
    lab.add_pod(Pod::meshed("hipstershopv1v2", "late", 40).port(8080))?;
    let _late = lab.nginx("late", 8080, &lab.tls("late"), "off")?;
    lab.describe()?;
    lab.wait_mode("late", Mode::STRICT)?;
    for _ in 0..5 {
        let stranger = lab.curl("sleep", &["-k", "https://late.hipstershopv1v2:8080"])?;
        ensure!(stranger.code == 35 || stranger.code == 56, "{stranger:?}");
    }
    wait_state(&lab, "late", 8080, "no_client_auth")
}

#[test]
fn ports_that_clients_use_are_checked_although_nobody_declared_them() -> Result<()> {
    let pods = vec![
        Pod::meshed("shop", "web", 30).port(9000),
        Pod::meshed("shop", "client", 31),
        Pod::new("other", "stranger", 32),
    ];
    let lab = Lab::with(Topology::default(), pods)?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let _server = lab.nginx("web", 8443, &lab.tls("web"), "off")?;
    let bundle = lab.authority().certificate.display().to_string();
    let mut agent = lab.agent_with(&["--trust-bundle", &bundle])?;
    wait_state(&lab, "web", 9000, "unreachable")?;
    ensure!(states(&lab, "web", 8443)? == [None, None], "nobody was there yet");
    lab.mesh_curl("client", &["https://web.shop:8443"])?.success()?;
    wait_state(&lab, "web", 8443, "no_client_auth")?;
    // The next agent knows it from what this one left.
    agent.kill()?;
    let _successor = lab.agent_with(&["--trust-bundle", &bundle])?;
    wait_state(&lab, "web", 8443, "no_client_auth")?;
    // A closed port that somebody knocks at is none.
    ensure!(lab.mesh_curl("client", &["https://web.shop:8444"])?.code == 7, "nobody listens there");
    std::thread::sleep(Duration::from_secs(2));
    ensure!(states(&lab, "web", 8444)? == [None, None], "a port at which nobody answers");
    Ok(())
}

#[test]
fn config_maps_bring_roots_and_revocation_lists() -> Result<()> {
    let lab = strict_lab()?;
    let map = |name: &str, key: &str, text: &str| {
        let lines = text.trim_end().replace('\n', "\n    ");
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: istio-system\n\
             data:\n  {key}: |\n    {lines}\n"
        )
    };
    let root = std::fs::read_to_string(&lab.authority().certificate)?;
    lab.apply("roots.yaml", &map("istio-ca-root-cert", "root-cert.pem", &root))?;
    let revoked = rcgen::SerialNumber::from(17_u64);
    let names = vec![rcgen::SanType::URI(lab.pod("frontend").spiffe().try_into()?)];
    let key = rcgen::KeyPair::generate()?;
    lab.authority().issue_as(&lab.pod("frontend").host(), &key, names, |params| {
        params.serial_number = Some(revoked);
    })?;
    let _server = server(&lab, INSIST)?;
    let _agent = lab.agent_with(&["--certificate-check-interval", "3"])?;
    wait_state(&lab, "frontend", 8080, "verified")?;
    let list = lab.authority().revoke(&[17])?;
    lab.apply("lists.yaml", &map("istio-ca-crl", "ca-crl.pem", &list))?;
    wait_state(&lab, "frontend", 8080, "untrusted")?;
    let table = lab.enforcer(&["certs"])?;
    ensure!(table.code == 1 && table.stdout.contains("a certificate of the chain is revoked"), "{table:?}");
    lab.apply("lists.yaml", &map("istio-ca-crl", "ca-crl.pem", &lab.authority().revoke(&[18])?))?;
    wait_state(&lab, "frontend", 8080, "verified")
}

#[test]
fn the_command_line_answers_with_its_exit_code() -> Result<()> {
    let lab = strict_lab()?;
    let none = lab.enforcer(&["certs"])?;
    ensure!(none.code == 2 && none.stderr.contains("no results of certificate checks"), "{none:?}");
    let _server = server(&lab, INSIST)?;
    let _lax = lab.nginx("adservice", 9555, &lab.tls("adservice"), "optional")?;
    let bundle = lab.authority().certificate.display().to_string();
    let _agent = lab.agent_with(&["--trust-bundle", &bundle])?;
    wait_state(&lab, "adservice", 9555, "no_client_auth")?;
    wait_state(&lab, "frontend", 8080, "verified")?;
    ensure!(lab.enforcer(&["certs"])?.code == 1, "one is bad");
    ensure!(lab.enforcer(&["certs", "-o", "json"])?.code == 1, "one is bad");

    // By hand, from inside the pods, where nothing is enforced.
    let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
    let probe = |pod: &str, words: &[&str]| {
        lab.exec(pod, [&program as &str, "certs", "probe"].into_iter().chain(words.iter().copied()))
    };
    let expect = lab.pod("frontend").spiffe();
    for address in ["127.0.0.1:8080", "[::1]:8080"] {
        let good = probe("frontend", &[address, "--trust-bundle", &bundle, "--expect", &expect])?;
        ensure!(good.code == 0 && good.stdout.contains("mutual TLS is proven"), "{good:?}");
    }
    // Without roots it is known of the clients only.
    let half = probe("frontend", &["127.0.0.1:8080"])?;
    ensure!(half.code == 1 && half.stdout.contains("clients are verified; chain not checked"), "{half:?}");
    let half = probe("frontend", &["127.0.0.1:8080", "-o", "json"])?;
    let answer: Value = serde_json::from_str(&half.stdout)?;
    ensure!(
        half.code == 1 && answer["mutual_tls"] == false && answer["clients_verified"] == true,
        "{half:?}"
    );
    let other = lab.pod("adservice").spiffe();
    let words = ["127.0.0.1:8080", "--trust-bundle", &bundle, "--expect", &other, "-o", "json"];
    let wrong = probe("frontend", &words)?;
    let answer: Value = serde_json::from_str(&wrong.stdout)?;
    ensure!(wrong.code == 1 && answer["state"] == "wrong_identity", "{wrong:?}");
    ensure!(probe("adservice", &["127.0.0.1:9555", "--trust-bundle", &bundle])?.code == 1, "it is lax");
    for words in [
        &["nonsense"][..],
        &["127.0.0.1:8080", "--trust-bundle", "/nonexistent"],
        &["127.0.0.1:8080", "--expect", "spiffe://x"],
        &["127.0.0.1:8080", "--server-name", "no name"],
        &[],
    ] {
        let wrong = probe("frontend", words)?;
        ensure!(wrong.code == 2 && !wrong.stderr.contains("panicked"), "{wrong:?}");
    }
    let manifests = lab.manifests().display().to_string();
    let closes_nothing = lab.enforcer(&["run", "--manifests", &manifests, "--unchecked-ports", "block"])?;
    ensure!(
        closes_nothing.code == 2 && closes_nothing.stderr.contains("give --on-certificate-failure block too"),
        "{closes_nothing:?}"
    );
    Ok(())
}
