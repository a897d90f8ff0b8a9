//! A program that goes on running when xtask ends: its own session, output in `NAME.log`, process id in `NAME.pid`.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::shell::command;

/// State of a process, and when it began in clock ticks since boot: with the number this names it for ever.
fn stat(pid: u32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; state is the 3rd field, start time the 22nd.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.nth(18)?.to_owned()))
}

/// A daemon by its name, which is that of its program.
pub(crate) struct Daemon<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) name: &'a str,
}

impl Daemon<'_> {
    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }

    /// Its process id, while it runs: a zombie does not, and neither does another program with the same number.
    pub(crate) fn pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.file("pid")).ok()?.trim().parse().ok()?;
        let (state, begun) = stat(pid)?;
        let own = fs::read_to_string(self.file("begun")).ok()?;
        (begun == own && state != "Z" && state != "X").then_some(pid)
    }

    /// Starts it; nothing happens when it runs. `prefix` is what it is started through, such as nsenter; it must become
    /// the program, not its parent.
    pub(crate) fn start(&self, prefix: &[String], program: &Path, arguments: &[String]) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let mut line =
            prefix.iter().cloned().chain([program.display().to_string()]).chain(arguments.iter().cloned());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.file("log"))
            .with_context(|| format!("cannot write {}", self.file("log").display()))?;
        let mut daemon = Command::new(line.next().unwrap_or_default());
        daemon.args(line).stdin(Stdio::null());
        daemon.stdout(log.try_clone().context("cannot share the log")?).stderr(log).process_group(0);
        let child = daemon.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let (_, begun) = stat(child.id()).context("a child that was not waited for is in /proc")?;
        for (extension, text) in [("begun", begun), ("pid", child.id().to_string())] {
            let file = self.file(extension);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// The last line that it wrote.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.file("log")).unwrap_or_default();
        log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
    }

    /// Kills it and waits for its end. The API server would first wait for open watches, and etcd survives it.
    pub(crate) fn kill(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            // It may end by itself just now.
            let _ = command("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
            for _ in 0..500 {
                if self.pid().is_none() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
            if self.pid().is_some() {
                bail!("{} (process {pid}) does not end", self.name);
            }
        }
        // Not there is what is wanted.
        let _ = fs::remove_file(self.file("pid"));
        Ok(())
    }
}
