//! Processes of the lab: run to the end with captured output and a time limit, or left running until dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::poll;

/// How long a command may run.
const LIMIT: Duration = Duration::from_mins(1);

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// Exit code; 128 plus the signal's number when a signal ended it, as a shell gives it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Output {
    /// The output when the command ended with 0.
    ///
    /// # Errors
    /// When it did not, with everything it printed.
    pub fn success(self) -> Result<Self> {
        ensure!(
            self.code == 0,
            "`{}` ended with {}\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }
}

/// Runs a command in the namespaces of this process.
///
/// # Errors
/// When it cannot be started or runs longer than a minute.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args);
    finish(command, None)
}

/// Runs a prepared command to its end, feeding `input`.
pub(super) fn finish(command: Command, input: Option<&str>) -> Result<Output> {
    finish_within(command, input, LIMIT)
}

/// Runs a prepared command to its end, feeding `input`.
///
/// # Errors
/// When it cannot be started or runs longer than `limit`.
pub fn finish_within(mut command: Command, input: Option<&str>, limit: Duration) -> Result<Output> {
    let line = display(&command);
    let start = Instant::now();
    let stdin = match input {
        Some(text) => {
            let mut file = tempfile::tempfile()?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            std::io::Seek::rewind(&mut file)?;
            Stdio::from(file)
        }
        None => Stdio::null(),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`: is the program installed?"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("`{line}` ran longer than {limit:?}");
        }
        thread::sleep(Duration::from_millis(1));
    };
    let elapsed = start.elapsed();
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        let bytes = reader.join().map_err(|_| anyhow!("the reader of `{line}` panicked"))?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Output { code: code(status), stdout: text(stdout)?, stderr: text(stderr)?, elapsed, command: line })
}

fn drain<R: Read + Send + 'static>(source: Option<R>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // What was read before a failure is what there is to show.
            let _ = source.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// The command as it would be typed.
pub(super) fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// Quotes a word where a shell would need it.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\n', "\\n"))
    }
}

/// A running process with its output in a file; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    log: PathBuf,
}

impl Running {
    /// Starts a prepared command; what it prints goes to `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let line = display(&command);
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{line}`: is the program installed?"))?;
        Ok(Self { child, command: line, log: log.to_owned() })
    }

    /// The command line.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Its exit code when it has ended.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(code))
    }

    /// Waits until it has printed `needle`.
    ///
    /// # Errors
    /// When it ends before, or after half a minute (machines are busy); with all its output.
    pub fn wait_for_output(&mut self, needle: &str) -> Result<()> {
        let what = format!("{needle:?} of `{}`", self.command);
        let mut ended = None;
        let found = poll::until(&what, Duration::from_secs(30), || {
            let output = self.output();
            if output.contains(needle) {
                return Ok(true);
            }
            ended = self.ended()?;
            ensure!(ended.is_some(), "not there yet; its output:\n{output}");
            Ok(false)
        })?;
        ensure!(found, "`{}` ended with {ended:?}:\n{}", self.command, self.output());
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal `{}`", self.command))
    }

    /// Waits for its end and gives the exit code.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        let what = format!("the end of `{}`", self.command);
        poll::until(&what, limit, || self.child.try_wait()?.map(code).ok_or_else(|| anyhow!("it still runs")))
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is what is wanted.
        let _ = self.kill();
    }
}
