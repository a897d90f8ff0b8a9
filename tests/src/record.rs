//! What the lab's servers write down about each connection: one JSON object per line, written when it ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::poll;

/// How many of the first bytes read a record keeps.
pub const HEAD: usize = 64;

/// How an accepted socket ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The client closed.
    Eof,
    /// ECONNRESET.
    Reset,
    /// The server closed first, or TLS failed; see [`Record::error`].
    Other,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::Eof => "eof",
            Self::Reset => "reset",
            Self::Other => "other",
        }
    }
}

/// One accepted connection that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The client's address, as the accepted socket knew it.
    pub peer: Option<SocketAddr>,
    /// `tls`, `plaintext`, or `none` when no byte came.
    pub class: String,
    /// Bytes read from the accepted socket.
    pub read: u64,
    /// The first of them, at most [`HEAD`].
    pub head: Vec<u8>,
    /// Bytes written to it.
    pub written: u64,
    /// How it ended.
    pub end: End,
    /// The error that ended it, if any.
    pub error: Option<String>,
}

impl Record {
    fn to_json(&self) -> Value {
        json!({
            "peer": self.peer.map(|peer| peer.to_string()), "class": self.class, "read": self.read, "head": self.head,
            "written": self.written, "end": self.end.name(), "error": self.error,
        })
    }

    fn from_json(value: &Value) -> Result<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let number = |name: &str| value.get(name).and_then(Value::as_u64).context("a number is missing");
        Ok(Self {
            peer: text("peer").map(str::parse).transpose()?,
            class: text("class").context("class is missing")?.to_owned(),
            read: number("read")?,
            head: serde_json::from_value(value.get("head").context("head is missing")?.clone())?,
            written: number("written")?,
            end: match text("end") {
                Some("eof") => End::Eof,
                Some("reset") => End::Reset,
                _ => End::Other,
            },
            error: text("error").map(str::to_owned),
        })
    }
}

/// Where a server writes its records.
#[derive(Debug)]
pub struct Journal(Mutex<File>);

impl Journal {
    /// Opens the file, which is created when it is not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(Mutex::new(file.with_context(|| format!("cannot open {}", path.display()))?)))
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, record: &Record) -> Result<()> {
        let line = format!("{}\n", record.to_json());
        let mut file = self.0.lock().map_err(|_| anyhow!("a writer of the journal panicked"))?;
        file.write_all(line.as_bytes()).context("cannot write the record")
    }
}

/// Reads what a server wrote down.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Records {
    /// The records in a file.
    #[must_use]
    pub const fn of(path: PathBuf) -> Self {
        Self(path)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All connections that have ended so far.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn all(&self) -> Result<Vec<Record>> {
        let text =
            fs::read_to_string(&self.0).with_context(|| format!("cannot read {}", self.0.display()))?;
        // A line without its end is still being written.
        let complete = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        complete.lines().map(|line| Record::from_json(&serde_json::from_str(line)?)).collect()
    }

    /// Waits for the one connection that ends after `seen` others and came from `peer`.
    ///
    /// A connection that was reset before it was accepted has no peer any more, which is why the order tells.
    ///
    /// # Errors
    /// When none has ended after five seconds, or it is another client's.
    pub fn next(&self, seen: usize, peer: SocketAddr) -> Result<Record> {
        let record = self.at_least(seen + 1)?.into_iter().nth(seen).context("no record")?;
        ensure!(
            record.peer.is_none_or(|other| same(other, peer)),
            "not the connection of {peer}: {record:?}"
        );
        Ok(record)
    }

    /// The same where records of other clients, whose connections ended before, may still come in.
    ///
    /// # Errors
    /// When none has ended after five seconds.
    pub fn next_among_others(&self, seen: usize, peer: SocketAddr) -> Result<Record> {
        poll::until(&format!("the server's record of {peer}"), Duration::from_secs(5), || {
            let mut new = self.all()?.into_iter().skip(seen);
            let found = new.find(|record| record.peer.is_none_or(|other| same(other, peer)));
            found.context("it is not there")
        })
    }

    /// Waits for the end of a connection from `peer` that was accepted while it was open.
    ///
    /// # Errors
    /// When none has ended after five seconds.
    pub fn of_peer(&self, peer: SocketAddr) -> Result<Record> {
        poll::until(&format!("the server's record of {peer}"), Duration::from_secs(5), || {
            let mut all = self.all()?.into_iter();
            let found = all.find(|record| record.peer.is_some_and(|other| same(other, peer)));
            found.context("it is not there")
        })
    }

    /// Waits until `count` connections have ended and gives all.
    ///
    /// # Errors
    /// When there are fewer after five seconds.
    pub fn at_least(&self, count: usize) -> Result<Vec<Record>> {
        poll::until(&format!("{count} records in {}", self.0.display()), Duration::from_secs(5), || {
            let all = self.all()?;
            if all.len() >= count { Ok(all) } else { Err(anyhow!("there are {}", all.len())) }
        })
    }
}

/// An IPv4 client of a dual-stack listener has a v4-mapped address there.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}
