//! The mesh's root is replaced, old, both, new, while clients come all the time: nobody is refused, nothing is reported.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::{Authority, Credentials, Running};
use enforcer_tests::tls_server::Tls;
use enforcer_tests::{Lab, Pod, Topology, poll};
use nix::sys::signal::Signal;
use rcgen::SanType;
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(1);

/// Replaces a file as a mounted config map or a renewing agent does it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}

fn copy(from: &Credentials, to: &Credentials) -> Result<()> {
    for (from, to) in [(&from.key, &to.key), (&from.certificate, &to.certificate)] {
        replace(to, &std::fs::read_to_string(from)?)?;
    }
    Ok(())
}

struct Rotation {
    lab: Lab,
    server: Running,
    /// Everybody's roots: the agent's, the server's, the clients'.
    roots: PathBuf,
    /// What the server presents.
    own: Credentials,
    /// What the agent and the clients present.
    client: Credentials,
}

impl Rotation {
    fn identities(&self, authority: &Authority) -> Result<[Credentials; 2]> {
        let of = |name: &str, uri: String| -> Result<Credentials> {
            let names = vec![
                SanType::URI(uri.try_into()?),
                SanType::DnsName(self.lab.pod("frontend").host().try_into()?),
            ];
            authority.issue_with(name, names)
        };
        let client = "spiffe://cluster.local/ns/hipstershopv1v2/sa/loadgenerator".to_owned();
        Ok([of("rotated-server", self.lab.pod("frontend").spiffe())?, of("rotated-client", client)?])
    }

    /// The server takes over what is in its files, without a gap.
    fn reload(&self) -> Result<()> {
        self.server.signal(Signal::SIGHUP)
    }

    /// One client.
    fn knock(&self) -> Result<()> {
        let file = |path: &Path| path.display().to_string();
        let words = ["--cacert", &file(&self.roots), "--cert", &file(&self.client.certificate)];
        let words = words.into_iter().map(ToOwned::to_owned);
        let words: Vec<String> = words.chain(["--key".to_owned(), file(&self.client.key)]).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let url = "https://frontend.hipstershopv1v2:8080";
        let words: Vec<&str> = words.into_iter().chain([url]).collect();
        let output = self.lab.curl("loadgenerator", &words)?;
        // Its own certificate and key are two files, replaced one after the other: then it has not even knocked.
        if output.code != 58 {
            output.success()?;
        }
        Ok(())
    }

    fn report(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.lab.enforcer(&["certs", "-o", "json"])?.stdout)?)
    }

    /// Waits until both addresses were checked anew against another bundle than this one, and found good each time.
    fn wait_checked(&self, bundle: &Value) -> Result<()> {
        let mut before: Option<Value> = None;
        poll::until("another round of checks", LIMIT, || {
            let report = self.report()?;
            ensure!(report["bundle"] != *bundle && report["bundle_problem"].is_null(), "{report:#}");
            let entries = report["entries"].as_array().context("entries")?;
            let times: Value = entries.iter().map(|entry| entry["checked"].clone()).collect();
            let first = before.get_or_insert_with(|| times.clone());
            let renewed = |(old, new): (&Value, &Value)| !new.is_null() && old != new;
            let rounds = first.as_array().zip(times.as_array()).context("times")?;
            ensure!(rounds.0.iter().zip(rounds.1).all(renewed), "not yet");
            Ok(())
        })
    }
}

#[test]
fn roots_are_replaced_under_load_without_a_false_alarm() -> Result<()> {
    let pods = Pod::cast().into_iter().filter(|pod| pod.name != "adservice").collect();
    let lab = Lab::with(Topology::default(), pods)?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let dir = lab.dir().join("tls");
    let next = Authority::create_as(&dir, "next", "the next root")?;
    let roots = dir.join("roots.pem");
    let old_root = std::fs::read_to_string(&lab.authority().certificate)?;
    let new_root = std::fs::read_to_string(&next.certificate)?;
    replace(&roots, &old_root)?;
    let files = |name: &str| Credentials {
        certificate: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
    };
    let (own, client) = (files("presented"), files("offered"));
    copy(&lab.credentials("frontend"), &own)?;
    copy(&lab.credentials("loadgenerator"), &client)?;
    let tls = Tls { own: own.clone(), roots: roots.clone() };
    let server = lab.nginx("frontend", 8080, &tls, "on")?;
    let text = |path: &Path| path.display().to_string();
    let words = [text(&roots), text(&client.certificate), text(&client.key)];
    let mut arguments = vec!["--trust-bundle", &words[0], "--client-certificate", &words[1]];
    arguments.extend(["--client-key", &words[2], "--on-certificate-failure", "block"]);
    arguments.extend(["--certificate-check-interval", "1"]);
    let agent = lab.agent_with(&arguments)?;
    let rotation = Rotation { lab, server, roots, own, client };
    rotation.wait_checked(&Value::Null)?;

    let (stop, knocks) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rotation.knock()?;
                knocks.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        let rotated = rotate(&rotation, &next, &old_root, &new_root);
        stop.store(true, Ordering::Relaxed);
        let Ok(load) = load.join() else { bail!("the load panicked") };
        rotated.and(load)
    })
    .with_context(|| agent.output())?;
    ensure!(knocks.load(Ordering::Relaxed) > 20, "there was no load");
    let log = agent.output();
    for alarm in ["WARN enforcer::certificate", "port is blocked"] {
        ensure!(!log.contains(alarm), "{alarm}:\n{log}");
    }
    Ok(())
}

fn rotate(rotation: &Rotation, next: &Authority, old: &str, new: &str) -> Result<()> {
    let bundle = rotation.report()?["bundle"].clone();
    replace(&rotation.roots, &format!("{old}{new}"))?;
    rotation.reload()?;
    rotation.wait_checked(&bundle)?;

    // Both sides get certificates of the new root.
    let [server, client] = rotation.identities(next)?;
    copy(&server, &rotation.own)?;
    rotation.reload()?;
    rotation.wait_checked(&bundle)?;
    poll::until("the new certificate to be seen", LIMIT, || {
        let report = rotation.report()?;
        let issuer = &report["entries"][0]["probe"]["server"]["chain"][0]["issuer"];
        ensure!(issuer == "CN=the next root", "{issuer}");
        Ok(())
    })?;
    copy(&client, &rotation.client)?;
    rotation.wait_checked(&bundle)?;

    let both = rotation.report()?["bundle"].clone();
    replace(&rotation.roots, new)?;
    rotation.reload()?;
    rotation.wait_checked(&both)?;
    let report = rotation.report()?;
    let states: Vec<_> =
        report["entries"].as_array().into_iter().flatten().map(|entry| &entry["state"]).collect();
    ensure!(states == ["verified", "verified"], "{report:#}");
    Ok(())
}
