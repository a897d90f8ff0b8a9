//! `enforcer detach`: removes programs, links and maps.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::agent::state;
use crate::datapath::detach::detach;
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
}

/// Runs the subcommand.
///
/// # Errors
/// When an agent is running, or a pin resists.
pub fn run(args: &DetachArgs) -> anyhow::Result<()> {
    let removed = detach(&args.bpffs, args.force)?;
    let mut out = std::io::stdout().lock();
    let file = state::path(&args.state_dir, &std::path::absolute(&args.bpffs)?);
    let manifests = file.with_extension("manifests");
    for (path, removal) in
        [(&manifests, std::fs::remove_dir_all(&manifests)), (&file, std::fs::remove_file(&file))]
    {
        match removal {
            Ok(()) => writeln!(out, "removed state: {}", path.display())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{} cannot be removed", path.display())),
        }
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
