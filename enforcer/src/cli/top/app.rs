//! What is shown, and how keys and looks change it. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::sample::{Client, Sample};
use crate::telemetry::counts::Counts;

/// Looks that a sparkline remembers.
pub(super) const HISTORY: usize = 60;

/// Connections per second of each kind.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Rates {
    pub(super) tls: f64,
    pub(super) plaintext: f64,
    pub(super) refused: f64,
}

impl Rates {
    fn between(before: Counts, now: Counts, seconds: f64) -> Self {
        // A counter that went back was removed meanwhile: it started anew.
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        Self {
            tls: rate(before.tls, now.tls),
            plaintext: rate(before.plaintext, now.plaintext),
            refused: rate(before.refused + before.would_refuse, now.refused + now.would_refuse),
        }
    }
}

/// What can be done with keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Up,
    Down,
    /// The clients of the selected pod.
    Open,
    /// Back to the pods.
    Close,
    /// The next order of the pods.
    Sort,
    /// Stop and go on.
    Pause,
    Quit,
}

/// The order of the pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Order {
    /// Those with refusals first, then those with plaintext.
    #[default]
    Trouble,
    /// By traffic.
    Traffic,
    /// By name.
    Name,
}

impl Order {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Trouble => "trouble",
            Self::Traffic => "traffic",
            Self::Name => "name",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Trouble => Self::Traffic,
            Self::Traffic => Self::Name,
            Self::Name => Self::Trouble,
        }
    }
}

/// Everything that is shown.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct App {
    /// The last look.
    pub(super) sample: Sample,
    /// Rates of each pod, the latest last.
    pub(super) rates: BTreeMap<String, VecDeque<Rates>>,
    /// The pods in the order shown.
    pub(super) pods: Vec<String>,
    /// The selected pod.
    pub(super) selected: Option<String>,
    /// Its clients are shown.
    pub(super) opened: bool,
    /// First client that is shown.
    pub(super) scroll: usize,
    pub(super) order: Order,
    pub(super) paused: bool,
    /// Why the maps cannot be read, if they cannot.
    pub(super) problem: Option<String>,
}

impl App {
    /// Takes a look in.
    pub(super) fn look(&mut self, sample: anyhow::Result<Sample>) {
        if self.paused {
            return;
        }
        let sample = match sample {
            Ok(sample) => sample,
            Err(error) => {
                self.problem = Some(format!("{error:#}"));
                return;
            }
        };
        self.problem = None;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let seconds = sample.time_ns.saturating_sub(self.sample.time_ns) as f64 / 1e9;
        self.rates.retain(|name, _| sample.pods.contains_key(name));
        for (name, pod) in &sample.pods {
            let rates = self.rates.entry(name.clone()).or_default();
            // The first look at a pod has nothing to compare with.
            if let Some(before) = self.sample.pods.get(name).filter(|_| seconds > 0.0) {
                rates.push_back(Rates::between(before.counts, pod.counts, seconds));
            }
            if rates.len() > HISTORY {
                rates.pop_front();
            }
        }
        self.sample = sample;
        self.arrange();
    }

    /// Acts on a key; false to end.
    pub(super) fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Quit => return false,
            Action::Up if self.opened => self.scroll = self.scroll.saturating_sub(1),
            Action::Down if self.opened => {
                self.scroll = (self.scroll + 1).min(self.clients().count().saturating_sub(1));
            }
            Action::Up => self.select(self.position().saturating_sub(1)),
            Action::Down => self.select(self.position() + 1),
            Action::Open => {
                self.opened = self.selected.is_some();
                self.scroll = 0;
            }
            Action::Close => self.opened = false,
            Action::Sort => {
                self.order = self.order.next();
                self.arrange();
            }
            Action::Pause => self.paused = !self.paused,
        }
        true
    }

    /// Place of the selected pod.
    pub(super) fn position(&self) -> usize {
        self.pods.iter().position(|pod| Some(pod) == self.selected.as_ref()).unwrap_or(0)
    }

    fn select(&mut self, position: usize) {
        self.selected = self.pods.get(position.min(self.pods.len().saturating_sub(1))).cloned();
    }

    /// Clients of the selected pod, latest first.
    pub(super) fn clients(&self) -> impl Iterator<Item = &Client> {
        self.sample.clients.iter().filter(|client| Some(&client.pod) == self.selected.as_ref())
    }

    /// Clients that were refused, latest first.
    pub(super) fn refused(&self) -> impl Iterator<Item = &Client> {
        self.sample.clients.iter().filter(|client| client.is_refused())
    }

    fn arrange(&mut self) {
        let sum = |name: &String| {
            self.rates.get(name).into_iter().flatten().fold(Rates::default(), |sum, rates| Rates {
                tls: sum.tls + rates.tls,
                plaintext: sum.plaintext + rates.plaintext,
                refused: sum.refused + rates.refused,
            })
        };
        let mut pods: Vec<(Rates, String)> =
            self.sample.pods.keys().map(|name| (sum(name), name.clone())).collect();
        pods.sort_by(|(a, first), (b, second)| {
            let traffic = |rates: &Rates| rates.tls + rates.plaintext + rates.refused;
            let order = match self.order {
                Order::Trouble => b.refused.total_cmp(&a.refused).then(b.plaintext.total_cmp(&a.plaintext)),
                Order::Traffic => traffic(b).total_cmp(&traffic(a)),
                Order::Name => std::cmp::Ordering::Equal,
            };
            order.then(first.cmp(second))
        });
        self.pods = pods.into_iter().map(|(_, name)| name).collect();
        let gone = self.selected.as_ref().is_none_or(|selected| !self.pods.contains(selected));
        if gone {
            self.selected = self.pods.first().cloned();
            self.opened = false;
        }
    }
}
