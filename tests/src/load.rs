//! Steady load on a pod while something happens to the agent: long-lived TLS connections that keep exchanging data, a
//! stream of new ones, and a stream of plaintext attempts. Whatever goes otherwise than it must is written down.

use std::fs::File;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::Lab;
use crate::client::tls;

/// How long any one exchange may take: far beyond what a machine under load needs, so that only what hangs is told.
const LIMIT: Duration = Duration::from_secs(30);
/// Problems beyond this many are only counted.
const TOLD: usize = 20;

/// What plaintext must meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plaintext {
    /// ECONNRESET without one byte of an answer: the pod is STRICT all the while.
    Reset,
    /// An answer or ECONNRESET: the policy changes under way.
    Either,
}

/// What is done to one port of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The pod that the port is of; its server is a [`Lab::sidecar`].
    pub to: &'a str,
    /// The port.
    pub port: u16,
    /// The pod that the TLS connections come from.
    pub tls_from: &'a str,
    /// The pod that the plaintext comes from.
    pub plain_from: &'a str,
    /// Long-lived TLS connections.
    pub lasting: usize,
    /// Clients that open one TLS connection after the other.
    pub fresh: usize,
    /// Clients that try plaintext, one connection after the other.
    pub plain: usize,
    /// What plaintext must meet.
    pub expected: Plaintext,
    /// Between two exchanges of one client.
    pub pause: Duration,
}

/// What the clients did so far.
#[derive(Debug, Default)]
pub struct Totals {
    /// TLS connections opened whose first request was answered.
    pub tls_opened: AtomicU64,
    /// Requests answered on TLS connections.
    pub tls_answers: AtomicU64,
    /// Plaintext connections whose request was sent.
    pub plain_sent: AtomicU64,
    /// Plaintext connections that were reset.
    pub plain_reset: AtomicU64,
    /// Plaintext connections that were answered.
    pub plain_answered: AtomicU64,
    /// Long-lived connections that are open.
    pub lasting: AtomicU64,
    problems: Mutex<(usize, Vec<String>)>,
}

impl Totals {
    fn problem(&self, text: String) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.0 += 1;
        if problems.1.len() < TOLD {
            problems.1.push(text);
        }
    }

    /// Nothing went otherwise than it must.
    ///
    /// # Errors
    /// When something did, with the first problems.
    pub fn check(&self) -> Result<()> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(problems.0 == 0, "{} problems:\n{}", problems.0, problems.1.join("\n"));
        Ok(())
    }
}

/// Adds one.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A number of [`Totals`].
#[must_use]
pub fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    totals: Arc<Totals>,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Client {
    to: Vec<SocketAddr>,
    host: String,
    connector: TlsConnector,
    expected: Plaintext,
    pause: Duration,
    totals: Arc<Totals>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Starts the clients and waits until every long-lived connection is open.
    ///
    /// # Errors
    /// When they cannot be started, or the first connections fail.
    pub fn start(lab: &Lab, plan: Plan<'_>) -> Result<Self> {
        let (totals, stop) = (Arc::new(Totals::default()), Arc::new(AtomicBool::new(false)));
        let connector = TlsConnector::from(tls::config(lab, plan.tls_from, tls::Shape::default())?);
        let client = Arc::new(Client {
            to: [false, true].map(|v6| lab.address(plan.to, plan.port, v6)).to_vec(),
            host: lab.pod(plan.to).host(),
            connector,
            expected: plan.expected,
            pause: plan.pause,
            totals: Arc::clone(&totals),
            stop: Arc::clone(&stop),
        });
        let threads = vec![
            in_namespace(lab, plan.tls_from, Arc::clone(&client), plan.lasting, plan.fresh, 0)?,
            in_namespace(lab, plan.plain_from, client, 0, 0, plan.plain)?,
        ];
        let load = Self { stop, totals, threads };
        crate::poll::until("the long-lived connections", Duration::from_mins(2), || {
            if load.totals.check().is_ok() {
                let open = value(&load.totals.lasting);
                ensure!(open == plan.lasting as u64, "{open} of {} are open", plan.lasting);
            }
            Ok(())
        })?;
        load.totals.check()?;
        Ok(load)
    }

    /// What was done so far.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Lets every client finish what it is at, and closes the long-lived connections.
    ///
    /// # Errors
    /// When anything went otherwise than it must.
    pub fn finish(mut self) -> Result<Arc<Totals>> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client's thread panicked"))??;
        }
        self.totals.check()?;
        Ok(Arc::clone(&self.totals))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Whoever drops it without `finish` has another failure to tell.
            let _ = thread.join();
        }
    }
}

fn in_namespace(
    lab: &Lab,
    from: &str,
    client: Arc<Client>,
    lasting: usize,
    fresh: usize,
    plain: usize,
) -> Result<JoinHandle<Result<()>>> {
    let path = Path::new("/run/netns").join(lab.namespace(from));
    let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..lasting {
                tasks.spawn(Arc::clone(&client).lasting(number));
            }
            for number in 0..fresh {
                tasks.spawn(Arc::clone(&client).fresh(number));
            }
            for number in 0..plain {
                tasks.spawn(Arc::clone(&client).plain(number));
            }
            while let Some(ended) = tasks.join_next().await {
                ended?;
            }
            Ok(())
        })
    }))
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn address(&self, number: usize) -> SocketAddr {
        self.to[number % self.to.len()]
    }

    /// One TLS connection for the whole time.
    async fn lasting(self: Arc<Self>, number: usize) {
        let talk = async {
            let mut stream = self.open(number).await?;
            count(&self.totals.lasting);
            while self.goes_on() {
                sleep(self.pause).await;
                self.get(&mut stream).await?;
            }
            anyhow::Ok(stream.shutdown().await?)
        };
        if let Err(error) = talk.await {
            self.totals.problem(format!("long-lived TLS connection {number} was lost: {error:#}"));
        }
    }

    /// TLS connections one after the other.
    async fn fresh(self: Arc<Self>, number: usize) {
        let mut turn = number;
        while self.goes_on() {
            let talk = async {
                let mut stream = self.open(turn).await?;
                anyhow::Ok(stream.shutdown().await?)
            };
            if let Err(error) = talk.await {
                self.totals.problem(format!("new TLS connection {turn} failed: {error:#}"));
            }
            turn += 1;
            sleep(self.pause).await;
        }
    }

    async fn open(&self, turn: usize) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.host.clone())?;
        let stream = timeout(LIMIT, TcpStream::connect(self.address(turn))).await.context("connect hangs")?;
        let stream = stream.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let stream = timeout(LIMIT, self.connector.connect(name, stream)).await;
        let mut stream = stream.context("the handshake hangs")?.context("the handshake failed")?;
        self.get(&mut stream).await?;
        count(&self.totals.tls_opened);
        Ok(stream)
    }

    async fn get(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        let exchange = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            let mut answer = Vec::new();
            // The greeting ends with the only line end behind the head.
            while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
                if stream.read_buf(&mut answer).await? == 0 {
                    bail!("the server closed");
                }
            }
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a 200");
            Ok(())
        };
        timeout(LIMIT, exchange).await.context("the answer does not come")??;
        count(&self.totals.tls_answers);
        Ok(())
    }

    /// Plaintext connections one after the other.
    async fn plain(self: Arc<Self>, number: usize) {
        let mut turn = number;
        while self.goes_on() {
            match self.attempt(turn).await {
                Ok(None) => count(&self.totals.plain_reset),
                Ok(Some(_)) if self.expected == Plaintext::Either => count(&self.totals.plain_answered),
                Ok(Some(0)) => self.totals.problem(format!("plaintext {turn} ended without a reset")),
                Ok(Some(length)) => {
                    self.totals.problem(format!("plaintext {turn} was answered with {length} bytes"));
                }
                Err(error) => self.totals.problem(format!("plaintext {turn}: {error:#}")),
            }
            turn += 1;
            sleep(self.pause).await;
        }
    }

    /// `None`: reset. Else the number of bytes that came back.
    async fn attempt(&self, turn: usize) -> Result<Option<usize>> {
        let stream = timeout(LIMIT, TcpStream::connect(self.address(turn))).await.context("connect hangs")?;
        let mut stream = stream.context("cannot connect")?;
        count(&self.totals.plain_sent);
        let exchange = async {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer.len())
        };
        match timeout(LIMIT, exchange).await.context("neither answered nor reset")? {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
