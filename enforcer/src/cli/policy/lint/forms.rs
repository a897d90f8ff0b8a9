//! Findings as SARIF and as GitHub annotations, with the lines that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Findings;
use crate::policy::problem::Problem;
use crate::policy::rules;
use crate::source::text;

/// First lines of documents, read again from the files: problems carry document numbers.
#[derive(Default)]
struct Lines(BTreeMap<PathBuf, Vec<usize>>);

impl Lines {
    /// The line, from 1, on which the document of a problem starts; 1 when that cannot be said.
    fn line(&mut self, problem: &Problem) -> usize {
        let Some(file) = &problem.file else { return 1 };
        let starts = self.0.entry(file.clone()).or_insert_with(|| {
            // Standard input cannot be read again.
            let text =
                if file.is_file() { fs::read_to_string(file).unwrap_or_default() } else { String::new() };
            text::lines(&text)
        });
        starts.get(problem.document.wrapping_sub(1)).copied().unwrap_or(1)
    }
}

fn sentence(problem: &Problem) -> String {
    let parts = [problem.object.as_str(), problem.field.as_str(), problem.message.as_str()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

/// A path as the repository knows it, where the command is run in its root.
fn relative(file: &Path) -> PathBuf {
    let inside = env::current_dir().ok().and_then(|here| file.strip_prefix(here).ok().map(Path::to_owned));
    let path = inside.unwrap_or_else(|| file.to_owned());
    path.strip_prefix(".").map(Path::to_owned).unwrap_or(path)
}

/// A path as a reference of RFC 3986.
fn uri(file: &Path) -> String {
    let path = relative(file);
    let mut uri = if path.is_absolute() { "file://".to_owned() } else { String::new() };
    for byte in path.to_string_lossy().bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

/// The findings as SARIF 2.1.0.
pub(super) fn sarif(findings: &Findings) -> Value {
    let used: BTreeSet<_> = findings.all().map(|(_, problem)| problem.rule).collect();
    let described: Vec<_> = rules::RULES
        .iter()
        .filter(|rule| used.contains(rule.id))
        .map(|rule| {
            json!({
                "id": rule.id,
                "shortDescription": { "text": rule.text },
                "defaultConfiguration": { "level": rule.severity.name() },
            })
        })
        .collect();
    let mut lines = Lines::default();
    let results: Vec<_> = findings
        .all()
        .map(|(severity, problem)| {
            let mut result = json!({
                "ruleId": problem.rule,
                "ruleIndex": described.iter().position(|rule| rule["id"] == problem.rule),
                "level": severity,
                "message": { "text": sentence(problem) },
            });
            if let Some(file) = &problem.file {
                let line = lines.line(problem);
                result["locations"] = json!([{
                    "physicalLocation": { "artifactLocation": { "uri": uri(file) }, "region": { "startLine": line } },
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
            "tool": { "driver": { "name": "enforcer", "version": env!("CARGO_PKG_VERSION"), "rules": described } },
            "results": results,
        }],
    })
}

/// Prints the findings as GitHub workflow annotations.
pub(super) fn github(findings: &Findings) -> io::Result<()> {
    let escape = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    // Properties end at commas and colons.
    let property = |text: &str| escape(text).replace(':', "%3A").replace(',', "%2C");
    let mut lines = Lines::default();
    let mut stdout = io::stdout().lock();
    for (severity, problem) in findings.all() {
        let mut properties = vec![format!("title={}", property(problem.rule))];
        if let Some(file) = &problem.file {
            properties.push(format!("file={}", property(&relative(file).to_string_lossy())));
            properties.push(format!("line={}", lines.line(problem)));
        }
        writeln!(stdout, "::{severity} {}::{}", properties.join(","), escape(&sentence(problem)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_and_escaped() {
        let here = env::current_dir().expect("a folder");
        assert_eq!(uri(&here.join("a b/c.yaml")), "a%20b/c.yaml");
        assert_eq!(uri(Path::new("./x.yaml")), "x.yaml");
        assert_eq!(uri(Path::new("/elsewhere/ü#.yaml")), "file:///elsewhere/%C3%BC%23.yaml");
    }
}
