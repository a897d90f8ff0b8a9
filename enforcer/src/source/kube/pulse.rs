//! Whether the API server answers at all. A watch is silent as long as nothing changes: a server that hangs, and a
//! connection that is dead, look like a quiet cluster. So it is asked for something small every few seconds, and all
//! watches are begun anew when it does not answer. While it is away it is asked every second, so that the watches need
//! not wait for the end of their own intervals.

use std::time::Duration;

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

/// Between two questions while it answers.
const PERIOD: Duration = Duration::from_secs(15);
/// From the begin of one question to the next while it is away.
const RETRY: Duration = Duration::from_secs(1);
/// How long an answer is waited for; connecting has a limit of its own.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Answers to anybody who may ask for its version, without asking its store.
const ALIVE: &str = "/version";
/// Succeeds when it serves lists and watches.
const READY: &str = "/readyz";

/// What those who follow a kind share.
#[derive(Debug)]
pub(super) struct Pulse {
    /// Counts how often the server stopped to answer.
    lost: watch::Sender<u64>,
    /// Told when it is worth while to try again at once.
    back: Notify,
    /// Told when somebody could not reach it.
    suspected: Notify,
}

/// What a question met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// None.
    Silence,
    /// That it is not ready.
    NotReady,
    /// Any other: it is there, whatever it thinks of who asks.
    Ready,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { lost: watch::Sender::new(0), back: Notify::new(), suspected: Notify::new() }
    }

    /// Waits until the server stops to answer. What happened before the call does not count.
    pub(super) async fn lost(&self) {
        // The sender lives as long as this.
        let _ = self.lost.subscribe().changed().await;
    }

    /// Waits until it is worth while to try again.
    pub(super) async fn back(&self) {
        self.back.notified().await;
    }

    /// A list was read: others need not wait any longer.
    pub(super) fn answered(&self) {
        self.back.notify_waiters();
    }

    /// Somebody could not reach the server.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Asks until the task ends. Watches are ended only by a server that has answered and does so no more: one that
    /// does not know the question harms nobody.
    pub(super) async fn run(&self, client: Client) {
        loop {
            loop {
                let next = Instant::now() + RETRY;
                if ask(&client, READY).await == Answer::Ready {
                    break;
                }
                sleep_until(next).await;
            }
            self.answered();
            loop {
                tokio::select! {
                    () = sleep(PERIOD) => {}
                    () = self.suspected.notified() => {}
                }
                if ask(&client, ALIVE).await == Answer::Silence {
                    break;
                }
            }
            self.lost.send_modify(|count| *count += 1);
        }
    }
}

async fn ask(client: &Client, path: &str) -> Answer {
    let Ok(request) = hyper::Request::get(path).body(Body::empty()) else { return Answer::Silence };
    let exchange = async {
        let response = client.send(request).await?;
        let status = response.status();
        // Read to its end, the connection serves the next question.
        response.into_body().collect().await.map(|_| status)
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Ok(status)) if status.is_server_error() || status.as_u16() == 429 => Answer::NotReady,
        Ok(Ok(_)) => Answer::Ready,
        Ok(Err(error)) => {
            debug!("the API server gives no answer to {path}: {error}");
            Answer::Silence
        }
        Err(_) => Answer::Silence,
    }
}
