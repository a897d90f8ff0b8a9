//! The walk-through with kubectl: the steps that people type, each with the answer that it must give.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Node;
use crate::lab::{Output, demo_dir, quote};
use crate::poll;

/// The server with a policy of its own.
pub const FRONTEND: &str = "frontend.hipstershopv1v2:8080";
/// The server without.
pub const ADSERVICE: &str = "adservice.hipstershopv1v2:9555";
/// What kubectl prints when curl was reset.
const RESET: &str = "curl: (56) Recv failure: Connection reset by peer\ncommand terminated with exit code 56";

/// How long a policy may take from `kubectl apply` to the map.
const IN_FORCE: Duration = Duration::from_secs(20);

/// Plays it on a populated node whose agent enforces; says every command and every answer.
///
/// # Errors
/// When an answer differs.
pub fn play(node: &Node, out: &mut dyn Write) -> Result<()> {
    let mut walk = Walk { node, out };
    walk.apply("kubernetes/mesh-permissive.yaml")?;
    walk.in_force(&[("frontend", "PERMISSIVE"), ("adservice", "PERMISSIVE")])?;
    walk.served(FRONTEND)?;
    walk.mesh_client_is_served()?;

    walk.apply("policies/mesh-strict.yaml")?;
    walk.in_force(&[("frontend", "STRICT"), ("adservice", "STRICT")])?;
    walk.reset(FRONTEND)?;
    walk.mesh_client_is_served()?;

    walk.apply("policies/frontend-permissive.yaml")?;
    walk.in_force(&[("frontend", "PERMISSIVE"), ("adservice", "STRICT")])?;
    walk.served(FRONTEND)?;
    walk.reset(ADSERVICE)?;
    walk.mesh_client_is_served()
}

struct Walk<'a> {
    node: &'a Node,
    out: &'a mut dyn Write,
}

impl Walk<'_> {
    /// `kubectl apply -f -` with a policy typed in.
    fn apply(&mut self, file: &str) -> Result<()> {
        let path = demo_dir().join(file);
        let policy = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        writeln!(self.out, "\n$ kubectl apply -f - <<EOF\n{}\nEOF", policy.trim_end())?;
        let output = self.node.kubectl_with(&["apply", "-f", "-"], Some(&policy))?;
        write!(self.out, "{}{}", output.stdout, output.stderr)?;
        output.success()?;
        Ok(())
    }

    /// Waits until the agent says so.
    fn in_force(&mut self, modes: &[(&str, &str)]) -> Result<()> {
        let start = Instant::now();
        let agent = self.node.agent()?;
        poll::until("the policy to be in force", IN_FORCE, || {
            let output = self.node.exec(&agent, &["enforcer", "endpoints", "-o", "json"])?.success()?;
            let endpoints: serde_json::Value = serde_json::from_str(&output.stdout)?;
            for (pod, mode) in modes {
                ensure!(has_mode(&endpoints, &format!("hipstershopv1v2/{pod}"), mode), "{endpoints}");
            }
            Ok(())
        })?;
        writeln!(self.out, "  (in force after at most {} ms)\n", start.elapsed().as_millis())?;
        Ok(())
    }

    fn served(&mut self, server: &str) -> Result<()> {
        let output = self.curl("noistio/sleep", &[], &format!("http://{server}"))?;
        check(&output, "200\n", "", 0)
    }

    fn reset(&mut self, server: &str) -> Result<()> {
        let output = self.curl("noistio/sleep", &[], &format!("http://{server}"))?;
        check(&output, "000\n", RESET, 56)
    }

    fn mesh_client_is_served(&mut self) -> Result<()> {
        let own = [
            "--cacert",
            "/mesh/ca.pem",
            "--cert",
            "/mesh/loadgenerator.pem",
            "--key",
            "/mesh/loadgenerator.key",
        ];
        for server in [FRONTEND, ADSERVICE] {
            let output = self.curl("hipstershopv1v2/loadgenerator", &own, &format!("https://{server}"))?;
            check(&output, "200\n", "", 0)?;
        }
        Ok(())
    }

    fn curl(&mut self, pod: &str, more: &[&str], url: &str) -> Result<Output> {
        let mut words = vec!["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\\n"];
        words.extend(more);
        words.push(url);
        let (namespace, name) = pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
        let line: Vec<String> = words.iter().map(|word| quote(word)).collect();
        writeln!(self.out, "$ kubectl exec -n {namespace} {name} -- {}", line.join(" "))?;
        let output = self.node.exec(pod, &words)?;
        write!(self.out, "{}{}", output.stdout, output.stderr)?;
        Ok(output)
    }
}

/// An endpoint of this pod has this mode, in the output of `enforcer endpoints -o json`.
fn has_mode(endpoints: &serde_json::Value, pod: &str, mode: &str) -> bool {
    let all = endpoints.as_array().or_else(|| endpoints["endpoints"].as_array());
    all.is_some_and(|all| all.iter().any(|found| found["pod"] == pod && found["mode"] == mode))
}

fn check(output: &Output, stdout: &str, stderr: &str, code: i32) -> Result<()> {
    let same = output.stdout == stdout && output.stderr.trim_end() == stderr && output.code == code;
    ensure!(
        same,
        "`{}` must print {stdout:?} and {stderr:?} and exit with {code}; it printed {:?} and {:?} and exited with {}",
        output.command,
        output.stdout,
        output.stderr,
        output.code
    );
    Ok(())
}
