//! A STRICT port whose server does not insist on a mesh certificate is found out, blocked and opened again.

use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::{Lab, poll};

const URL: &str = "https://frontend.hipstershopv1v2:8080";

/// A server of openssl with the pod's own certificate; `verify`: what it makes of its clients.
fn openssl_server(lab: &Lab, verify: &[&str]) -> Result<enforcer_tests::lab::Running> {
    let own = lab.credentials("frontend");
    let ca = lab.dir().join("tls/ca.pem");
    let paths = [own.certificate, own.key, ca].map(|path| path.display().to_string());
    let mut words =
        vec!["openssl", "s_server", "-accept", "8080", "-www", "-cert", &paths[0], "-key", &paths[1]];
    words.extend(["-CAfile", &paths[2]]);
    words.extend(verify);
    lab.spawn("frontend", words)
}

#[test]
fn a_server_that_does_not_insist_is_blocked_until_it_does() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let bundle = lab.dir().join("tls/ca.pem").display().to_string();
    // It asks for a certificate and goes on without one.
    let lax = openssl_server(&lab, &["-verify", "2"])?;
    let _agent = lab.agent_with(&[
        "--trust-bundle",
        &bundle,
        "--on-certificate-failure",
        "block",
        "--certificate-check-interval",
        "2",
    ])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    poll::until("the port to be blocked", Duration::from_secs(40), || {
        let stranger = lab.curl("sleep", &["-k", URL])?;
        ensure!(stranger.code == 35 || stranger.code == 56, "{stranger:?}");
        Ok(())
    })?;
    ensure!(lab.count(Verdict::RESET, Reason::CERTIFICATE)?.connections > 0, "the reset has another reason");
    drop(lax);
    let _strict = openssl_server(&lab, &["-Verify", "2", "-verify_return_error"])?;
    poll::until("the port to be open again", Duration::from_secs(40), || {
        let mesh = lab.mesh_curl("loadgenerator", &[URL])?;
        ensure!(mesh.code == 0, "{mesh:?}");
        Ok(())
    })
}
