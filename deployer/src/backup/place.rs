//! Where a backup is kept: a file, a pipe, or whatever takes `PUT` and gives `GET` of a URL.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, Client, ClientBuilder, Response, StatusCode, Url};
use tokio::sync::{Notify, mpsc};

use crate::error::{During, Error, Result};

/// How much of a file is read at once.
const PIECE: usize = 256 << 10;
/// How long a store may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// How long a store may be silent while it sends, or take nothing while it is sent something.
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
                let client = built(client().read_timeout(SILENT_FOR))?;
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

/// Sends a file to a URL with `PUT`, more than once if it has to be.
pub(crate) async fn upload(path: &Path, place: &Place, url: &Url) -> Result<()> {
    // Its time-out for reading would not wait until all is sent.
    let client = built(client())?;
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match put(&client, path, place, url, SILENT_FOR).await {
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

/// Sends a file once. Its length is told beforehand, because S3 takes no other. However long that takes, the
/// store must always take some of it within `silent_for`, and answer so long after the last of it.
async fn put(
    client: &Client,
    path: &Path,
    place: &Place,
    url: &Url,
    silent_for: Duration,
) -> Result<Response> {
    let reading = || format!("cannot read {}", path.display());
    let file = File::open(path).during(reading)?;
    let length = file.metadata().during(reading)?.len();
    let taken = Arc::new(Notify::new());
    let notify = Arc::clone(&taken);
    let pieces = stream::unfold(file, move |mut file| {
        notify.notify_one();
        async move {
            let mut piece = Vec::with_capacity(PIECE);
            match file.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => None,
                Ok(_) => Some((Ok(Bytes::from(piece)), file)),
                Err(error) => Some((Err(error), file)),
            }
        }
    });
    let request = client.put(url.clone()).header(CONTENT_LENGTH, length);
    let mut asked = pin!(request.body(Body::wrap_stream(pieces)).send());
    loop {
        tokio::select! {
            asked = &mut asked => return answered(place, "put", asked),
            () = taken.notified() => {}
            () = tokio::time::sleep(silent_for) => {
                let seconds = silent_for.as_secs_f64();
                let silent = format!("the store took nothing and said nothing for {seconds} s");
                return Err(Error::new(format!("cannot put {place}")).because(silent));
            }
        }
    }
}

/// A client of its own: a store gets no token of the ring, and may be behind a proxy.
fn client() -> ClientBuilder {
    Client::builder().connect_timeout(CONNECT_WITHIN)
}

fn built(client: ClientBuilder) -> Result<Client> {
    client.build().during(|| "cannot make an HTTP client")
}

fn answered(place: &Place, verb: &str, asked: reqwest::Result<Response>) -> Result<Response> {
    // The library names the whole URL in its errors.
    asked.map_err(reqwest::Error::without_url).during(|| format!("cannot {verb} {place}"))
}

async fn refused(place: &Place, verb: &str, answer: Response) -> Error {
    let status = answer.status();
    let said = tokio::time::timeout(SILENT_FOR, answer.text()).await;
    let mut said = said.ok().and_then(reqwest::Result::ok).unwrap_or_default();
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
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};

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

    /// What comes of sending `size` bytes to a store that does this with the connection.
    async fn sent_to<F>(store: fn(TcpStream) -> F, size: usize, silent_for: Duration) -> Result<u16>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let socket = TcpSocket::new_v4().unwrap();
        // Little may be under way: what is sent is what the store has read.
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let url = Url::parse(&format!("http://{}/b/k", listener.local_addr().unwrap())).unwrap();
        let stored = tokio::spawn(async move { store(listener.accept().await.unwrap().0).await });
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size as u64).unwrap();
        let client = built(client().no_proxy()).unwrap();
        let place = Place::Url(url.clone());
        let answer = put(&client, file.path(), &place, &url, silent_for).await;
        stored.abort();
        answer.map(|answer| answer.status().as_u16())
    }

    /// Reads a request of so many bytes, with a pause after every piece while more than `quick` are left. Its
    /// body is zeros, its head is not.
    async fn read_slowly(connection: &mut TcpStream, mut size: usize, quick: usize) {
        let mut piece = vec![0; 64 << 10];
        while size > 0 {
            let read = connection.read(&mut piece).await.unwrap();
            assert!(read > 0, "{size} bytes did not come");
            let zeros = piece[..read].iter().filter(|byte| **byte == 0).count();
            size = size.saturating_sub(zeros);
            if size > quick {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn an_upload_may_take_longer_than_a_store_may_be_silent() {
        const SIZE: usize = 16 << 20;
        async fn store(mut connection: TcpStream) {
            // At the end, all that the kernels hold is behind the last piece.
            read_slowly(&mut connection, SIZE, SIZE / 4).await;
            connection
                .write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
        }
        let (begun, silent_for) = (Instant::now(), Duration::from_millis(1500));
        assert_eq!(sent_to(store, SIZE, silent_for).await.unwrap(), 201);
        assert!(begun.elapsed() > silent_for, "the store was not slow");
    }

    #[tokio::test]
    async fn an_upload_that_stands_still_is_given_up() {
        const SIZE: usize = 2 << 20;
        async fn stops_reading(mut connection: TcpStream) {
            read_slowly(&mut connection, SIZE / 2, SIZE).await;
            std::future::pending().await
        }
        async fn never_answers(mut connection: TcpStream) {
            read_slowly(&mut connection, SIZE, SIZE).await;
            std::future::pending().await
        }
        let silent_for = Duration::from_millis(300);
        let (one, other) = tokio::join!(
            sent_to(stops_reading, SIZE, silent_for),
            sent_to(never_answers, SIZE, silent_for),
        );
        for sent in [one, other] {
            let error = sent.unwrap_err().to_string();
            assert!(
                error.ends_with("the store took nothing and said nothing for 0.3 s"),
                "{error}"
            );
        }
    }
}
