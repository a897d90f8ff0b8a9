//! The servers of the lab's pods; the binary `lab-server` runs them inside a pod's namespace.
//!
//! All listen on both address families and write a [`Record`](crate::record::Record) of every connection that they
//! accepted.

mod app;
mod counted;
mod raw;
mod sidecar;

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, accept4, bind, listen, setsockopt, socket,
    sockopt,
};
use tokio::sync::mpsc;

pub use counted::Counted;

use crate::record::Journal;

/// What a server prints when it listens.
pub const READY: &str = "listening";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// What every server is told.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Port to listen on, on all addresses of both families
    #[arg(long)]
    pub port: u16,
    /// File that gets a line of JSON per connection
    #[arg(long)]
    pub record: PathBuf,
}

/// A kind of server.
#[derive(Subcommand, Clone, Debug)]
pub enum Kind {
    /// A plain HTTP server behind a front that serves mutual TLS and plaintext alike, as a PERMISSIVE sidecar does
    Sidecar {
        /// Port and record
        #[command(flatten)]
        common: Common,
        /// The server's certificate
        #[arg(long)]
        cert: PathBuf,
        /// The server's private key
        #[arg(long)]
        key: PathBuf,
        /// The authority that client certificates must be signed by
        #[arg(long)]
        ca: PathBuf,
        /// What GET / answers
        #[arg(long, default_value = "hello")]
        greeting: String,
        /// Folder that GET /files/NAME reads from and PUT /files/NAME writes to
        #[arg(long)]
        files: Option<PathBuf>,
    },
    /// Reads bytes and writes down how many; no protocol
    Raw {
        /// Port and record
        #[command(flatten)]
        common: Common,
        /// Speak first: send this on accept
        #[arg(long)]
        greet: Option<String>,
        /// Send this after the client's first bytes
        #[arg(long)]
        answer: Option<String>,
        /// Send back what was read, from the first byte on
        #[arg(long)]
        echo: bool,
        /// Send back what was read, once it is this many bytes
        #[arg(long, conflicts_with = "echo")]
        echo_after: Option<usize>,
        /// Accept multipath TCP too, as servers in Go do by default
        #[arg(long)]
        multipath: bool,
    },
}

/// Runs a server until it is killed.
///
/// # Errors
/// When it cannot listen or its files cannot be read.
pub async fn serve(kind: Kind) -> Result<()> {
    match kind {
        Kind::Sidecar { common, cert, key, ca, greeting, files } => {
            let app = app::start(app::App { greeting, files }).await?;
            let acceptor = sidecar::acceptor(&cert, &key, &ca)?;
            let front = Arc::new(sidecar::Front { acceptor, app, journal: Journal::open(&common.record)? });
            each(common.port, false, move |stream| {
                let front = Arc::clone(&front);
                async move { front.serve(stream).await }
            })
            .await
        }
        Kind::Raw { common, greet, answer, echo, echo_after, multipath } => {
            let echo = if echo { Some(1) } else { echo_after };
            let server = Arc::new(raw::Raw { greet, answer, echo, journal: Journal::open(&common.record)? });
            each(common.port, multipath, move |stream| {
                let server = Arc::clone(&server);
                async move { server.serve(stream).await }
            })
            .await
        }
    }
}

/// Listens and serves every connection on a task of its own.
async fn each<F, Fut>(port: u16, multipath: bool, serve: F) -> Result<()>
where
    F: Fn(tokio::net::TcpStream) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let mut connections = accept_on(port, multipath)?;
    println!("{READY} on port {port}");
    while let Some(stream) = connections.recv().await {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let connection = serve(stream);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

/// Accepts without asking for the peer's address: with it, the kernel withholds connections that were reset before
/// they were accepted, and those are the ones that a test wants to see.
fn accept_on(port: u16, multipath: bool) -> Result<mpsc::UnboundedReceiver<TcpStream>> {
    let listener = listen_on(port, multipath).with_context(|| format!("cannot listen on port {port}"))?;
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        loop {
            match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(fd) => {
                    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    if sender.send(TcpStream::from(fd)).is_err() {
                        return;
                    }
                }
                Err(error) => eprintln!("accept: {}", io::Error::from(error)),
            }
        }
    });
    Ok(receiver)
}

/// Listens on all addresses of both families, sharing the port with sockets that ask for it too: a pod may use its
/// server port as the source port of its own connections.
fn listen_on(port: u16, multipath: bool) -> Result<OwnedFd> {
    let fd = if multipath {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_INET6, kind, libc::IPPROTO_MPTCP) };
        anyhow::ensure!(fd >= 0, "no multipath TCP: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    } else {
        socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?
    };
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}
