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
    /// The clients of the selected workload.
    Open,
    /// Back to the workloads.
    Close,
    /// The next order of the workloads.
    Sort,
    /// Stop and go on.
    Pause,
    Quit,
}

/// The order of the workloads.
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
    /// Rates of each workload, the latest last.
    pub(super) rates: BTreeMap<String, VecDeque<Rates>>,
    /// The workloads in the order shown.
    pub(super) workloads: Vec<String>,
    /// The selected workload.
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
        self.rates.retain(|name, _| sample.workloads.contains_key(name));
        for (name, workload) in &sample.workloads {
            let rates = self.rates.entry(name.clone()).or_default();
            // The first look at a workload has nothing to compare with.
            if let Some(before) = self.sample.workloads.get(name).filter(|_| seconds > 0.0) {
                rates.push_back(Rates::between(before.counts, workload.counts, seconds));
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

    /// Place of the selected workload.
    pub(super) fn position(&self) -> usize {
        self.workloads.iter().position(|workload| Some(workload) == self.selected.as_ref()).unwrap_or(0)
    }

    fn select(&mut self, position: usize) {
        self.selected = self.workloads.get(position.min(self.workloads.len().saturating_sub(1))).cloned();
    }

    /// Clients of the selected workload, latest first.
    pub(super) fn clients(&self) -> impl Iterator<Item = &Client> {
        self.sample.clients.iter().filter(|client| Some(&client.workload) == self.selected.as_ref())
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
        let mut workloads: Vec<(Rates, String)> =
            self.sample.workloads.keys().map(|name| (sum(name), name.clone())).collect();
        workloads.sort_by(|(a, first), (b, second)| {
            let traffic = |rates: &Rates| rates.tls + rates.plaintext + rates.refused;
            let order = match self.order {
                Order::Trouble => b.refused.total_cmp(&a.refused).then(b.plaintext.total_cmp(&a.plaintext)),
                Order::Traffic => traffic(b).total_cmp(&traffic(a)),
                Order::Name => std::cmp::Ordering::Equal,
            };
            order.then(first.cmp(second))
        });
        self.workloads = workloads.into_iter().map(|(_, name)| name).collect();
        let gone = self.selected.as_ref().is_none_or(|selected| !self.workloads.contains(selected));
        if gone {
            self.selected = self.workloads.first().cloned();
            self.opened = false;
        }
    }
}
