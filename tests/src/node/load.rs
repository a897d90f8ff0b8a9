//! Traffic between pods while something else happens: plaintext that must not arrive, TLS that must not notice.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Node;
use super::walk::{ADSERVICE, FRONTEND};
use crate::poll;

/// What the clients and the servers saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Plaintext requests, all refused by a reset.
    pub refused: usize,
    /// Short TLS connections, all served.
    pub served: usize,
    /// Requests on the one TLS connection that lasted all the while.
    pub lasting: usize,
    /// Connections that the STRICT server took for plaintext; none of them had a byte.
    pub seen: usize,
}

/// A loop in a pod, one line for each request; it ends when `/tmp/stop` is there.
struct Loop {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Loop {
    fn start(node: &Node, pod: &str, script: &str) -> Result<Self> {
        let (namespace, name) = pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
        let file = tempfile::NamedTempFile::new()?;
        let output = File::create(file.path())?;
        let mut command = node.prefix();
        command.arg(&node.kubectl).args(["exec", "-n", namespace, name, "--", "sh", "-c", script]);
        let child = command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output).spawn()?;
        Ok(Self { child, file })
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.file.path())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits for its end.
    fn end(mut self, limit: Duration) -> Result<Vec<String>> {
        poll::until("the end of a loop", limit, || self.child.try_wait()?.context("it still runs"))?;
        self.lines()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Ended is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `work` under load: plaintext and short TLS connections one after the other, and one TLS connection that lasts
/// from before the work until after it. `frontend` and `adservice` are STRICT.
///
/// # Errors
/// When a plaintext request is served, a TLS connection is not, or the server read a byte of plaintext.
pub fn during(node: &Node, work: impl FnOnce() -> Result<()>) -> Result<Report> {
    let (sleep, mesh) = ("noistio/sleep", "hipstershopv1v2/loadgenerator");
    for pod in [sleep, mesh] {
        node.exec(pod, &["sh", "-c", "rm -f /tmp/stop"])?.success()?;
    }
    let before = plaintext(node)?.len();
    let own = "--cacert /mesh/ca.pem --cert /mesh/loadgenerator.pem --key /mesh/loadgenerator.key";
    let write = "curl -s -m 20 -o /dev/null -w '%{http_code} %{exitcode}\\n'";
    let repeat = |request: &str| format!("while [ ! -e /tmp/stop ]; do {request}; done; true");
    let attack = Loop::start(node, sleep, &repeat(&format!("{write} http://{ADSERVICE}")))?;
    let short = Loop::start(node, mesh, &repeat(&format!("{write} {own} https://{ADSERVICE}")))?;
    // Many requests on one connection: curl says with each whether it had to connect again; what goes to its standard
    // output it would keep to itself until it ends.
    let each = "curl -s --rate 5/s -o /dev/null -w '%{stderr}%{http_code} %{exitcode} %{num_connects}\\n'";
    let wait = "while [ ! -e /tmp/stop ]; do sleep 1; done; kill $!; true";
    let long = format!("{each} {own} 'https://{FRONTEND}/[1-100000]' & {wait}");
    let long = Loop::start(node, mesh, &long)?;
    let begun = |requests: &Loop| {
        poll::until("the load to begin", Duration::from_secs(20), || {
            let lines = requests.lines()?;
            ensure!(lines.len() >= 3, "{lines:?}");
            Ok(())
        })
    };
    begun(&attack)?;
    begun(&short)?;
    begun(&long)?;
    work()?;
    let counts = (attack.lines()?.len(), short.lines()?.len());
    // And on, for a moment after it.
    poll::until("the load to go on", Duration::from_secs(20), || {
        let now = (attack.lines()?.len(), short.lines()?.len());
        ensure!(now.0 > counts.0 + 3 && now.1 > counts.1 + 3, "{now:?}");
        Ok(())
    })?;
    for pod in [sleep, mesh] {
        node.exec(pod, &["sh", "-c", "touch /tmp/stop"])?.success()?;
    }
    let limit = Duration::from_secs(40);
    let (attack, short, long) = (attack.end(limit)?, short.end(limit)?, long.end(limit)?);
    all(&attack, "000 56", "a plaintext request")?;
    all(&short, "200 0", "a short TLS connection")?;
    let (first, rest) = long.split_first().context("the long TLS connection served nothing")?;
    ensure!(first == "200 0 1", "the long TLS connection began with {first:?}");
    all(rest, "200 0 0", "a request on the long TLS connection")?;

    let records = plaintext(node)?;
    let seen = records.get(before..).context("the server's log got shorter")?;
    for record in seen {
        ensure!(record["read"] == 0 && record["written"] == 0, "plaintext arrived: {record}");
    }
    Ok(Report { refused: attack.len(), served: short.len(), lasting: long.len(), seen: seen.len() })
}

fn all(lines: &[String], wanted: &str, what: &str) -> Result<()> {
    let wrong: Vec<&String> = lines.iter().filter(|line| *line != wanted).collect();
    ensure!(wrong.is_empty() && !lines.is_empty(), "{what} ended with {wrong:?} instead of {wanted:?}");
    Ok(())
}

/// What `adservice` wrote down about connections that were not TLS.
fn plaintext(node: &Node) -> Result<Vec<Value>> {
    let log = node.kubectl(&["logs", "-n", "hipstershopv1v2", "adservice"])?;
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(records.filter(|record| record["class"].is_string() && record["class"] != "tls").collect())
}
