//! `enforcer completions` and `enforcer man`: generated from the definition of the command line, so that they cannot
//! differ from it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap_complete::Shell;

/// Print the completions for a shell.
///
/// For example: `enforcer completions bash > /etc/bash_completion.d/enforcer`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual pages.
///
/// For example: `enforcer man /usr/local/share/man/man1`. Without a folder the page of `enforcer` itself is printed.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder for one page per subcommand.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs `enforcer completions`.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "enforcer", &mut text);
    Ok(io::stdout().lock().write_all(&text)?)
}

/// Runs `enforcer man`.
///
/// # Errors
/// When stdout or the folder cannot be written.
pub fn man(args: &ManArgs, mut command: clap::Command) -> anyhow::Result<()> {
    // Fills in what subcommands inherit, and their full names.
    command.build();
    let Some(dir) = &args.dir else {
        return Ok(clap_mangen::Man::new(command).render(&mut io::stdout().lock())?);
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    pages(&command, dir)
}

/// The page of a command and those of its subcommands: `enforcer-policy-lint.1`.
fn pages(command: &clap::Command, dir: &Path) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).render(&mut page)?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| pages(sub, dir))
}
