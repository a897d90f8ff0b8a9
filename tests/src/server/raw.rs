//! A server without a protocol: reads, counts, and says what it was told to say.

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Counted;
use crate::record::Journal;

/// First byte of a TLS record that carries a handshake.
const HANDSHAKE: u8 = 0x16;

/// The server.
pub(super) struct Raw {
    pub(super) greet: Option<String>,
    pub(super) answer: Option<String>,
    /// How many bytes must have come before they are sent back; `None`: they never are.
    pub(super) echo: Option<usize>,
    pub(super) journal: Journal,
}

impl Raw {
    /// Serves one connection to its end and writes it down.
    pub(super) async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true).ok();
        let (stream, counts) = Counted::new(stream);
        let outcome = self.talk(stream, |class| counts.class(class)).await;
        self.journal.add(&counts.record(outcome.err().map(|error| format!("{error:#}"))))
    }

    async fn talk(&self, mut stream: Counted, class: impl Fn(&str)) -> Result<()> {
        if let Some(greeting) = &self.greet {
            stream.write_all(greeting.as_bytes()).await?;
        }
        let mut buffer = vec![0; 64 * 1024];
        let mut first = true;
        let (mut pending, mut total) = (Vec::new(), 0);
        loop {
            let count = stream.read(&mut buffer).await?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Ok(());
            };
            if first {
                first = false;
                class(if bytes.first() == Some(&HANDSHAKE) { "tls" } else { "plaintext" });
                if let Some(answer) = &self.answer {
                    stream.write_all(answer.as_bytes()).await?;
                }
            }
            if let Some(least) = self.echo {
                total += count;
                pending.extend(bytes);
                if total >= least {
                    stream.write_all(&pending).await?;
                    pending.clear();
                }
            }
        }
    }
}
