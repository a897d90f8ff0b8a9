//! Every state of the certificate checks, reached by the agent at real servers in pods of a lab.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::{Authority, Credentials, Running};
use enforcer_tests::tls_server::Tls;
use enforcer_tests::{Lab, Pod, Topology, poll};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, SanType, SerialNumber, date_time_ymd};
use serde_json::Value;

const PORT: u16 = 8443;
const REVOKED: u64 = 4711;

/// openssl refuses a client whose certificate is missing or not of the mesh.
const INSIST: &[&str] = &["-Verify", "3", "-verify_return_error"];

/// Pod and the state that its server must be found in. What each server is, is in [`serve`].
const CAST: [(&str, &str); 17] = [
    ("envoy", "verified"),
    ("nginx-on", "verified"),
    ("openssl-rsa", "verified"),
    ("openssl-chain", "verified"),
    ("stunnel-ed", "verified"),
    ("expiring", "expiring"),
    ("expired", "expired"),
    ("stranger", "untrusted"),
    ("revoked", "untrusted"),
    ("another", "wrong_identity"),
    ("nginx-optional", "no_client_auth"),
    ("nginx-off", "no_client_auth"),
    ("openssl-asks", "no_client_auth"),
    ("openssl-none", "no_client_auth"),
    ("openssl-any", "accepts_foreign"),
    ("plain", "not_tls"),
    ("silent", "unreachable"),
];

fn lab() -> Result<Lab> {
    let numbers = 30..;
    let pods =
        CAST.iter().zip(numbers).map(|((name, _), number)| Pod::meshed("shop", name, number).port(PORT));
    let lab = Lab::with(Topology::default(), pods.collect())?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    Ok(lab)
}

/// A certificate of the pod, made differently.
fn issue(
    lab: &Lab,
    by: &Authority,
    pod: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<Credentials> {
    let names = vec![SanType::URI(lab.pod(pod).spiffe().try_into()?)];
    by.issue_as(&lab.pod(pod).host(), &KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?, names, change)
}

fn ends_tomorrow(params: &mut CertificateParams) {
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let day = tomorrow.to_zoned(jiff::tz::TimeZone::UTC).date();
    let (month, number) = (day.month().unsigned_abs(), day.day().unsigned_abs());
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(i32::from(day.year()), month, number);
}

/// Starts every server.
fn serve(lab: &Lab) -> Result<Vec<Running>> {
    let mesh = lab.authority();
    let spiffe = |pod: &str| lab.pod(pod).spiffe();
    let host = |pod: &str| lab.pod(pod).host();
    mesh.issue_by_openssl(&host("openssl-rsa"), "RSA", &spiffe("openssl-rsa"))?;
    mesh.issue_by_openssl(&host("stunnel-ed"), "ED25519", &spiffe("stunnel-ed"))?;
    let below = mesh.intermediate("below")?.intermediate("further below")?;
    issue(lab, &below, "openssl-chain", |_| {})?;
    issue(lab, mesh, "expiring", ends_tomorrow)?;
    issue(lab, mesh, "expired", |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2023, 1, 1), date_time_ymd(2024, 1, 1));
    })?;
    issue(lab, mesh, "revoked", |params| params.serial_number = Some(SerialNumber::from(REVOKED)))?;
    let foreign = Authority::create_as(&lab.dir().join("tls"), "foreign", "another mesh")?;
    issue(lab, &foreign, "stranger", |_| {})?;
    // "another" presents what belongs to the pod envoy.
    let another = Tls { own: lab.credentials("envoy"), ..lab.tls("another") };

    let openssl = |pod: &str, verify: &[&str]| lab.openssl(pod, PORT, &lab.tls(pod), verify);
    let nginx = |pod: &str, verify: &str| lab.nginx(pod, PORT, &lab.tls(pod), verify);
    Ok(vec![
        lab.envoy("envoy", PORT, &lab.tls("envoy"))?,
        nginx("nginx-on", "on")?,
        openssl("openssl-rsa", INSIST)?,
        openssl("openssl-chain", INSIST)?,
        lab.stunnel("stunnel-ed", PORT, 1, &lab.tls("stunnel-ed"), "verifyChain = yes")?,
        openssl("expiring", INSIST)?,
        openssl("expired", INSIST)?,
        openssl("stranger", INSIST)?,
        openssl("revoked", INSIST)?,
        lab.openssl("another", PORT, &another, INSIST)?,
        nginx("nginx-optional", "optional")?,
        nginx("nginx-off", "off")?,
        openssl("openssl-asks", &["-verify", "3"])?,
        openssl("openssl-none", &[])?,
        openssl("openssl-any", &["-Verify", "3"])?,
        lab.raw_server("plain", PORT, &["--answer", "HTTP/1.1 400 Bad Request\r\n\r\n"])?.0,
    ])
}

/// Entries of `enforcer certs` by pod, both addresses of each.
fn entries(lab: &Lab) -> Result<BTreeMap<String, Vec<Value>>> {
    let output = lab.enforcer(&["certs", "-o", "json"])?;
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let mut by_pod: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in report["entries"].as_array().context("entries")? {
        let pod = entry["pod"].as_str().context("pod")?;
        by_pod.entry(pod.to_owned()).or_default().push(entry.clone());
    }
    Ok(by_pod)
}

fn check_states(lab: &Lab) -> Result<()> {
    let entries = entries(lab)?;
    let mut wrong = Vec::new();
    for (pod, state) in CAST {
        let found = entries.get(pod).with_context(|| format!("{pod} is not checked"))?;
        ensure!(found.len() == 2, "{pod} has two addresses: {found:#?}");
        wrong.extend(found.iter().filter(|entry| entry["state"] != state).map(|entry| (pod, state, entry)));
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

fn findings(entry: &Value) -> BTreeSet<String> {
    let findings = entry["probe"]["findings"].as_array().into_iter().flatten();
    findings.filter_map(|finding| finding["finding"].as_str().map(ToOwned::to_owned)).collect()
}

#[test]
fn every_state_is_found_at_real_servers() -> Result<()> {
    let lab = lab()?;
    let _servers = serve(&lab)?;
    let client = lab.authority().issue_with(
        "agent",
        vec![SanType::URI("spiffe://cluster.local/ns/istio-system/sa/enforcer".try_into()?)],
    )?;
    let crl = lab.dir().join("tls/crl.pem");
    std::fs::write(&crl, lab.authority().revoke(&[REVOKED])?)?;
    let paths = [&lab.authority().certificate, &crl, &client.certificate, &client.key];
    let [bundle, crl, certificate, key] = paths.map(|path| path.display().to_string());
    let mut words = vec!["--trust-bundle", &bundle, "--crl", &crl];
    words.extend(["--client-certificate", &certificate, "--client-key", &key]);
    words.extend(["--certificate-check-interval", "30"]);
    let agent = lab.agent_with(&words)?;
    let told = poll::until("every state", Duration::from_mins(2), || check_states(&lab));
    told.with_context(|| agent.output())?;

    // Details of some of them.
    let entries = entries(&lab)?;
    ensure!(entries["revoked"].iter().all(|entry| findings(entry).contains("revoked")), "{entries:#?}");
    ensure!(entries["stranger"].iter().all(|entry| findings(entry).contains("untrusted")), "{entries:#?}");
    let kinds = [("openssl-rsa", "RSA 2048"), ("stunnel-ed", "Ed25519"), ("openssl-chain", "ECDSA P-384")];
    for (pod, kind) in kinds {
        let chain = &entries[pod][0]["probe"]["server"]["chain"];
        ensure!(chain[0]["key"] == kind, "{pod}: {chain:#?}");
    }
    let chain = entries["openssl-chain"][0]["probe"]["server"]["chain"].as_array();
    ensure!(chain.is_some_and(|chain| chain.len() == 3), "{chain:#?}");
    let envoy = &entries["envoy"][0]["probe"];
    ensure!(envoy["server"]["version"] == "TLS 1.3", "{envoy:#?}");
    for result in envoy["clients"].as_array().context("clients")? {
        let wanted = if result["client"] == "mesh" { "accepted" } else { "refused" };
        ensure!(result["outcome"]["result"] == wanted, "{envoy:#?}");
    }

    // The table says the same for people, and the exit code says that something is wrong.
    let table = lab.enforcer(&["certs"])?;
    ensure!(table.code == 1, "{table:?}");
    for words in [
        "spiffe://cluster.local/ns/shop/sa/envoy",
        "no certificate: refused: alert certificate_required",
        "mesh certificate: accepted",
        "self-signed certificate: refused: alert",
        "a certificate of the chain is revoked",
        "CN=further below",
        "ends in",
        "ECDSA P-384",
        "TLS 1.3",
        "revocation lists: 1",
    ] {
        ensure!(table.stdout.contains(words), "no {words:?} in\n{}", table.stdout);
    }
    endpoints_show_it(&lab)?;
    probes_are_our_own(&lab)
}

fn endpoints_show_it(lab: &Lab) -> Result<()> {
    let output = lab.enforcer(&["endpoints", "-o", "json"])?.success()?;
    let rows: Value = serde_json::from_str(&output.stdout)?;
    for (pod, state) in CAST {
        let of_pod = rows.as_array().into_iter().flatten().filter(|row| row["pod"] == format!("shop/{pod}"));
        let states: Vec<_> = of_pod.map(|row| &row["ports"]["8443"]["certificate"]["state"]).collect();
        ensure!(states == [state, state], "{pod}: {rows:#?}");
    }
    let table = lab.enforcer(&["endpoints"])?.success()?;
    ensure!(table.stdout.contains("8443=STRICT(no_client_auth)"), "{}", table.stdout);
    Ok(())
}

/// The agent's connections carry its mark: they count under their own reason and for no client.
fn probes_are_our_own(lab: &Lab) -> Result<()> {
    let probes = lab.count(Verdict::ALLOW, Reason::PROBE)?.connections;
    ensure!(probes >= 6 * 16 * 2, "only {probes} probes");
    for (verdict, reason) in [
        (Verdict::ALLOW, Reason::TLS),
        (Verdict::ALLOW, Reason::MESH_TLS),
        (Verdict::RESET, Reason::PLAINTEXT),
    ] {
        let counted = lab.count(verdict, reason)?.connections;
        ensure!(counted == 0, "{counted} probes count as {reason}");
    }
    // A real client is told from them.
    lab.mesh_curl("envoy", &["https://nginx-on.shop:8443"])?.success()?;
    ensure!(lab.count(Verdict::ALLOW, Reason::TLS)?.connections > 0, "the client is not counted");
    Ok(())
}
