use clap::Parser;

use super::{Answer, Form, RemoteArgs, form, is_plugin, readiness, remote, silent, words};
use crate::telemetry::readiness::Absent;

#[derive(Parser)]
struct Root {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Status {
        #[command(flatten)]
        remote: RemoteArgs,
    },
    Lint,
}

fn asked(line: &[&str], plugin: bool) -> Option<RemoteArgs> {
    let matches = <Root as clap::CommandFactory>::command().try_get_matches_from(line).expect("it parses");
    remote(&matches, plugin)
}

#[test]
fn a_command_is_about_this_node_unless_it_says_otherwise() {
    assert!(asked(&["enforcer", "status"], false).is_none());
    assert!(asked(&["enforcer", "lint"], true).is_none(), "what knows no nodes is run here");
    let one = asked(&["enforcer", "status", "--node", "a", "--context", "c"], true).expect("remote");
    assert_eq!((one.node.as_deref(), one.kube, one.context.as_deref()), (Some("a"), false, Some("c")));
    assert_eq!(one.namespace, "enforcer-system");
    assert!(asked(&["enforcer", "status", "--kube"], false).expect("remote").kube);
    assert!(asked(&["kubectl-enforcer", "status"], true).expect("remote").kube);
}

#[test]
fn what_is_for_this_side_is_not_handed_on() {
    let line = |text: &str| words(text.split(' ').map(str::to_owned)).join(" ");
    assert_eq!(line("enforcer status --node a -o json"), "status -o json");
    assert_eq!(line("enforcer --node=a flows --kubeconfig /x --pod b --context=c"), "flows --pod b");
    assert_eq!(line("enforcer status --kube --agent-namespace n --agent-selector=a=b"), "status");
}

#[test]
fn the_form_of_the_answer_is_the_one_that_was_asked_for() {
    for (text, wanted) in [
        ("status", Form::Text),
        ("status -o json", Form::Json),
        ("status --output json", Form::Json),
        ("status --output=json", Form::Json),
        ("status -o table", Form::Text),
        ("flows --pod json", Form::Text),
    ] {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        assert_eq!(form(&words), wanted, "{text}");
    }
}

#[test]
fn the_name_of_the_program_makes_it_a_plugin() {
    assert!(is_plugin(Some(&"/usr/local/bin/kubectl-enforcer".into())));
    assert!(!is_plugin(Some(&"/usr/local/bin/enforcer".into())));
    assert!(!is_plugin(None));
}

#[test]
fn a_node_that_gave_no_answer_is_merged_as_such() {
    let answer = |node: &str, said: Result<&str, &str>, code| Answer {
        node: node.to_owned(),
        said: said.map(str::to_owned).map_err(|error| anyhow::anyhow!("{error}")),
        complained: "nothing is pinned".to_owned(),
        code,
    };
    let answers = [answer("a", Ok("{}"), 1), answer("b", Err("no way"), 2), answer("c", Ok(""), 2)];
    let silent = silent(&answers);
    assert_eq!(silent.get("b").map(String::as_str), Some("no way"));
    assert_eq!(silent.get("c").map(String::as_str), Some("its agent says: nothing is pinned"));
    assert_eq!(silent.len(), 2);
    let absent = [Absent { node: "b".into(), why: "no way".into(), workloads: None }];
    let mut line = Vec::new();
    let words = vec!["readiness".to_owned(), "--min-watched=1h".to_owned()];
    let code = readiness(&answers, &absent, words, |merged| {
        line = merged;
        Ok(std::process::ExitCode::SUCCESS)
    });
    assert!(code.is_ok());
    assert_eq!(line[..3], ["enforcer", "readiness", "--min-watched=1h"]);
    assert_eq!(line[3], r#"--absent={"node":"b","why":"no way","workloads":null}"#);
    assert_eq!((line[4].as_str(), line.len()), ("--merge", 6));
    let none = readiness(&answers[1..], &[], Vec::new(), |_| unreachable!("nothing to merge"));
    assert!(none.expect_err("no answer").to_string().contains("node b (no way)"));
}
