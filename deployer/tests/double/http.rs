//! The smallest HTTP/1.1 server that a client of the cloud needs. It is not one of a library because
//! the double must be able to end a connection without an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::Value;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    /// Decoded.
    pub(crate) query: Vec<(String, String)>,
    /// With lower-case names.
    headers: Vec<(String, String)>,
    pub(crate) body: Value,
    /// The connection's number; later connections have higher ones.
    pub(crate) connection: u64,
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn argument(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it changes anything in the cloud.
    pub(crate) fn mutates(&self) -> bool {
        let reads = self.path.ends_with("/auth/tokens")
            || self.body.get("os-getConsoleOutput").is_some()
            || self.method == "GET";
        !reads
    }

    /// `POST /network/v2.0/ports`.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What is sent back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Answers requests on a port of this machine, each connection in a thread of its own. None ends the
/// connection instead.
pub(crate) fn serve(
    answer: impl Fn(Call) -> Option<Answer> + Send + Sync + 'static,
) -> (SocketAddr, Arc<TcpListener>) {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    let accepting = Arc::clone(&listener);
    std::thread::spawn(move || {
        for (number, stream) in accepting.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            let answer = Arc::clone(&answer);
            // A client that leaves ends its connection, which is no fault here.
            std::thread::spawn(move || talk(stream, number as u64, &*answer).ok());
        }
    });
    (address, listener)
}

fn talk(
    stream: TcpStream,
    connection: u64,
    answer: &dyn Fn(Call) -> Option<Answer>,
) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(call) = read(&mut reader, connection)? {
        let Some(answer) = answer(call) else {
            return writer.shutdown(std::net::Shutdown::Both);
        };
        let body = if answer.status == 204 || answer.body.is_null() {
            String::new()
        } else if let Some(page) = answer.body.as_str() {
            page.to_owned()
        } else {
            answer.body.to_string()
        };
        let mut text = format!("HTTP/1.1 {} Answer\r\n", answer.status);
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if answer.status != 204 {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(&body);
        writer.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// The next request; none at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>, connection: u64) -> std::io::Result<Option<Call>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Ok(Some(Call {
        method,
        path: decode(path),
        query: pairs.map(|(key, value)| (decode(key), decode(value))).collect(),
        headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        connection,
    }))
}

/// Text without percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match code.filter(|_| *first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
