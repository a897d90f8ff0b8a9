//! Asking a running agent over its control socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// How long the agent may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is not a stream.
const LONGEST: u64 = 1 << 30;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no agent answers on {path} ({source}): start enforcer run, or give its --socket")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The answer broke off or is no HTTP.
    #[error("the agent's answer on {path} cannot be read: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent refused.
    #[error("the agent answered {status}: {body}")]
    Refused {
        /// The status code.
        status: u16,
        /// What it says.
        body: String,
    },
}

/// The body of an answer, read as it comes.
pub type Answer = BufReader<UnixStream>;

/// Asks for `target` (a path, perhaps with a query), and gives the status and the body as it comes.
///
/// # Errors
/// When nobody listens, or what comes is no HTTP.
pub fn open(socket: &Path, target: &str) -> Result<(u16, Answer), AskError> {
    let connect = |source| AskError::Connect { path: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).map_err(connect)?;
    let broken = |source| AskError::Broken { path: socket.to_owned(), source };
    let ask = || -> io::Result<(u16, Answer)> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // HTTP/1.0: the answer is not chunked and ends with the connection.
        (&stream).write_all(format!("GET {target} HTTP/1.0\r\nHost: agent\r\n\r\n").as_bytes())?;
        let mut answer = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("it is no HTTP"))?;
        while line.trim_end() != "" {
            line.clear();
            if answer.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        // What is followed may be silent for long.
        stream.set_read_timeout(None)?;
        Ok((status, answer))
    };
    ask().map_err(broken)
}

/// Asks for `target` and gives status and whole body.
///
/// # Errors
/// When nobody listens, or what comes is no HTTP.
pub fn ask(socket: &Path, target: &str) -> Result<(u16, String), AskError> {
    let (status, mut answer) = open(socket, target)?;
    let mut body = String::new();
    let broken = |source| AskError::Broken { path: socket.to_owned(), source };
    answer.get_ref().set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    answer.by_ref().take(LONGEST).read_to_string(&mut body).map_err(broken)?;
    Ok((status, body))
}

/// Asks for `target` and gives the body of an answer that says yes.
///
/// # Errors
/// Also when the agent refuses, with what it says.
pub fn get(socket: &Path, target: &str) -> Result<String, AskError> {
    match ask(socket, target)? {
        (200, body) => Ok(body),
        (status, body) => Err(AskError::Refused { status, body: body.trim_end().to_owned() }),
    }
}

/// Asks for `target` and gives the body of an answer that says yes, as it comes.
///
/// # Errors
/// Also when the agent refuses, with what it says.
pub fn follow(socket: &Path, target: &str) -> Result<Answer, AskError> {
    match open(socket, target)? {
        (200, answer) => Ok(answer),
        (status, mut answer) => {
            let mut body = String::new();
            // The status says enough when there is no more.
            let _ = answer.by_ref().take(LONGEST).read_to_string(&mut body);
            Err(AskError::Refused { status, body: body.trim_end().to_owned() })
        }
    }
}
