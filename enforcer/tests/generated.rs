//! Completions and manual pages exist for every subcommand, and shells and `man` take them.

use std::process::{Command, Output};

use tempfile::TempDir;

fn enforcer(words: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_enforcer")).args(words).output();
    let output = output.expect("the binary starts");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(words: &[&str]) -> String {
    String::from_utf8(enforcer(words).stdout).expect("text")
}

/// The subcommands that a help text lists, with their own behind them.
fn subcommands(path: &[&str]) -> Vec<Vec<String>> {
    let help = text(&[path, &["--help"]].concat());
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| line.starts_with("  ")).filter_map(|line| {
        // Deeper lines are the rest of a description.
        line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split_whitespace().next()
    });
    let mut all = Vec::new();
    for name in names {
        let sub: Vec<&str> = path.iter().copied().chain([name]).collect();
        all.push(sub.iter().map(|word| (*word).to_owned()).collect());
        all.extend(subcommands(&sub));
    }
    all
}

#[test]
fn every_subcommand_has_a_manual_page_and_a_completion() {
    let all = subcommands(&[]);
    assert!(all.len() > 10, "{all:?}");
    assert!(all.contains(&vec!["policy".to_owned(), "lint".to_owned()]), "{all:?}");
    let dir = TempDir::new().expect("a temporary folder");
    enforcer(&["man", dir.path().to_str().expect("a path")]);
    let shells = ["bash", "zsh", "fish"].map(|shell| text(&["completions", shell]));
    for path in &all {
        let page = dir.path().join(format!("enforcer-{}.1", path.join("-")));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|_| panic!("no {}", page.display()));
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        let last = path.last().expect("a name");
        assert!(shells.iter().all(|shell| shell.contains(last.as_str())), "{path:?}");
    }
    assert!(dir.path().join("enforcer.1").is_file());
}

#[test]
fn bash_takes_its_completions() {
    let script = text(&["completions", "bash"]);
    let complete = format!(
        "{script}\nCOMP_WORDS=(enforcer policy li) COMP_CWORD=2\n_enforcer enforcer li policy\necho \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").args(["--norc", "-c", &complete]).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "lint", "{output:?}");
}

#[test]
fn an_unknown_shell_is_a_usage_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_enforcer")).args(["completions", "sh"]).output();
    assert_eq!(output.expect("it starts").status.code(), Some(2));
}
