//! Follows one kind: list, watch, and after every failure the same again, at growing intervals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::Client;
use kube::api::DynamicObject;
use kube::runtime::watcher::{Event, watcher};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::failure::Failure;
use super::kind::Kind;
use super::pulse::Pulse;
use super::store::{Change, Entry};
use super::{Options, served};
use crate::object::Origin;
use crate::source::document;
use crate::source::manifest::FileContent;

/// How long a list may stand still.
const LIST_PATIENCE: Duration = Duration::from_secs(30);
/// How long removals of policies are held back to see whether the definition goes with them.
const HOLD: Duration = Duration::from_millis(30);

/// What is told of a kind.
pub(super) type Told = (Kind, Change);

/// Follows one kind until nobody listens.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) kind: Kind,
    pub(super) options: Arc<Options>,
    pub(super) tell: mpsc::Sender<Told>,
    pub(super) pulse: Arc<Pulse>,
}

/// Nobody listens any more.
struct Done;

impl Follower {
    /// Runs until the receiver is gone.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        // The server had forgotten the past, and nothing was listed since.
        let mut forgotten = false;
        loop {
            let mut listed = None;
            let end = tokio::select! {
                end = self.round(&mut listed) => end,
                () = self.pulse.lost() => Ok(Some(Failure::silent())),
            };
            let failure = match end {
                // That is no failure, and the list is read anew; but not where it is all that ever happens.
                Ok(None) if forgotten && listed.is_none() => Some(Failure::Other(
                    self.kind,
                    "the API server forgets what it lists before it is read".to_owned(),
                )),
                Ok(failure) => failure,
                Err(Done) => return,
            };
            forgotten = failure.is_none();
            if let Some(failure) = failure {
                if matches!(failure, Failure::Unreachable(_)) {
                    self.pulse.suspect();
                }
                if self.tell(Change::Failed(failure)).await.is_err() {
                    return;
                }
            }
            let wait = backoff.next(listed.map_or(Duration::ZERO, |listed: Instant| listed.elapsed()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.pulse.back() => backoff.reset(),
            }
        }
    }

    async fn tell(&self, change: Change) -> Result<(), Done> {
        self.tell.send((self.kind, change)).await.map_err(|_| Done)
    }

    /// One list and the watch behind it, to its failure; `None`: the server has forgotten the past. `since`: when the list
    /// was complete.
    async fn round(&self, since: &mut Option<Instant>) -> Result<Option<Failure>, Done> {
        let version = match self.kind {
            Kind::Policies => match served::version(&self.client).await {
                Ok(version) => version,
                Err(failure) => return Ok(Some(failure)),
            },
            _ => "v1",
        };
        let api = self.kind.api(self.client.clone(), version, &self.options);
        let mut events = std::pin::pin!(watcher(api, self.kind.query(&self.options)));
        let mut listed = false;
        let mut held: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            let due = held.values().min().copied();
            let limit = due.or_else(|| (!listed).then(|| Instant::now() + LIST_PATIENCE));
            let event = match limit {
                Some(limit) => tokio::time::timeout_at(limit, events.try_next()).await,
                None => Ok(events.try_next().await),
            };
            let event = match event {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Ok(Failure::of_watcher(self.kind, &error)),
                Err(_) if due.is_some() => {
                    if let Err(failure) = self.still_served().await {
                        return Ok(Some(failure));
                    }
                    for key in std::mem::take(&mut held).into_keys() {
                        self.tell(Change::Deleted(key)).await?;
                    }
                    continue;
                }
                Err(_) => {
                    return Ok(Some(Failure::silent()));
                }
            };
            match event {
                Event::Init => {
                    listed = false;
                    held.clear();
                    self.tell(Change::Listing).await?;
                }
                Event::InitApply(object) => self.tell(Change::Listed(self.entry(version, object))).await?,
                Event::InitDone => {
                    if let Err(failure) = self.still_served().await {
                        return Ok(Some(failure));
                    }
                    listed = true;
                    since.get_or_insert_with(Instant::now);
                    self.pulse.answered();
                    self.tell(Change::Complete(version)).await?;
                }
                Event::Apply(object) => {
                    let (key, entry) = self.entry(version, object);
                    held.remove(&key);
                    self.tell(Change::Applied((key, entry))).await?;
                }
                Event::Delete(object) => {
                    let key = self.key(&object);
                    if self.kind == Kind::Policies {
                        held.insert(key, Instant::now() + HOLD);
                    } else {
                        self.tell(Change::Deleted(key)).await?;
                    }
                }
            }
        }
    }

    /// When policies vanish: somebody removed them, and not the definition with all of them.
    async fn still_served(&self) -> Result<(), Failure> {
        match self.kind {
            Kind::Policies => served::version(&self.client).await.map(drop),
            _ => Ok(()),
        }
    }

    fn key(&self, object: &DynamicObject) -> String {
        let metadata = &object.metadata;
        self.kind.key(metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default())
    }

    /// Reduces an object to what is needed of it, by the same rules as a manifest.
    fn entry(&self, version: &str, mut object: DynamicObject) -> (String, Entry) {
        let key = self.key(&object);
        object.metadata.managed_fields = None;
        let mut content = FileContent::default();
        match serde_json::to_value(&object) {
            Ok(Value::Object(mut fields)) => {
                // The items of a list name neither.
                fields.insert("apiVersion".to_owned(), version.into());
                fields.insert("kind".to_owned(), self.kind.name().into());
                document::read(&Value::Object(fields), &Origin::default(), &mut content);
            }
            other => tracing::debug!(?other, key, "an object of the API server is no mapping"),
        }
        let entry =
            Entry { object: content.objects.pop(), problems: content.problems, warnings: content.warnings };
        (key, entry)
    }
}
