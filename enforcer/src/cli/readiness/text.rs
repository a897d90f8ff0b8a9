//! The answer for people.

use std::io::{self, Write as _};

use crate::cli::output::{print_table, table};
use crate::telemetry::readiness::Mode;
use crate::telemetry::readiness::judge::{Answer, Client, Port, Readiness, Workload, duration};

/// Clients that are shown of one port.
const SHOWN: usize = 10;

pub(super) fn print(answer: &Answer) -> io::Result<()> {
    let Answer { incomplete, workloads, .. } = answer;
    if workloads.is_empty() && incomplete.is_empty() {
        return writeln!(io::stdout(), "no port is PERMISSIVE: nothing is left to turn STRICT");
    }
    if !workloads.is_empty() {
        ports(workloads)?;
        clients("PLAINTEXT CLIENT", workloads, |port| &port.plaintext_clients)?;
        clients("TLS CLIENT WITHOUT MESH ALPN", workloads, |port| &port.tls_clients)?;
        writeln!(io::stdout())?;
    }
    let mut out = io::stdout().lock();
    for workload in workloads {
        let Workload { namespace, workload: name, verdict, why, gaps, gap_seconds, .. } = workload;
        write!(out, "{namespace}/{name}: {}: {why}", verdict.word())?;
        if *gaps > 0 {
            write!(out, "; not watched for {} in between", duration(*gap_seconds))?;
        }
        writeln!(out)?;
    }
    for why in incomplete {
        writeln!(out, "{}: {why}", Readiness::NotEnoughData.word())?;
    }
    Ok(())
}

fn ports(workloads: &[Workload]) -> io::Result<()> {
    let mut rows =
        table(["WORKLOAD", "PORT", "MODE", "TLS", "MESH TLS", "PLAINTEXT", "LAST", "WATCHED", "VERDICT"]);
    for workload in workloads {
        let name = format!("{}/{}", workload.namespace, workload.workload);
        let watched = duration(workload.watched_seconds);
        if workload.ports.is_empty() {
            let mut row = vec![name.clone()];
            row.extend(["-"; 6].map(str::to_owned));
            row.extend([watched.clone(), workload.verdict.word().to_owned()]);
            rows.add_row(row);
        }
        for port in &workload.ports {
            rows.add_row([
                name.clone(),
                port.port.to_string(),
                mode(port).to_owned(),
                port.tls.to_string(),
                port.mesh_tls.to_string(),
                port.plaintext.to_string(),
                port.last.map_or_else(|| "-".to_owned(), |time| format!("{time:.0}")),
                watched.clone(),
                port.verdict.word().to_owned(),
            ]);
        }
    }
    print_table(&rows)
}

const fn mode(port: &Port) -> &'static str {
    match port.mode {
        Mode::Strict => "STRICT (audit)",
        Mode::Permissive => "PERMISSIVE",
        Mode::Disable => "DISABLE",
    }
}

fn clients(title: &str, workloads: &[Workload], of: fn(&Port) -> &[Client]) -> io::Result<()> {
    let ports = || workloads.iter().flat_map(|w| w.ports.iter().map(move |port| (w, port)));
    if ports().all(|(_, port)| of(port).is_empty()) {
        return Ok(());
    }
    writeln!(io::stdout())?;
    let mut rows = table([title, "ADDRESS", "TO", "CONNECTIONS", "FIRST", "LAST"]);
    for (workload, port) in ports() {
        let to = format!("{}/{}:{}", workload.namespace, workload.workload, port.port);
        for client in of(port).iter().take(SHOWN) {
            rows.add_row([
                client.name.clone().unwrap_or_else(|| "-".to_owned()),
                client.address.to_string(),
                to.clone(),
                client.connections.to_string(),
                format!("{:.0}", client.first),
                format!("{:.0}", client.last),
            ]);
        }
        let more = of(port).len().saturating_sub(SHOWN);
        if more > 0 {
            let rest = format!("and {more} more, see -o json");
            rows.add_row([rest, "-".into(), to, "-".into(), "-".into(), "-".into()]);
        }
    }
    print_table(&rows)
}
