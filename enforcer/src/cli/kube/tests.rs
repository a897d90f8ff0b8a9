use clap::Parser;

use super::{Form, RemoteArgs, form, is_plugin, remote, words};

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
