//! Sets of time: which moments something was watched. Pure.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// From one moment up to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Span {
    /// Its beginning.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
}

/// A set of moments: spans in order that neither overlap nor touch, none empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Vec<Span>", into = "Vec<Span>")]
pub struct Spans(Vec<Span>);

impl From<Vec<Span>> for Spans {
    fn from(mut spans: Vec<Span>) -> Self {
        spans.retain(|span| span.from < span.to);
        spans.sort_unstable();
        let mut set: Vec<Span> = Vec::new();
        for span in spans {
            match set.last_mut() {
                Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
                _ => set.push(span),
            }
        }
        Self(set)
    }
}

impl From<Spans> for Vec<Span> {
    fn from(spans: Spans) -> Self {
        spans.0
    }
}

impl Spans {
    /// One span; the empty set when it ends before it begins.
    #[must_use]
    pub fn one(from: Timestamp, to: Timestamp) -> Self {
        vec![Span { from, to }].into()
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).copied().collect::<Vec<_>>().into()
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for span in &self.0 {
            let mut from = span.from;
            for hole in other.0.iter().filter(|hole| hole.to > span.from && hole.from < span.to) {
                left.push(Span { from, to: hole.from.max(from) });
                from = from.max(hole.to);
            }
            left.push(Span { from, to: span.to });
        }
        left.into()
    }

    /// What lies between two moments.
    #[must_use]
    pub fn within(&self, from: Timestamp, to: Timestamp) -> Self {
        let cut = |span: &Span| Span { from: span.from.max(from), to: span.to.min(to) };
        self.0.iter().map(cut).collect::<Vec<_>>().into()
    }

    /// How long it is altogether, in whole seconds.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        let total: i128 = self.0.iter().map(|span| span.to.duration_since(span.from).as_nanos()).sum();
        u64::try_from(total / 1_000_000_000).unwrap_or(0)
    }

    /// Its first moment.
    #[must_use]
    pub fn start(&self) -> Option<Timestamp> {
        self.0.first().map(|span| span.from)
    }

    /// The spans.
    #[must_use]
    pub fn as_slice(&self) -> &[Span] {
        &self.0
    }

    /// The holes between its spans: how many, and how long in whole seconds.
    #[must_use]
    pub fn gaps(&self) -> (usize, u64) {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return (0, 0) };
        let hull = Self::one(first.from, last.to);
        (self.0.len() - 1, hull.minus(self).seconds())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn spans(pairs: &[(i64, i64)]) -> Spans {
        pairs.iter().map(|(from, to)| Span { from: at(*from), to: at(*to) }).collect::<Vec<_>>().into()
    }

    #[test]
    fn spans_are_kept_in_order_and_apart() {
        assert_eq!(spans(&[(5, 7), (1, 3), (2, 5), (9, 9), (12, 11)]), spans(&[(1, 7)]));
        assert_eq!(spans(&[(1, 3), (5, 7)]).as_slice().len(), 2);
        assert_eq!(spans(&[(1, 3), (5, 7)]).gaps(), (1, 2));
        assert_eq!(spans(&[]).gaps(), (0, 0));
        assert_eq!(spans(&[(1, 10)]).minus(&spans(&[(0, 2), (4, 5), (9, 20)])), spans(&[(2, 4), (5, 9)]));
        assert_eq!(spans(&[(1, 10)]).within(at(3), at(5)), spans(&[(3, 5)]));
    }

    fn any() -> impl Strategy<Value = Spans> {
        prop::collection::vec((0_i64..60, 0_i64..60), 0..8).prop_map(|pairs| spans(&pairs))
    }

    /// The set by its seconds: what each operation must agree with.
    fn seconds(set: &Spans) -> std::collections::BTreeSet<i64> {
        (0..60).filter(|s| set.as_slice().iter().any(|x| x.from <= at(*s) && at(*s) < x.to)).collect()
    }

    proptest! {
        #[test]
        fn operations_are_those_of_sets(a in any(), b in any(), from in 0_i64..60, to in 0_i64..60) {
            let (x, y) = (seconds(&a), seconds(&b));
            prop_assert_eq!(seconds(&a.union(&b)), x.union(&y).copied().collect());
            prop_assert_eq!(seconds(&a.minus(&b)), x.difference(&y).copied().collect());
            let cut = x.iter().copied().filter(|s| from <= *s && *s < to).collect();
            prop_assert_eq!(seconds(&a.within(at(from), at(to))), cut);
            prop_assert_eq!(a.seconds(), x.len() as u64);
            prop_assert_eq!(a.union(&b), b.union(&a));
        }
    }
}
