//! `enforcer flows`: verdicts and ends of connections, recent ones and as they happen.

use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use enforcer_common::{Reason, Verdict};
use jiff::{SignedDuration, Timestamp};

use super::node::{Node, NodeArgs};
use super::output::{OutputFormat, print_table};
use crate::telemetry::client::{self, AskError};
use crate::telemetry::filter::{self, Filter};
use crate::telemetry::record::Record;
use crate::telemetry::{self};

mod kernel;
mod rows;

/// List verdicts and ends of connections to meshed pods, the latest last, from the agent's log. When no agent runs: what the
/// kernel's table of connections still holds.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Control socket of the agent.
    #[arg(long, env = "ENFORCER_SOCKET", default_value = telemetry::DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Go on with what happens, until interrupted.
    #[arg(short, long, conflicts_with = "kernel")]
    follow: bool,
    /// Read the kernel's table of connections instead of the agent's log: also what was before the agent started, one line
    /// for each connection, with less said about it.
    #[arg(long)]
    kernel: bool,
    /// Form of the output; json is one object a line.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
    /// At most this many of the recent ones.
    #[arg(long, default_value_t = 100, value_name = "N")]
    last: usize,
}

#[derive(Debug, Default, clap::Args)]
struct FilterArgs {
    /// Only this verdict: `allow`, `reset`, `drop`, `would_reset` or `none`. Packets that `wait` are counted only, and never
    /// recorded as a flow.
    #[arg(long, value_name = "VERDICT", value_parser = filter::verdict)]
    verdict: Option<Verdict>,
    /// Only this reason, such as `PLAINTEXT`.
    #[arg(long, value_name = "REASON", value_parser = filter::reason)]
    reason: Option<Reason>,
    /// Only what the client speaks.
    #[arg(long, value_name = "CLASS", value_parser = filter::class)]
    class: Option<&'static str>,
    /// Only this pod, at either end: `NAMESPACE/NAME`.
    #[arg(long, value_name = "NS/NAME", value_parser = pod_name)]
    pod: Option<String>,
    /// Only this namespace, at either end.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only this port of the meshed pod.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only what is not older: a time such as 2026-01-31T12:00:00Z, or an age such as 90s, 5m or 1h.
    #[arg(long, value_name = "TIME|AGE", value_parser = since)]
    since: Option<Timestamp>,
}

fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("give namespace and name, such as shop/web-0".to_owned()),
    }
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let age = text.parse::<SignedDuration>().ok().filter(|age| !age.is_negative());
    let time = age.and_then(|age| Timestamp::now().checked_sub(age).ok());
    time.ok_or_else(|| "give a time such as 2026-01-31T12:00:00Z, or an age such as 90s, 5m or 1h".to_owned())
}

impl Args {
    fn filter(&self) -> Filter {
        let FilterArgs { verdict, reason, class, pod, namespace, port, since } = &self.filter;
        Filter {
            verdict: *verdict,
            reason: *reason,
            class: *class,
            pod: pod.clone(),
            namespace: namespace.clone(),
            port: *port,
            since: *since,
            last: Some(self.last),
            follow: self.follow,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When no agent has run here, or what it left cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let filter = args.filter();
    if !args.kernel {
        match client::follow(&args.socket, &format!("/v1/flows?{}", filter.query())) {
            Ok(answer) => {
                let records = answer.lines().map(|line| {
                    let line = line.context("the agent's answer broke off: it stopped")?;
                    serde_json::from_str(&line)
                        .context("the agent's answer cannot be read: use the binary of its version")
                });
                return print(args, records);
            }
            // What the kernel side knows is there without an agent too.
            Err(error @ AskError::Connect { .. }) if args.follow => return Err(error.into()),
            Err(AskError::Connect { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let node = Node::open(&args.node)?;
    if !args.kernel {
        let why = node.agent().problem().unwrap_or_else(|| {
            format!("the agent does not answer on {}: give its --socket", args.socket.display())
        });
        writeln!(io::stderr(), "note: {why}. This is what the kernel's table of connections holds.")?;
    }
    let records = kernel::records(&node, &filter)?;
    print(args, records.into_iter().map(Ok))
}

/// Prints records as they come.
fn print(args: &Args, mut records: impl Iterator<Item = anyhow::Result<Record>>) -> anyhow::Result<ExitCode> {
    match args.output {
        OutputFormat::Json => {
            let mut out = io::stdout().lock();
            for record in records {
                serde_json::to_writer(&mut out, &record?)?;
                out.write_all(b"\n")?;
                out.flush()?;
            }
        }
        OutputFormat::Table if args.follow => {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", rows::heading())?;
            for record in records {
                writeln!(out, "{}", rows::line(&record?))?;
                out.flush()?;
            }
        }
        OutputFormat::Table => {
            let mut all = rows::table();
            records.try_for_each(|record| {
                all.add_row(rows::cells(&record?));
                anyhow::Ok(())
            })?;
            print_table(&all)?;
        }
    }
    // Only the agent's end ends this.
    if args.follow {
        bail!("the agent stopped, and nothing more is told: start the command again when it runs");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_an_age() {
        let time = since("2026-01-31T12:00:00Z").expect("a time");
        assert_eq!(time.to_string(), "2026-01-31T12:00:00Z");
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h", 3600)] {
            let then = since(text).expect("an age");
            let age = Timestamp::now().duration_since(then).as_secs();
            assert!((seconds..seconds + 5).contains(&age), "{text}: {age}");
        }
        for text in ["", "yesterday", "-5m", "5"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pod_has_a_namespace() {
        assert!(pod_name("shop/web").is_ok());
        for text in ["web", "/web", "shop/"] {
            assert!(pod_name(text).is_err(), "{text}");
        }
    }
}
