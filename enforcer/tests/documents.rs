//! What the documents print is what the commands print: every `$ enforcer policy …` of the README and of docs/policy.md is
//! run on the demo's manifests, and its output compared.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const DOCUMENTS: [&str; 2] = ["README.md", "docs/policy.md"];

/// The folder that the commands of the documents are run in.
fn scene(root: &Path) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink(root.join("demo"), at("demo")).expect("linked");
    for (side, sources) in [("old", &["demo"][..]), ("new", &["demo", "demo/policies"])] {
        fs::create_dir(at(side)).expect("made");
        for source in sources {
            for entry in fs::read_dir(root.join(source)).expect("the demo") {
                let file = entry.expect("an entry").path();
                if file.extension().is_some_and(|ending| ending == "yaml") {
                    fs::copy(&file, at(side).join(file.file_name().expect("a name"))).expect("copied");
                }
            }
        }
    }
    let policy = fs::read_to_string(root.join("demo/policies/frontend-permissive.yaml")).expect("the policy");
    let whole = "app: frontend.hipstershopv1v2.svc.cluster.local";
    assert!(policy.contains(whole), "{policy}");
    fs::write(at("typo.yaml"), policy.replace(whole, "app: frontend")).expect("written");
    folder
}

/// Commands and what is printed below them: indented lines up to the next command or the end of the block.
fn examples(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(line) if line.starts_with("$ ") => {
                open = line.starts_with("$ enforcer policy ");
                if open {
                    found.push((line[2..].to_owned(), String::new()));
                }
            }
            Some(line) if open => {
                if let Some((_, output)) = found.last_mut() {
                    output.push_str(line);
                    output.push('\n');
                }
            }
            None if line.is_empty() && open => {
                if let Some((_, output)) = found.last_mut() {
                    output.push('\n');
                }
            }
            _ => open = false,
        }
    }
    found
}

#[test]
fn documents_show_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let folder = scene(root);
    let mut commands = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).expect("the document");
        for (command, shown) in examples(&text) {
            let words: Vec<&str> = command.split_whitespace().skip(1).collect();
            let output = Command::new(env!("CARGO_BIN_EXE_enforcer"))
                .args(&words)
                .current_dir(folder.path())
                .env_remove("ENFORCER_ROOT_NAMESPACE")
                .output()
                .expect("the binary starts");
            let printed = String::from_utf8_lossy(&output.stdout);
            let lines = |text: &str| {
                text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(lines(&printed), lines(&shown), "{document}: {command}\nprints\n{printed}");
            commands.push(words[1].to_owned());
        }
    }
    for command in ["explain", "lint", "diff"] {
        assert!(commands.iter().any(|found| found == command), "no example of {command}: {commands:?}");
    }
}

/// Every rule is in the document, under its severity, and nothing else is.
#[test]
fn the_rules_are_all_documented() {
    use std::collections::BTreeSet;

    use enforcer::policy::rules::RULES;

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let text = fs::read_to_string(root.join("docs/policy.md")).expect("the document");
    let documented = |heading: &str| -> BTreeSet<String> {
        let rows = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
        rows.take_while(|line| line.starts_with('|'))
            .filter_map(|line| line.split('|').nth(1))
            .flat_map(|cell| cell.split(','))
            .map(|name| name.trim().trim_matches('`').to_owned())
            .collect()
    };
    for (heading, severity) in [("| error |", "error"), ("| warning |", "warning")] {
        let known: BTreeSet<String> = RULES
            .iter()
            .filter(|rule| rule.severity.name() == severity)
            .map(|rule| rule.id.to_owned())
            .collect();
        assert_eq!(documented(heading), known, "{severity}s");
    }
}
