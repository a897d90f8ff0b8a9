//! What can be asked for, and the answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use super::Scope;
use crate::telemetry::Shared;
use crate::telemetry::filter::Filter;
use crate::telemetry::health;
use crate::telemetry::metrics::{Format, Metrics};
use crate::telemetry::record::{Line, Record, Suppressed};

/// How many records are written at once.
const BATCH: usize = 256;

/// The body of an answer.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the listeners serve.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// Scrapes read every map: one at a time.
    scrape: Semaphore,
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    text(status, "text/plain; charset=utf-8", body)
}

fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => text(StatusCode::OK, "application/json", body),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

impl Service {
    /// Serves what is shared.
    #[must_use]
    pub fn new(shared: Arc<Shared>, metrics: Metrics) -> Self {
        Self { shared, metrics: Arc::new(metrics), scrape: Semaphore::new(1) }
    }

    pub(super) async fn answer(&self, request: &Request<Incoming>, scope: Scope) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let control = scope == Scope::Control;
        match request.uri().path() {
            "/healthz" => self.health(),
            "/readyz" => self.ready(),
            "/metrics" => {
                let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
                self.scrape(Format::of_accept(accept.unwrap_or_default())).await
            }
            "/v1/flows" if control => self.flows(request.uri().query().unwrap_or_default()),
            "/v1/objects" if control => json(&*self.shared.view().snapshot.objects),
            "/v1/state" if control => json(&self.shared.view().snapshot.state),
            _ if control => plain(
                StatusCode::NOT_FOUND,
                "there are /healthz, /readyz, /metrics, /v1/flows, /v1/objects and /v1/state\n",
            ),
            _ => plain(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
        }
    }

    fn health(&self) -> Response<Body> {
        match health::alive(self.shared.silent_for()) {
            Ok(()) => plain(StatusCode::OK, "ok\n"),
            Err(problem) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        }
    }

    fn ready(&self) -> Response<Body> {
        let view = self.shared.view();
        let missing = health::missing(&view.snapshot);
        let stale = health::stale(&view.snapshot.state.kinds, Timestamp::now());
        if missing.is_empty() {
            let lines: Vec<_> = std::iter::once("ok".to_owned()).chain(stale).collect();
            plain(StatusCode::OK, lines.join("\n") + "\n")
        } else {
            let lines: Vec<_> = missing.into_iter().chain(stale).collect();
            plain(StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n")
        }
    }

    async fn scrape(&self, format: Format) -> Response<Body> {
        // The semaphore is never closed.
        let _turn = self.scrape.acquire().await;
        let metrics = self.metrics.clone();
        let kind = format.content_type();
        match tokio::task::spawn_blocking(move || metrics.encode(format)).await {
            Ok(Ok(body)) => text(StatusCode::OK, kind, body),
            Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed\n"),
        }
    }

    fn flows(&self, query: &str) -> Response<Body> {
        let filter = match Filter::parse(query) {
            Ok(filter) => filter,
            Err(error) => return plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let reader = Reader::new(self.shared.clone(), filter);
        let body = stream::unfold(reader, |mut reader| async move {
            let lines = reader.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(lines))), reader))
        });
        let mut response = Response::new(StreamBody::new(body).boxed_unsync());
        let kind = hyper::header::HeaderValue::from_static("application/jsonl");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

/// Reads the flow log for one client.
struct Reader {
    shared: Arc<Shared>,
    filter: Filter,
    /// What was there at the start, latest last, and how much of it is written.
    recent: Vec<Arc<Record>>,
    written: usize,
    next: u64,
    watch: watch::Receiver<u64>,
}

impl Reader {
    fn new(shared: Arc<Shared>, filter: Filter) -> Self {
        let watch = shared.log.watch();
        let mut batch = shared.log.read(shared.log.first(), usize::MAX);
        batch.records.retain(|record| filter.takes(&record.line));
        let most = filter.last.unwrap_or(usize::MAX);
        batch.records.drain(..batch.records.len().saturating_sub(most));
        Self { shared, filter, recent: batch.records, written: 0, next: batch.next, watch }
    }

    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        if self.written < self.recent.len() {
            for record in self.recent.iter().skip(self.written).take(BATCH) {
                self.write(&mut lines, record);
            }
            self.written += BATCH;
            return Some(lines);
        }
        self.recent = Vec::new();
        while self.filter.follow && lines.is_empty() {
            let batch = self.shared.log.read(self.next, BATCH);
            if batch.records.is_empty() {
                // The log lives as long as this reader.
                self.watch.changed().await.ok()?;
            }
            if batch.missed > 0 {
                let time = Timestamp::now();
                let gap = Suppressed { time, missed: batch.missed, ..Suppressed::default() };
                self.write(&mut lines, &Record { id: self.next, line: Line::Suppressed(gap) });
            }
            self.next = batch.next;
            for record in batch.records.iter().filter(|record| self.filter.takes(&record.line)) {
                self.write(&mut lines, record);
            }
            // A filter that takes nothing must not keep the thread.
            tokio::task::yield_now().await;
        }
        (!lines.is_empty()).then_some(lines)
    }

    /// One line. A client whose pod was learned since is named.
    fn write(&self, lines: &mut Vec<u8>, record: &Record) {
        let unnamed = record.line.flow().filter(|flow| flow.client.pod.is_none() && !flow.client.node);
        let learned = unnamed.and_then(|flow| {
            let age = Timestamp::now().duration_since(flow.time).try_into().unwrap_or_default();
            self.shared.remote.peek(flow.client.address, Instant::now().checked_sub(age)?)
        });
        let written = match learned {
            Some(identity) => {
                let mut record = record.clone();
                if let Line::Verdict(flow) | Line::End(flow) = &mut record.line {
                    flow.client.name(&identity);
                }
                serde_json::to_writer(&mut *lines, &record)
            }
            None => serde_json::to_writer(&mut *lines, record),
        };
        // Writing to memory what holds no map with odd keys cannot fail.
        if written.is_ok() {
            lines.push(b'\n');
        }
    }
}
