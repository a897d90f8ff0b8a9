//! A TCP stream that counts its bytes and remembers how it ended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::record::{End, HEAD, Record};

/// A TCP stream that counts.
#[derive(Debug)]
pub struct Counted {
    stream: TcpStream,
    shared: Arc<Mutex<Record>>,
}

/// What was counted, also after the stream was given away.
#[derive(Clone, Debug)]
pub struct Counts(Arc<Mutex<Record>>);

impl Counted {
    /// Starts to count.
    #[must_use]
    pub fn new(stream: TcpStream) -> (Self, Counts) {
        let record = Record {
            peer: stream.peer_addr().ok().map(canonical),
            class: "none".to_owned(),
            read: 0,
            head: Vec::new(),
            written: 0,
            end: End::Other,
            error: None,
        };
        let shared = Arc::new(Mutex::new(record));
        (Self { stream, shared: Arc::clone(&shared) }, Counts(shared))
    }

    /// The first byte, left in the socket; `None` when the connection ended before one came.
    pub async fn peek(&self) -> Option<u8> {
        let mut first = [0];
        let result = self.stream.peek(&mut first).await;
        if matches!(result, Ok(0) | Err(_)) {
            self.ended(&result);
            return None;
        }
        Some(first[0])
    }

    fn update(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn ended(&self, result: &io::Result<usize>) {
        self.update(|record| match result {
            Ok(_) => record.end = End::Eof,
            Err(error) => {
                if error.kind() == io::ErrorKind::ConnectionReset {
                    record.end = End::Reset;
                }
                record.error = Some(error.to_string());
            }
        });
    }
}

impl Counts {
    /// Sets the class of the connection.
    pub fn class(&self, class: &str) {
        class.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).class);
    }

    /// The record as it stands; `error` is what ended the connection where the socket itself did not say.
    #[must_use]
    pub fn record(&self, error: Option<String>) -> Record {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if record.error.is_none() && error.is_none() {
            // Also without the end of the stream: TLS has an end of its own.
            record.end = End::Eof;
        }
        record.error = record.error.or(error);
        record
    }
}

fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        match &result {
            Ok(()) if buf.filled().len() == before && buf.capacity() > before => self.ended(&Ok(0)),
            Ok(()) => {
                let new = buf.filled().get(before..).unwrap_or_default();
                self.update(|record| {
                    record.read += new.len() as u64;
                    let room = HEAD.saturating_sub(record.head.len()).min(new.len());
                    record.head.extend(new.get(..room).unwrap_or_default());
                });
            }
            Err(error) => self.ended(&Err(io::Error::from(error.kind()))),
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        match &result {
            Ok(count) => self.update(|record| record.written += *count as u64),
            Err(error) => self.ended(&Err(io::Error::from(error.kind()))),
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
