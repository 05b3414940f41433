//! `sky-agent health`: the health check of containers, which have no other program to ask with.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use sky_api::path;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// More of an answer than this is of no interest.
const LONGEST_ANSWER: u64 = 64 << 10;

/// Asks the agent whether it is ready, or with `live` only whether it works. Prints its answer.
pub(crate) fn main(ip: IpAddr, port: u16, live: bool) -> ExitCode {
    let ip = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, port);
    match ask(address, if live { path::HEALTHZ } else { path::READYZ }) {
        Ok(answer) => {
            let is_well = answer.split(' ').nth(1) == Some("200");
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            // The exit code tells all, if nobody reads this.
            writeln!(io::stdout(), "{}", body.trim()).ok();
            if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let hint = "Is the agent running, and on this port?";
            writeln!(io::stderr(), "error: no answer from {address}: {error}\nhint: {hint}").ok();
            ExitCode::FAILURE
        }
    }
}

fn ask(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}
