//! `enforcer top` in a real terminal of 80x24, driven by its keys.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT, enforcer_binary};
use enforcer_tests::lab::{NODE, quote};
use enforcer_tests::{Lab, Scene, poll};

/// A terminal whose server belongs to this lab alone; ended when dropped.
struct Terminal<'a> {
    lab: &'a Lab,
    socket: String,
}

impl<'a> Terminal<'a> {
    fn start(lab: &'a Lab, command: &str) -> Result<Self> {
        let terminal = Self { lab, socket: lab.dir().join("tmux").display().to_string() };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", command])?;
        Ok(terminal)
    }

    fn tmux(&self, words: &[&str]) -> Result<String> {
        let tmux = ["env", "LC_ALL=C.UTF-8", "tmux", "-u", "-S", &self.socket];
        let words = tmux.iter().chain(words).copied();
        Ok(self.lab.exec(NODE, words)?.success()?.stdout)
    }

    fn keys(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    fn screen(&self) -> Result<Vec<String>> {
        Ok(self.tmux(&["capture-pane", "-p"])?.lines().map(|line| line.trim_end().to_owned()).collect())
    }

    /// Waits until the screen is as it should be.
    fn wait(&self, what: &str, check: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        let mut last = Vec::new();
        poll::until(what, Duration::from_secs(30), || {
            last = self.screen()?;
            ensure!(check(&last), "{last:#?}");
            Ok(())
        })?;
        Ok(last)
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // It has ended already when its program has.
        let _ = self.tmux(&["kill-server"]);
    }
}

fn row<'a>(screen: &'a [String], start: &str) -> Option<&'a String> {
    screen.iter().find(|line| line.starts_with(start))
}

#[test]
fn top_shows_workloads_refusals_and_clients_and_obeys_its_keys() -> Result<()> {
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    let lab = &scene.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    let words = std::iter::once(enforcer_binary()?.display().to_string())
        .chain(["top".to_owned(), "--interval".to_owned(), "0.5".to_owned()])
        .chain(lab.places());
    let command: Vec<String> = words.map(|word| quote(&word)).collect();
    let terminal = Terminal::start(lab, &command.join(" "))?;
    terminal.wait("the workloads", |screen| row(screen, "hipstershopv1v2/frontend").is_some())?;

    // Traffic shows.
    let refused = lab.curl("sleep", &["http://adservice.hipstershopv1v2:9555"])?;
    assert_eq!(refused.code, 56);
    lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    lab.mesh_curl("loadgenerator", &["https://frontend.hipstershopv1v2:8080"])?.success()?;
    let screen = terminal.wait("the refusal, named", |screen| {
        screen.iter().any(|line| {
            line.contains("noistio/sleep") && line.contains("adservice:9555") && line.contains("PLAINTEXT")
        })
    })?;
    assert!(screen[0].starts_with("enforcer top  agent running  mode enforce  3 workloads"), "{screen:#?}");
    assert!(screen.iter().all(|line| line.chars().count() <= 80), "{screen:#?}");
    let frontend = row(&screen, "hipstershopv1v2/frontend").context("the frontend")?;
    assert!(frontend.contains("PERMISSIVE") && frontend.contains('█'), "{screen:#?}");
    let adservice = row(&screen, "hipstershopv1v2/adservice").context("the adservice")?;
    assert!(adservice.contains("STRICT") && adservice.contains('█'), "{screen:#?}");
    let keys = screen.last().context("a last line")?;
    assert_eq!(keys, "up/down select  Enter clients  s sort (trouble)  p pause  q quit");

    // By name the frontend is the second one; its clients are both.
    terminal.keys(&["s", "s"])?;
    terminal
        .wait("the order by name", |screen| screen.last().is_some_and(|keys| keys.contains("sort (name)")))?;
    terminal.keys(&["Up", "Up", "Up", "Down", "Enter"])?;
    let mesh_client =
        |screen: &[String]| screen.iter().find(|line| line.contains("/loadgenerator ")).cloned();
    let clients = terminal.wait("the clients", |screen| {
        row(screen, "clients of hipstershopv1v2/frontend").is_some() && mesh_client(screen).is_some()
    })?;
    let sleep = row(&clients, "noistio/sleep").context("the plaintext client")?;
    assert!(sleep.contains("plaintext") && sleep.contains("PLAINTEXT_PERMITTED"), "{clients:#?}");
    let mesh = mesh_client(&clients).context("the mesh client")?;
    assert!(mesh.contains("TLS") && mesh.contains("allow"), "{clients:#?}");
    terminal.keys(&["Escape"])?;
    terminal.wait("the workloads again", |screen| row(screen, "WORKLOAD ").is_some())?;
    terminal.keys(&["q"])?;
    poll::until("the terminal to be given back", Duration::from_secs(10), || {
        ensure!(terminal.screen().is_err(), "it still runs");
        Ok(())
    })
}

#[test]
fn top_without_a_terminal_says_so() -> Result<()> {
    let scene = Scene::strict()?;
    let output = scene.lab.enforcer(&["top"])?;
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("needs a terminal"), "{output:?}");
    Ok(())
}
