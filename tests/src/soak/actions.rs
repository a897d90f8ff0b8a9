//! What happens while the load goes on.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_common::Mode;
use nix::sys::signal::Signal;

use super::{Done, FLIPPER, FLIPPER_FILE, Random, Stage, flipper};
use crate::lab::Pod;
use crate::poll;

/// What an agent says when it is up.
pub(super) const RUNNING: &str = "agent is running";
const LIMIT: Duration = Duration::from_mins(1);
const START: Duration = Duration::from_mins(2);

/// One of the things that happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Nothing for a while.
    Wait,
    /// The flipper's policy changes.
    Flip,
    /// A pod comes, is tried, and goes.
    Pod,
    /// The agent is stopped and started.
    Restart,
    /// The agent is killed, at any moment of its life, and started again at once or a little later.
    Kill,
}

impl Action {
    /// The next one; without restarts and kills when the agent stays.
    pub(super) fn choose(random: &mut Random, agent_stays: bool) -> Self {
        match random.below(if agent_stays { 8 } else { 12 }) {
            0..=2 => Self::Wait,
            3..=5 => Self::Flip,
            6 | 7 => Self::Pod,
            8 | 9 => Self::Restart,
            _ => Self::Kill,
        }
    }

    pub(super) fn run(self, stage: &mut Stage, random: &mut Random, done: &mut Done) -> Result<()> {
        let pause = Duration::from_millis(random.below(2000));
        match self {
            Self::Wait => thread::sleep(pause),
            Self::Flip => {
                stage.permissive = !stage.permissive;
                stage.lab.apply(FLIPPER_FILE, &flipper(!stage.permissive))?;
                let mode = if stage.permissive { Mode::PERMISSIVE } else { Mode::STRICT };
                stage.lab.wait_mode(FLIPPER, mode)?;
                done.flips += 1;
                thread::sleep(pause);
            }
            Self::Pod => {
                come_and_go(stage)?;
                done.pods += 1;
            }
            Self::Restart => {
                stage.agent.signal(Signal::SIGTERM)?;
                let code = stage.agent.wait(LIMIT)?;
                ensure!(code == 0, "the agent ended with {code}:\n{}", stage.agent.output());
                thread::sleep(pause / 4);
                up(stage, done)?;
                done.restarts += 1;
            }
            Self::Kill => {
                // Some die while they start.
                for _ in 0..=random.below(3) {
                    stage.agent.kill()?;
                    stage.agent = stage.lab.start_agent(&[])?;
                    done.kills += 1;
                    thread::sleep(Duration::from_millis(random.below(600)));
                }
                stage.agent.kill()?;
                done.kills += 1;
                thread::sleep(pause);
                up(stage, done)?;
            }
        }
        Ok(())
    }
}

fn up(stage: &mut Stage, done: &mut Done) -> Result<()> {
    stage.agent = stage.lab.start_agent(&[])?;
    let begun = Instant::now();
    // The machine may be busy with other things for a while; how long it took is told at the end.
    poll::until("the agent to run", START, || {
        let (ended, output) = (stage.agent.ended()?, stage.agent.output());
        ensure!(output.contains(RUNNING), "it does not yet, ended {ended:?}: {output}");
        Ok(())
    })?;
    done.slowest_start = done.slowest_start.max(begun.elapsed());
    Ok(())
}

/// A pod that is enforced from its first connection on, although its name and addresses have been somebody else's.
fn come_and_go(stage: &mut Stage) -> Result<()> {
    stage.next_pod = (stage.next_pod + 1) % 8;
    let name = format!("guest{}", stage.next_pod);
    stage.lab.add_pod(Pod::meshed("hipstershopv1v2", &name, 50 + stage.next_pod % 3).port(8080))?;
    stage.lab.describe()?;
    stage.lab.wait_mode_here(&name, Mode::STRICT)?;
    {
        let (_server, records) = stage.lab.sidecar(&name, 8080)?;
        let host = format!("{name}.hipstershopv1v2:8080");
        let plain = stage.lab.curl("sleep", &[&format!("http://{host}")])?;
        ensure!(plain.code == 56, "plaintext to a new pod: {plain:?}");
        let mesh = stage.lab.mesh_curl("loadgenerator", &[&format!("https://{host}")])?;
        ensure!(mesh.code == 0, "TLS to a new pod: {mesh:?}");
        let leaked = records.all()?.into_iter().find(|record| record.class == "plaintext" && record.read > 0);
        ensure!(leaked.is_none(), "plaintext came through: {leaked:?}");
    }
    stage.lab.remove_pod(&name)?;
    stage.lab.describe()
}
