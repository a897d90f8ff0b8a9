//! The application behind the front: a small HTTP/1.1 server on loopback.
//!
//! `GET /` answers with a greeting; `GET /files/NAME` and `PUT /files/NAME` read and write files. Connections are
//! kept alive, and `Expect: 100-continue` is honoured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::{TcpListener, TcpStream};

/// Longest request head, bytes.
const MAX_HEAD: u64 = 64 * 1024;

/// The application.
pub(super) struct App {
    pub(super) greeting: String,
    pub(super) files: Option<PathBuf>,
}

/// What the server needs to know of a request.
struct Request {
    method: String,
    path: String,
    length: u64,
    expects_continue: bool,
    close: bool,
}

/// Starts the application and gives its address.
pub(super) async fn start(app: App) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("the application cannot listen")?;
    let address = listener.local_addr()?;
    let app = Arc::new(app);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let app = Arc::clone(&app);
            tokio::spawn(async move {
                if let Err(error) = app.serve(stream).await {
                    eprintln!("application: {error:#}");
                }
            });
        }
    });
    Ok(address)
}

impl App {
    async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        while let Some(request) = head(&mut stream).await? {
            if request.expects_continue {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            self.answer(&request, &mut stream).await?;
            if request.close {
                break;
            }
        }
        Ok(())
    }

    async fn answer(&self, request: &Request, stream: &mut BufReader<TcpStream>) -> Result<()> {
        let mut body = (&mut *stream).take(request.length);
        let file = request.path.strip_prefix("/files/").filter(|name| !name.contains('/'));
        match (request.method.as_str(), file, &self.files) {
            ("GET", Some(name), Some(dir)) => {
                copy(&mut body, &mut tokio::io::sink()).await?;
                let mut file = File::open(dir.join(name)).await.with_context(|| format!("no file {name}"))?;
                let length = file.metadata().await?.len();
                stream.write_all(response("200 OK", length).as_bytes()).await?;
                copy(&mut file, stream).await?;
            }
            ("PUT", Some(name), Some(dir)) => {
                let mut file = File::create(dir.join(name)).await?;
                copy(&mut body, &mut file).await?;
                file.flush().await?;
                stream.write_all(response("201 Created", 0).as_bytes()).await?;
            }
            (_, None, _) => {
                copy(&mut body, &mut tokio::io::sink()).await?;
                let head = response("200 OK", self.greeting.len() as u64 + 1);
                stream.write_all(format!("{head}{}\n", self.greeting).as_bytes()).await?;
            }
            _ => stream.write_all(response("404 Not Found", 0).as_bytes()).await?,
        }
        Ok(stream.flush().await?)
    }
}

fn response(status: &str, length: u64) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n")
}

/// Reads a request's head; `None` when the client has closed.
async fn head(stream: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut limited = stream.take(MAX_HEAD);
    let mut line = String::new();
    if limited.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
        bail!("not a request line: {line:?}");
    };
    ensure!(version.starts_with("HTTP/1."), "not HTTP/1: {line:?}");
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        length: 0,
        expects_continue: false,
        close: version == "HTTP/1.0",
    };
    loop {
        let mut line = String::new();
        ensure!(limited.read_line(&mut line).await? > 0, "the head is cut off or too long");
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(request));
        }
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => request.length = value.parse()?,
            "expect" => request.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            "connection" => request.close = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
}
