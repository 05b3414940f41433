//! Where a backup is kept: a file, a pipe, or whatever takes `PUT` and gives `GET` of a URL.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, Response, StatusCode, Url};
use tokio::sync::mpsc;

use crate::error::{During, Error, Result};

/// How much of a file is read at once.
const PIECE: usize = 256 << 10;
/// How long a store may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// How long a store may be silent while it sends.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// How often an upload is tried.
const TRIES: u32 = 4;

/// Where a backup goes to or comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Standard output or input.
    Pipe,
    /// A file.
    File(PathBuf),
    /// An object of a store.
    Url(Url),
}

impl Place {
    /// Reads `-`, a URL, `env:NAME` for a URL that nobody may see, or the name of a file.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Pipe);
        }
        let from_environment = match text.strip_prefix("env:") {
            Some(name) => Some(std::env::var(name).map_err(|error| {
                Error::caused(format!("the environment variable {name} cannot be used"), &error)
                    .hint("it should hold the URL; a file of that name is ./env:…")
            })?),
            None => None,
        };
        let is_url = |text: &str| text.starts_with("http://") || text.starts_with("https://");
        let text = match &from_environment {
            // What is in it is not shown: it may be a secret in the wrong place.
            Some(url) if !is_url(url) => {
                return Err(Error::new(format!("{text} does not hold an http or https URL")));
            }
            Some(url) => url,
            None if !is_url(text) => return Ok(Self::File(text.into())),
            None => text,
        };
        Url::parse(text).map(Self::Url).during(|| "the URL cannot be understood")
    }

    /// Opens it for reading, from the beginning.
    pub(crate) async fn read(&self) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Pipe => Box::new(io::stdin()),
            Self::File(path) => {
                let file = File::open(path).during(|| format!("cannot open {}", path.display()))?;
                Box::new(io::BufReader::with_capacity(PIECE, file))
            }
            Self::Url(url) => {
                let client = client()?;
                let asked = client.get(url.clone()).send().await;
                let answer = answered(self, "get", asked)?;
                if !answer.status().is_success() {
                    return Err(refused(self, "get", answer).await);
                }
                Box::new(Download::start(answer))
            }
        })
    }

    /// Whether it can be read more than once.
    pub(crate) const fn can_be_read_again(&self) -> bool {
        !matches!(self, Self::Pipe)
    }
}

impl fmt::Display for Place {
    /// Without what makes a URL a secret: its query, and the password in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe => f.write_str("the standard input"),
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => {
                let host = url.host_str().unwrap_or_default();
                write!(f, "{}://{host}", url.scheme())?;
                url.port().map_or(Ok(()), |port| write!(f, ":{port}"))?;
                f.write_str(url.path())
            }
        }
    }
}

/// Sends a file to a URL with `PUT`. Its length is told beforehand, because S3 takes no other.
pub(crate) async fn upload(path: &Path, place: &Place, url: &Url) -> Result<()> {
    let client = client()?;
    let reading = || format!("cannot read {}", path.display());
    let length = std::fs::metadata(path).during(reading)?.len();
    let mut tries = 0;
    loop {
        tries += 1;
        let file = File::open(path).during(reading)?;
        let pieces = stream::unfold(file, |mut file| async move {
            let mut piece = Vec::with_capacity(PIECE);
            match file.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => None,
                Ok(_) => Some((Ok(Bytes::from(piece)), file)),
                Err(error) => Some((Err(error), file)),
            }
        });
        let request = client.put(url.clone()).header(CONTENT_LENGTH, length);
        let error =
            match answered(place, "put", request.body(Body::wrap_stream(pieces)).send().await) {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => {
                    let passing = answer.status().is_server_error()
                        || answer.status() == StatusCode::TOO_MANY_REQUESTS;
                    let error = refused(place, "put", answer).await;
                    if !passing {
                        return Err(error);
                    }
                    error
                }
                Err(error) => error,
            };
        if tries == TRIES {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_secs(1 << tries)).await;
    }
}

/// A client of its own: a store gets no token of the ring, and may be behind a proxy.
fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_WITHIN)
        .read_timeout(SILENT_FOR)
        .build()
        .during(|| "cannot make an HTTP client")
}

fn answered(place: &Place, verb: &str, asked: reqwest::Result<Response>) -> Result<Response> {
    // The library names the whole URL in its errors.
    asked.map_err(reqwest::Error::without_url).during(|| format!("cannot {verb} {place}"))
}

async fn refused(place: &Place, verb: &str, answer: Response) -> Error {
    let status = answer.status();
    let mut said = answer.text().await.unwrap_or_default();
    let end = said.char_indices().map(|(at, _)| at).nth(300).unwrap_or(said.len());
    said.truncate(end);
    let error = Error::new(format!("cannot {verb} {place}: the store answers {status}"));
    let error = if said.trim().is_empty() { error } else { error.because(said.trim()) };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => error.hint(format!(
            "the URL has to be signed for {}, and may have expired",
            verb.to_uppercase()
        )),
        _ => error,
    }
}

/// A download, for code that waits.
struct Download {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Download {
    fn start(answer: Response) -> Self {
        let (sender, pieces) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut arriving = answer.bytes_stream();
            while let Some(piece) = arriving.next().await {
                let piece = piece.map_err(|error| io::Error::other(error.without_url()));
                // Nobody wants the rest if this fails.
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert_eq!(Place::parse("-").unwrap(), Place::Pipe);
        assert_eq!(Place::parse("a/b.sky").unwrap(), Place::File("a/b.sky".into()));
        assert!(matches!(Place::parse("https://s3/b/k?sig=x").unwrap(), Place::Url(_)));
        assert!(Place::parse("env:SKY_SUCH_A_VARIABLE_IS_NOT_THERE").is_err());
        // Set for every test, and no URL.
        let error = Place::parse("env:PATH").unwrap_err().to_string();
        assert_eq!(error, "env:PATH does not hold an http or https URL");
    }

    #[test]
    fn a_shown_url_has_no_secret() {
        let place = Place::parse("https://user:pass@s3.example:444/b/k?X-Signature=7#f").unwrap();
        assert_eq!(place.to_string(), "https://s3.example:444/b/k");
    }
}
