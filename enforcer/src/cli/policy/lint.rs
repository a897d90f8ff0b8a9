//! `enforcer policy lint`: what is wrong with policies, in the forms that pipelines read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use super::{Reading, load};
use crate::cli::EXIT_NO;
use crate::cli::output::{print_json, print_table, table};
use crate::policy::lint::lint;
use crate::policy::problem::Problem;

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
    let loaded = load(&args.manifests);
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
    warnings.sort();
    let findings = Findings { errors: loaded.problems.clone(), warnings };
    match args.output {
        Format::Json => print_json(&findings)?,
        Format::Sarif => print_json(&sarif(&findings))?,
        Format::Github => github(&findings)?,
        Format::Table => print(&findings)?,
    }
    let bad = !findings.errors.is_empty() || (args.strict && !findings.warnings.is_empty());
    Ok(if bad { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
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

/// First lines of documents, read again from the files: problems carry document numbers.
#[derive(Default)]
struct Lines(BTreeMap<PathBuf, Vec<usize>>);

impl Lines {
    /// The line, from 1, on which the document of a problem starts; 1 when that cannot be said.
    fn line(&mut self, problem: &Problem) -> usize {
        let Some(file) = &problem.file else { return 1 };
        let starts = self.0.entry(file.clone()).or_insert_with(|| {
            let text =
                if file.is_file() { fs::read_to_string(file).unwrap_or_default() } else { String::new() };
            starts(&text)
        });
        starts.get(problem.document.saturating_sub(1)).copied().unwrap_or(1)
    }
}

/// The line of the first content of every document of a file; nothing when a list shifts the numbers.
fn starts(text: &str) -> Vec<usize> {
    if text.lines().any(|line| line.starts_with("kind:") && line.trim_end().ends_with("List")) {
        return Vec::new();
    }
    let mut starts = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            // A marker before any content opens the first document and ends none.
            inside = false;
        } else if !inside && !line.trim().is_empty() && !line.starts_with(['#', '%']) {
            inside = true;
            starts.push(index + 1);
        }
    }
    starts
}

fn sentence(problem: &Problem) -> String {
    let parts = [problem.object.as_str(), problem.field.as_str(), problem.message.as_str()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

fn sarif(findings: &Findings) -> serde_json::Value {
    let rules: BTreeSet<_> = findings.all().map(|(_, problem)| problem.rule).collect();
    let rules: Vec<_> = rules.into_iter().map(|rule| json!({ "id": rule })).collect();
    let mut lines = Lines::default();
    let results: Vec<_> = findings
        .all()
        .map(|(severity, problem)| {
            let mut result = json!({
                "ruleId": problem.rule,
                "level": severity,
                "message": { "text": sentence(problem) },
            });
            if let Some(file) = &problem.file {
                let uri = file.to_string_lossy().replace('%', "%25").replace(' ', "%20");
                let line = lines.line(problem);
                result["locations"] = json!([{
                    "physicalLocation": { "artifactLocation": { "uri": uri }, "region": { "startLine": line } },
                    "logicalLocations": [{ "fullyQualifiedName": problem.object }],
                }]);
            }
            result
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "enforcer", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "results": results,
        }],
    })
}

fn github(findings: &Findings) -> io::Result<()> {
    let escape = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    // Properties end at commas and colons.
    let property = |text: &str| escape(text).replace(':', "%3A").replace(',', "%2C");
    let mut lines = Lines::default();
    let mut stdout = io::stdout().lock();
    for (severity, problem) in findings.all() {
        let mut properties = vec![format!("title={}", property(problem.rule))];
        if let Some(file) = &problem.file {
            properties.push(format!("file={}", property(&file.to_string_lossy())));
            properties.push(format!("line={}", lines.line(problem)));
        }
        writeln!(stdout, "::{severity} {}::{}", properties.join(","), escape(&sentence(problem)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::starts;

    #[test]
    fn documents_start_at_their_first_content() {
        assert_eq!(starts("# head\n---\n# more\na: 1\n---\n\nb: 2\nc: 3\n"), [4, 7]);
        assert_eq!(starts("a: 1\n--- # next\nb: 2\n"), [1, 3]);
        assert!(starts("").is_empty());
        assert!(starts("a: 1\n---\nkind: PodList\nitems: []\n---\nb: 2\n").is_empty());
    }
}
