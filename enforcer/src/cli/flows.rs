//! `enforcer flows`: the connections that the kernel side knows, with their verdicts.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use enforcer_common::map::{Flow, FlowKey};
use serde::Serialize;

use super::node::{Node, NodeArgs};
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::monotonic_ns;
use crate::datapath::maps::Flows;

/// List recent connections to meshed pods with their verdicts, latest first; read from the kernel's table.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    filter: Filter,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
    /// At most this many.
    #[arg(long, default_value_t = 100, value_name = "N")]
    last: usize,
}

#[derive(Debug, Default, clap::Args)]
struct Filter {
    /// Only this verdict: `allow`, `reset`, `drop`, `would_reset` or `none`.
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// Only this reason, such as `PLAINTEXT`.
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Only this pod: `NAMESPACE/NAME`.
    #[arg(long, value_name = "NS/NAME")]
    pod: Option<String>,
    /// Only this port of the pod.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Row {
    /// Seconds since the verdict (without one: since the connection was opened).
    age_seconds: f64,
    client: String,
    client_port: u16,
    address: String,
    port: u16,
    pod: String,
    state: String,
    verdict: &'static str,
    reason: &'static str,
    generation: u16,
    bytes_to_pod: u64,
    bytes_from_pod: u64,
}

impl Filter {
    fn takes(&self, row: &Row) -> bool {
        let word = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(found))
        };
        word(&self.verdict, row.verdict)
            && word(&self.reason, row.reason)
            && self.pod.as_ref().is_none_or(|pod| *pod == row.pod)
            && self.port.is_none_or(|port| port == row.port)
    }
}

fn row(node: &Node, now_ns: u64, (key, flow): &(FlowKey, Flow)) -> Row {
    let then = if flow.phase_ns == 0 { flow.opened_ns } else { flow.phase_ns };
    Row {
        age_seconds: Duration::from_nanos(now_ns.saturating_sub(then)).as_secs_f64(),
        client: key.client.to_string(),
        client_port: key.client_port,
        address: key.pod.to_string(),
        port: key.pod_port,
        pod: node.pod(flow.workload),
        state: format!("{:?}", flow.state),
        verdict: flow.verdict.name(),
        reason: flow.reason.name(),
        generation: flow.generation,
        bytes_to_pod: flow.bytes_to_pod,
        bytes_from_pod: flow.bytes_from_pod,
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When no agent has run here, or the table cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let node = Node::open(&args.node)?;
    let now = monotonic_ns();
    let entries = Flows::new("FLOWS", node.pinned.map("FLOWS")?)?.entries()?;
    let mut rows: Vec<_> =
        entries.iter().map(|entry| row(&node, now, entry)).filter(|row| args.filter.takes(row)).collect();
    rows.sort_by(|a, b| a.age_seconds.total_cmp(&b.age_seconds));
    rows.truncate(args.last);
    match args.output {
        OutputFormat::Json => print_json(&rows)?,
        OutputFormat::Table => {
            if let Some(problem) = node.agent().problem() {
                writeln!(std::io::stderr(), "note: {problem}")?;
            }
            let mut all =
                table(["AGE", "CLIENT", "POD", "ADDRESS", "STATE", "VERDICT", "REASON", "IN", "OUT"]);
            for row in &rows {
                let end = |address: &str, port: u16| {
                    if address.contains(':') {
                        format!("[{address}]:{port}")
                    } else {
                        format!("{address}:{port}")
                    }
                };
                all.add_row([
                    format!("{:.1} s", row.age_seconds),
                    end(&row.client, row.client_port),
                    row.pod.clone(),
                    end(&row.address, row.port),
                    row.state.clone(),
                    row.verdict.to_owned(),
                    row.reason.to_owned(),
                    row.bytes_to_pod.to_string(),
                    row.bytes_from_pod.to_string(),
                ]);
            }
            print_table(&all)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_combine() {
        let row = Row {
            age_seconds: 0.0,
            client: "10.0.0.9".into(),
            client_port: 4000,
            address: "10.0.0.1".into(),
            port: 8080,
            pod: "shop/a".into(),
            state: "TLS".into(),
            verdict: "allow",
            reason: "TLS",
            generation: 1,
            bytes_to_pod: 1,
            bytes_from_pod: 2,
        };
        let all = Filter::default();
        assert!(all.takes(&row));
        let filter = Filter { reason: Some("tls".into()), port: Some(8080), ..Filter::default() };
        assert!(filter.takes(&row));
        assert!(!Filter { port: Some(8081), ..filter }.takes(&row));
        assert!(!Filter { pod: Some("shop/b".into()), ..Filter::default() }.takes(&row));
        assert!(!Filter { verdict: Some("reset".into()), ..Filter::default() }.takes(&row));
    }
}
