//! `enforcer policy lint`: what is wrong with policies, in the forms that pipelines read.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

use super::{Reading, load, plural};
use crate::cli::EXIT_NO;
use crate::cli::output::{print_json, print_table, table};
use crate::policy::age;
use crate::policy::lint::lint;
use crate::policy::problem::Problem;
use crate::policy::rules::{self, Severity};

mod forms;

/// Arguments of `enforcer policy lint`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Manifest files and folders; pods, Services and webhooks among them make more checks possible. `-` is standard
    /// input.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    reading: Reading,
    /// Exit with 1 on warnings too.
    #[arg(long)]
    strict: bool,
    /// Warnings that are not wanted, by their rules.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "RULE", value_parser = ignorable)]
    ignore: Vec<&'static str>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Forms of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; its form is stable.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// GitHub workflow annotations.
    Github,
}

/// A rule that may be left out: what is refused is refused.
fn ignorable(id: &str) -> Result<&'static str, String> {
    match rules::find(id) {
        Some(rule) if rule.severity == Severity::Warning => Ok(rule.id),
        Some(_) => Err("it finds errors, which cannot be ignored".to_owned()),
        None => {
            let warnings = rules::RULES.iter().filter(|rule| rule.severity == Severity::Warning);
            let known: Vec<_> = warnings.map(|rule| rule.id).collect();
            Err(format!("no such rule; there are {}", known.join(", ")))
        }
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Findings {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings {
    /// All findings with their severity, errors first.
    fn all(&self) -> impl Iterator<Item = (&'static str, &Problem)> {
        let errors = self.errors.iter().map(|problem| ("error", problem));
        errors.chain(self.warnings.iter().map(|problem| ("warning", problem)))
    }
}

/// Runs the subcommand: exit code 1 when there are errors, with `--strict` also when there are warnings.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for path in args.manifests.iter().filter(|path| *path != Path::new("-")) {
        fs::metadata(path)
            .with_context(|| format!("{} cannot be read; check --manifests", path.display()))?;
    }
    let mut loaded = load(&args.manifests);
    age::settle(&mut loaded.objects, &loaded.dated);
    if loaded.files.is_empty() {
        writeln!(io::stderr(), "warning: the folders given hold no *.yaml, *.yml or *.json")?;
    }
    let empty: BTreeSet<String> = loaded
        .warnings
        .iter()
        .filter(|problem| problem.rule == "selector-empty")
        .map(|problem| problem.object.clone())
        .collect();
    let composer = args.reading.composer(&loaded);
    let mut warnings = lint(&loaded.objects, &composer, &empty);
    warnings.extend(loaded.warnings.iter().cloned());
    // A repository holds what others read.
    warnings.retain(|problem| problem.rule != "kind-foreign" && !args.ignore.contains(&problem.rule));
    warnings.sort();
    let findings = Findings { errors: loaded.problems.clone(), warnings };
    match args.output {
        Format::Json => print_json(&findings)?,
        Format::Sarif => print_json(&forms::sarif(&findings))?,
        Format::Github => forms::github(&findings)?,
        Format::Table => print(&findings)?,
    }
    let bad = !findings.errors.is_empty() || (args.strict && !findings.warnings.is_empty());
    Ok(if bad { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}

fn print(findings: &Findings) -> io::Result<()> {
    let mut rows = table(["SEVERITY", "RULE", "WHERE", "OBJECT", "FIELD", "MESSAGE"]);
    for (severity, problem) in findings.all() {
        let place = match &problem.file {
            Some(file) if problem.document > 0 => format!("{}#{}", file.display(), problem.document),
            Some(file) => file.display().to_string(),
            None => "-".to_owned(),
        };
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        rows.add_row([
            severity.to_owned(),
            problem.rule.to_owned(),
            place,
            or_dash(&problem.object),
            or_dash(&problem.field),
            problem.message.clone(),
        ]);
    }
    if findings.all().next().is_some() {
        print_table(&rows)?;
        writeln!(io::stdout())?;
    }
    let (errors, warnings) = (findings.errors.len(), findings.warnings.len());
    writeln!(io::stdout(), "{}, {}", plural(errors, "error"), plural(warnings, "warning"))
}
