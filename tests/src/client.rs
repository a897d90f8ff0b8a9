//! Sockets opened inside a pod's namespace, and how they end; and the two curls of the walk-through.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Lab;
use crate::lab::Output;

pub mod tls;

/// How a connection ended for the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// ECONNRESET (or EPIPE on a write after it).
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

    /// `curl -sS -o /dev/null -w '%{http_code}\n'` from a pod, with more arguments; the last is the URL.
    ///
    /// # Errors
    /// When curl cannot be run; not when curl fails.
    pub fn curl(&self, from: &str, more: &[&str]) -> Result<Output> {
        let words = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}\\n"];
        self.exec(from, words.iter().chain(more))
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

/// Writes in pieces of `size` bytes with a pause after each. Stops without error when the connection is reset.
///
/// # Errors
/// When writing fails otherwise.
pub fn write_in_pieces(mut stream: &TcpStream, bytes: &[u8], size: usize, pause: Duration) -> Result<()> {
    for piece in bytes.chunks(size) {
        match stream.write_all(piece) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => return Ok(()),
            Err(error) => return Err(error).context("cannot write"),
        }
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    Ok(())
}

/// Writes everything at once and waits for the end.
///
/// # Errors
/// As [`write_in_pieces`] and [`read_to_end`].
pub fn exchange(stream: &TcpStream, bytes: &[u8], limit: Duration) -> Result<Ending> {
    let start = Instant::now();
    write_in_pieces(stream, bytes, bytes.len().max(1), Duration::ZERO)?;
    let mut ending = read_to_end(stream, limit)?;
    ending.elapsed = start.elapsed();
    Ok(ending)
}
