//! Which records of the flow log are wanted; as a query of the control socket and back.

use std::fmt::Write as _;

use enforcer_common::{Reason, Verdict};
use jiff::Timestamp;
use thiserror::Error;

use super::record::{Flow, Line};

/// Which records are wanted; nothing set: all.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Filter {
    /// Only this verdict.
    pub verdict: Option<Verdict>,
    /// Only this reason.
    pub reason: Option<Reason>,
    /// Only what the client speaks: a class of [`Flow`].
    pub class: Option<&'static str>,
    /// Only this pod, `namespace/name`, at either end.
    pub pod: Option<String>,
    /// Only this namespace, at either end.
    pub namespace: Option<String>,
    /// Only this port of the meshed pod.
    pub port: Option<u16>,
    /// Only what was since then.
    pub since: Option<Timestamp>,
    /// Only the latest of them.
    pub last: Option<usize>,
    /// Go on with what comes.
    pub follow: bool,
}

/// A query that says nothing sensible.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QueryError {
    /// No such parameter.
    #[error(
        "there is no parameter {0:?}: use verdict, reason, class, pod, namespace, port, since, last or follow"
    )]
    Unknown(String),
    /// Its value is none of its words.
    #[error("parameter {name}: {value:?}: {why}")]
    Word {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
        /// What it can be.
        why: String,
    },
    /// Its value cannot be read.
    #[error("parameter {name}: {value:?} is no {expected}")]
    Value {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// A verdict by its word, in any case.
///
/// # Errors
/// Lists the words; also for what no record has.
pub fn verdict(text: &str) -> Result<Verdict, String> {
    let recorded = Verdict::ALL.into_iter().filter(|verdict| *verdict != Verdict::WAIT);
    if text.eq_ignore_ascii_case(Verdict::WAIT.name()) {
        return Err(WAITS.to_owned());
    }
    recorded
        .clone()
        .find(|verdict| verdict.name().eq_ignore_ascii_case(text))
        .ok_or_else(|| format!("use one of {}", list(recorded.map(Verdict::name))))
}

/// A reason by its word, in any case.
///
/// # Errors
/// Lists the words; also for what no record has.
pub fn reason(text: &str) -> Result<Reason, String> {
    let waits = |reason: &Reason| matches!(reason, Reason::OUT_OF_ORDER | Reason::SYN_DATA_TRIMMED);
    let found = Reason::ALL.iter().copied().find(|reason| reason.name().eq_ignore_ascii_case(text));
    match found {
        Some(reason) if waits(&reason) => Err(WAITS.to_owned()),
        Some(reason) => Ok(reason),
        None => {
            let recorded = Reason::ALL.iter().copied().filter(|reason| !waits(reason));
            Err(format!("use one of {}", list(recorded.map(Reason::name))))
        }
    }
}

/// A class by its word, in any case.
///
/// # Errors
/// Lists the words.
pub fn class(text: &str) -> Result<&'static str, String> {
    const CLASSES: [&str; 4] = ["tls", "mesh_tls", "plaintext", "unknown"];
    let found = CLASSES.into_iter().find(|class| class.eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("use one of {}", list(CLASSES.into_iter())))
}

/// Why there is nothing to filter by.
const WAITS: &str =
    "packets that wait are counted only and never recorded as a flow: see the counters of enforcer status";

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

impl Filter {
    /// Whether a record is wanted. What says that records are missing always is.
    #[must_use]
    pub fn takes(&self, line: &Line) -> bool {
        self.since.is_none_or(|since| line.time() >= since)
            && line.flow().is_none_or(|flow| self.takes_flow(flow))
    }

    fn takes_flow(&self, flow: &Flow) -> bool {
        let ends = [&flow.client, &flow.pod];
        self.verdict.is_none_or(|wanted| wanted.name() == flow.verdict)
            && self.reason.is_none_or(|wanted| wanted.name() == flow.reason)
            && self.class.is_none_or(|wanted| wanted == flow.class)
            && self.port.is_none_or(|port| port == flow.pod.port)
            && self
                .namespace
                .as_ref()
                .is_none_or(|wanted| ends.iter().any(|end| end.namespace.as_deref() == Some(wanted.as_str())))
            && self
                .pod
                .as_ref()
                .is_none_or(|wanted| ends.iter().any(|end| end.pod_name().as_ref() == Some(wanted)))
    }

    /// Reads the query of a request.
    ///
    /// # Errors
    /// When it holds what is no parameter, or a value that cannot be read.
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            let wrong =
                |expected| QueryError::Value { name: name.to_owned(), value: value.clone(), expected };
            let none = |why| QueryError::Word { name: name.to_owned(), value: value.clone(), why };
            match name {
                "verdict" => filter.verdict = Some(verdict(&value).map_err(none)?),
                "reason" => filter.reason = Some(reason(&value).map_err(none)?),
                "class" => filter.class = Some(class(&value).map_err(none)?),
                "pod" => filter.pod = Some(value),
                "namespace" => filter.namespace = Some(value),
                "port" => filter.port = Some(value.parse().map_err(|_| wrong("port number"))?),
                "last" => filter.last = Some(value.parse().map_err(|_| wrong("number"))?),
                "since" => filter.since = Some(value.parse().map_err(|_| wrong("time"))?),
                "follow" => {
                    filter.follow = match value.as_str() {
                        "" | "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(wrong("1 or 0")),
                    }
                }
                _ => return Err(QueryError::Unknown(name.to_owned())),
            }
        }
        Ok(filter)
    }

    /// The query that [`Self::parse`] reads.
    #[must_use]
    pub fn query(&self) -> String {
        let mut query = String::new();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let separator = if query.is_empty() { "" } else { "&" };
                let _ = write!(query, "{separator}{name}={}", encode(&value));
            }
        };
        add("verdict", self.verdict.map(|verdict| verdict.name().to_owned()));
        add("reason", self.reason.map(|reason| reason.name().to_owned()));
        add("class", self.class.map(str::to_owned));
        add("pod", self.pod.clone());
        add("namespace", self.namespace.clone());
        add("port", self.port.map(|port| port.to_string()));
        add("since", self.since.map(|since| since.to_string()));
        add("last", self.last.map(|last| last.to_string()));
        add("follow", self.follow.then(|| "1".to_owned()));
        query
    }
}

/// Percent-encodes everything but what is unreserved (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Undoes [`encode`]; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escape = (*first == b'%').then(|| after.get(..2)).flatten();
        let value = escape.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub(crate) mod tests;
