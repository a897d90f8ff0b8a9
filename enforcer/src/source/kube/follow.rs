//! Follows one kind: list, watch, and after every failure the same again, at growing intervals.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::Client;
use kube::api::DynamicObject;
use kube::runtime::watcher::{Event, watcher};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::failure::Failure;
use super::kind::Kind;
use super::store::{Change, Entry};
use super::{Options, served};
use crate::object::Origin;
use crate::source::document;
use crate::source::manifest::FileContent;

/// The first wait after a failure; each further one is twice as long.
const SHORTEST: Duration = Duration::from_millis(250);
/// The longest. Every node waits its own time, by chance.
const LONGEST: Duration = Duration::from_secs(10);
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
    /// Told when a list is complete: the server is back, so others need not wait any longer.
    pub(super) back: Arc<Notify>,
}

/// Nobody listens any more.
struct Done;

impl Follower {
    /// Runs until the receiver is gone.
    pub(super) async fn run(self) {
        let mut wait = SHORTEST;
        loop {
            let failure = match self.round(&mut wait).await {
                Ok(Some(failure)) => failure,
                // The server has forgotten the past: that is no failure, and the list is read at once.
                Ok(None) => {
                    wait = wait.max(SHORTEST);
                    tokio::time::sleep(SHORTEST).await;
                    continue;
                }
                Err(Done) => return,
            };
            if self.tell(Change::Failed(failure)).await.is_err() {
                return;
            }
            let spread = u32::try_from(RandomState::new().hash_one(0) % 500).unwrap_or(0);
            tokio::select! {
                () = tokio::time::sleep(wait * (750 + spread) / 1000) => wait = (wait * 2).min(LONGEST),
                () = self.back.notified() => {}
            }
        }
    }

    async fn tell(&self, change: Change) -> Result<(), Done> {
        self.tell.send((self.kind, change)).await.map_err(|_| Done)
    }

    /// One list and the watch behind it, to its failure.
    async fn round(&self, wait: &mut Duration) -> Result<Option<Failure>, Done> {
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
                    return Ok(Some(Failure::Unreachable("it does not answer a list in time".to_owned())));
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
                    *wait = SHORTEST;
                    self.back.notify_waiters();
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
