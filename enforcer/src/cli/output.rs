//! What all subcommands that print share: the format and a plain table.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How a subcommand prints its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs; one document, its form is stable.
    Json,
}

/// Writes `value` as indented JSON and a newline to stdout.
///
/// # Errors
/// When stdout cannot be written.
pub fn print_json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value)?;
    writeln!(stdout)
}

/// An aligned table without borders, headings in capitals; the caller adds rows and prints it with [`print_table`].
#[must_use]
pub fn table<const N: usize>(headings: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    table
}

/// Writes a table to stdout, without trailing blanks.
///
/// # Errors
/// When stdout cannot be written.
pub fn print_table(table: &Table) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in table.lines() {
        writeln!(stdout, "{}", line.trim_start_matches(' ').trim_end())?;
    }
    Ok(())
}
