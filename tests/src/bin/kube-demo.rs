//! The walk-through on a real node: every kubectl command with its literal output, every answer checked.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use enforcer_tests::node::{Node, walk};
use serde_json::json;

/// Raises a node, installs the chart and plays the walk-through; exits with 1 when a step differs
#[derive(Parser)]
struct Cli {
    /// Leave the node up at the end until Enter is pressed
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let start = Instant::now();
    match play(&Cli::parse()) {
        Ok(()) => {
            println!("\nEvery step came out as it must ({:.1} s).", start.elapsed().as_secs_f32());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = io::stdout().flush();
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(cli: &Cli) -> Result<()> {
    println!("A node: kubelet, containerd, control plane; then the pods of the walk-through.");
    let node = Node::up()?;
    node.populate()?;
    print!("{}", node.kubectl(&["get", "pods", "-A", "-o", "wide"])?);
    println!(
        "\n$ helm install enforcer deploy/helm/enforcer -n enforcer-system --create-namespace --set agent.mode=enforce"
    );
    node.helm("install", &json!({"agent": {"mode": "enforce"}}))?;
    println!("{} is ready", node.agent()?);
    walk::play(&node, &mut io::stdout())?;

    let agent = node.agent()?;
    println!("\n$ kubectl exec -n enforcer-system daemonset/enforcer -- enforcer status");
    print!("{}", node.exec(&agent, &["enforcer", "status"])?.success()?.stdout);
    if cli.keep {
        println!("\nexport KUBECONFIG={}", node.kubeconfig().display());
        println!("Press Enter to end the node.");
        io::stdin().lock().read_line(&mut String::new())?;
    }
    println!("\n$ helm uninstall enforcer -n enforcer-system");
    node.helm("uninstall", &json!({}))
}
