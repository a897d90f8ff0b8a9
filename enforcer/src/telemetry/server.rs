//! The listeners: the control socket, root only, and the address for scrapes. Connections are bounded in number and time.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::Semaphore;
use tracing::{debug, error, info};

pub use self::routes::Service;
use super::Options;

mod routes;

/// Connections at a time, for each listener; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;
/// How long a client may take to ask, the first time and again.
const ASK: Duration = Duration::from_secs(15);
/// How long a connection of the address for scrapes may last: a scraper opens another one.
const SCRAPER: Duration = Duration::from_mins(10);
/// How long to wait before an address that is in use is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What a connection may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Metrics and health.
    Public,
    /// Everything.
    Control,
}

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("another agent listens on {0}: give each its own --socket")]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("{path}: {source}: give a path in a folder that can be written with --socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// The file of a socket; removed when dropped, unless another socket has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // Gone already is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a listening socket at `path` that root alone may use. One that nobody listens on any more is replaced.
///
/// # Errors
/// When somebody listens there, or the folder cannot be written.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let io = |source| SocketError::Io { path: path.to_owned(), source };
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::InUse(path.to_owned()));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    // Made beside and moved into place: nobody can connect before the mode is right, and what is stale is replaced at once.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).map_err(io)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).map_err(io)?;
    let inode = fs::symlink_metadata(&beside).map_err(io)?.ino();
    fs::rename(&beside, path).map_err(io)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// Starts both listeners on the current runtime.
pub(super) fn start(options: &Options, service: &Arc<Service>) -> Option<SocketFile> {
    if let Some(address) = options.metrics_address {
        tokio::spawn(tcp(address, service.clone()));
    }
    match bind(&options.socket) {
        Ok((listener, file)) => {
            tokio::spawn(unix(listener, service.clone()));
            Some(file)
        }
        Err(error) => {
            error!(
                "no control socket: {error}; flows and policies cannot be asked for until the agent is started again"
            );
            None
        }
    }
}

async fn unix(listener: UnixListener, service: Arc<Service>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    connection(stream, Scope::Control, service).await;
                    drop(place);
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// `[::]` is every address of both families, whatever the node's default is; where the kernel has no IPv6, of IPv4.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let everywhere = address.ip() == Ipv6Addr::UNSPECIFIED;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match socket {
        Err(error) if everywhere && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            return listen((Ipv4Addr::UNSPECIFIED, address.port()).into());
        }
        socket => socket?,
    };
    if everywhere {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn tcp(address: SocketAddr, service: Arc<Service>) {
    let mut told = false;
    // The agent before this one may still be going.
    let listener = loop {
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) => {
                if !told {
                    error!("--metrics-address {address}: {error}; trying again every {} s", RETRY.as_secs());
                }
                told = true;
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(address = %listener.local_addr().unwrap_or(address), "metrics and health");
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    let ends = tokio::time::timeout(SCRAPER, connection(stream, Scope::Public, service));
                    if ends.await.is_err() {
                        debug!("a connection for metrics was closed: it was open for too long");
                    }
                    drop(place);
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Out of file descriptors, for example: trying again at once would only burn time.
async fn pause(error: &io::Error) {
    debug!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

async fn connection<S>(stream: S, scope: Scope, service: Arc<Service>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, std::convert::Infallible>(service.answer(&request, scope).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = served.await {
        debug!("a connection ended: {error}");
    }
}

#[cfg(test)]
mod tests;
