//! `enforcer detach`: removes programs, links and maps.

mod remote;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::agent::{farewell, state};
use crate::datapath::detach::{DetachError, detach};
use crate::datapath::lock::LockError;
use crate::datapath::pin::DEFAULT_DIR;

/// Remove everything that an agent left on this node: links, filters, programs, maps. Nothing is enforced afterwards.
#[derive(clap::Args, Clone, Debug)]
pub struct DetachArgs {
    /// Folder of the pins.
    #[arg(long, env = "ENFORCER_BPFFS", default_value = DEFAULT_DIR, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Folder of the state files; those of this pin folder are removed too.
    #[arg(long, env = "ENFORCER_STATE_DIR", default_value = state::DEFAULT_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Detach although an agent is running.
    #[arg(long)]
    pub force: bool,
    /// Where an agent is running: it goes on, and removes everything when it stops. For uninstalling.
    #[arg(long, conflicts_with = "force")]
    pub on_exit: bool,
    /// Agents elsewhere.
    #[command(flatten)]
    pub remote: remote::RemoteArgs,
}

/// Runs the subcommand.
///
/// # Errors
/// When an agent is running, or a pin resists.
pub fn run(args: &DetachArgs) -> anyhow::Result<()> {
    if args.remote.kube {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(remote::announce(&args.remote));
    }
    let file = state::path(&args.state_dir, &std::path::absolute(&args.bpffs)?);
    let mut out = std::io::stdout().lock();
    let removed = match detach(&args.bpffs, args.force) {
        Err(DetachError::Running(LockError::Held { .. })) if args.on_exit => {
            farewell::announce(&file).with_context(|| {
                format!("cannot leave word for the agent in {}", args.state_dir.display())
            })?;
            writeln!(out, "the agent removes everything when it stops")?;
            return Ok(());
        }
        removed => removed?,
    };
    for path in farewell::remove_state(&file)? {
        writeln!(out, "removed state: {}", path.display())?;
    }
    if removed.is_empty() {
        writeln!(out, "nothing to remove in {}", args.bpffs.display())?;
        return Ok(());
    }
    for link in &removed.links {
        writeln!(out, "removed link: {link}")?;
    }
    if removed.filters > 0 {
        writeln!(out, "removed clsact filters: {}", removed.filters)?;
    }
    for ifindex in &removed.qdiscs {
        writeln!(out, "removed the clsact qdisc of interface {ifindex}")?;
    }
    for (what, names) in [("programs", &removed.programs), ("maps", &removed.maps)] {
        if !names.is_empty() {
            writeln!(out, "removed {what}: {}", names.join(", "))?;
        }
    }
    for left in &removed.left {
        writeln!(out, "left: {left}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::DetachArgs;

    #[derive(Parser)]
    struct Root {
        #[command(flatten)]
        args: DetachArgs,
    }

    #[test]
    fn agents_are_named_as_in_every_other_command_and_as_before() {
        for (namespace, selector) in
            [("--agent-namespace", "--agent-selector"), ("--namespace", "--selector")]
        {
            let line = ["detach", "--on-exit", "--kube", namespace, "ns", selector, "a=b"];
            let remote = Root::try_parse_from(line).expect("it parses").args.remote;
            assert_eq!((remote.namespace.as_str(), remote.selector.as_str()), ("ns", "a=b"));
        }
    }
}
