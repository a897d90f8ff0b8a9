//! Sockets opened inside a pod's namespace, and how they end; and the two curls of the walk-through.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::Output;
use crate::{Lab, poll};

pub mod tls;

/// How a connection ended for the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// ECONNRESET.
    Reset,
    /// The server closed.
    Eof,
    /// Nothing happened until the deadline.
    Silent,
}

/// What a client saw until the end of a connection.
#[derive(Debug)]
pub struct Ending {
    /// How it ended.
    pub outcome: Outcome,
    /// Everything the server sent.
    pub received: Vec<u8>,
    /// Time from the call to the end.
    pub elapsed: Duration,
}

impl Lab {
    /// Connects from a pod or the node.
    ///
    /// # Errors
    /// When nobody answers within five seconds.
    pub fn connect(&self, from: &str, to: SocketAddr) -> Result<TcpStream> {
        let stream = self.inside(from, || TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        let stream = stream.with_context(|| format!("cannot connect from {from} to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// `curl -sS -w '%{http_code}\n'` from a pod, with more arguments; the last is the URL. What is served is thrown
    /// away unless they say where it goes.
    ///
    /// # Errors
    /// When curl cannot be run; not when curl fails.
    pub fn curl(&self, from: &str, more: &[&str]) -> Result<Output> {
        let words = ["curl", "-sS", "--max-time", "20", "-w", "%{http_code}\\n"];
        let target: &[&str] = if more.contains(&"-o") { &[] } else { &["-o", "/dev/null"] };
        self.exec(from, words.iter().chain(target).chain(more))
    }

    /// The same as a mesh client: with the pod's own certificate.
    ///
    /// # Errors
    /// As [`Lab::curl`].
    pub fn mesh_curl(&self, from: &str, more: &[&str]) -> Result<Output> {
        let words = self.mesh_arguments(from);
        let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.curl(from, &words)
    }

    /// What makes a curl a mesh client.
    #[must_use]
    pub fn mesh_arguments(&self, pod: &str) -> Vec<String> {
        let own = self.credentials(pod);
        let file = |path: &std::path::Path| path.display().to_string();
        vec![
            "--cacert".to_owned(),
            file(&self.authority().certificate),
            "--cert".to_owned(),
            file(&own.certificate),
            "--key".to_owned(),
            file(&own.key),
        ]
    }
}

impl Lab {
    /// TCP sockets of a port in a pod or on the node, listening ones left out: one line of `ss` each.
    ///
    /// # Errors
    /// When `ss` fails.
    pub fn sockets(&self, member: &str, port: u16) -> Result<Vec<String>> {
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let output = self.exec(member, ["ss", "-Htan", "state", "connected", &filter])?.success()?;
        Ok(output.stdout.lines().map(str::to_owned).collect())
    }

    /// Waits until no socket of this port is left in a pod or on the node.
    ///
    /// # Errors
    /// When one stays, with what `ss` says of it.
    pub fn wait_no_sockets(&self, member: &str, port: u16) -> Result<()> {
        poll::until(&format!("no socket of port {port} in {member}"), Duration::from_secs(1), || {
            let left = self.sockets(member, port)?;
            ensure!(left.is_empty(), "there is {left:?}");
            Ok(())
        })
    }
}

/// Reads until the connection ends or `limit` has passed.
///
/// # Errors
/// When reading fails otherwise than by a reset.
pub fn read_to_end(mut stream: &TcpStream, limit: Duration) -> Result<Ending> {
    let start = Instant::now();
    let mut received = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let outcome = loop {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            break Outcome::Silent;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break Outcome::Eof,
            Ok(count) => received.extend(buffer.get(..count).unwrap_or_default()),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset => break Outcome::Reset,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => break Outcome::Silent,
                ErrorKind::Interrupted => {}
                _ => return Err(error).context("cannot read"),
            },
        }
    };
    Ok(Ending { outcome, received, elapsed: start.elapsed() })
}

/// Writes in pieces of `size` bytes, as fast as they go, and waits for the end. A write to a connection that was reset
/// ends it too: the kernel tells of a reset once, to whoever asks first.
///
/// # Errors
/// When writing or reading fails otherwise.
pub fn exchange(mut stream: &TcpStream, bytes: &[u8], size: usize, limit: Duration) -> Result<Ending> {
    let start = Instant::now();
    for piece in bytes.chunks(size) {
        match stream.write_all(piece) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Ok(Ending {
                    outcome: Outcome::Reset,
                    received: Vec::new(),
                    elapsed: start.elapsed(),
                });
            }
            Err(error) => return Err(error).context("cannot write"),
        }
    }
    let mut ending = read_to_end(stream, limit)?;
    ending.elapsed = start.elapsed();
    Ok(ending)
}
