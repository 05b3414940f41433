//! The settings as people write them: flags, `SKY_…` in the environment, a YAML file; in that order of
//! precedence, under the same names.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use sky_api::{DEFAULT_PORT, MAX_VALUE_BYTES};
use sky_chord::Id;

use crate::config::{Secret, Settings};

const ADVICE: &str = "Examples:
  sky-agent                      start a ring on 127.0.0.1:4321
  sky-agent -p 4322 -d 4321      join it with a second agent
  curl -X PUT --data hello http://127.0.0.1:4322/kv/greeting

The ring secret and the token of administrative calls are read from files, or from SKY_SECRET and SKY_TOKEN.";

/// A node of a Chord ring: a replicated, durable key-value store with an HTTP interface.
#[derive(Debug, Parser)]
#[command(name = "sky-agent", version, after_help = ADVICE, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of running an agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// YAML file with any of the settings below, under the same names.
    #[arg(long, value_name = "FILE", env = "SKY_CONFIG")]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub options: Options,
}

/// What to do instead of running an agent.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running agent whether it can serve clients: exit code 0 if so, else 1 and the reason
    Health {
        /// The agent's port
        #[arg(short, long, default_value_t = DEFAULT_PORT, env = "SKY_PORT")]
        port: u16,
        /// The agent's address
        #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), env = "SKY_IP")]
        ip: IpAddr,
        /// Ask only whether the process works, not whether it is in a ring
        #[arg(long)]
        live: bool,
    },
    /// A small ring in this process to play with: finger tables, lookups, joins and failures, step by step
    Playground(crate::playground::Options),
    /// Measure lookups against the papers: path lengths, and what failures cost
    Simulate(crate::simulate::Options),
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text, coloured on a terminal.
    #[default]
    Auto,
    /// Text without colours.
    Text,
    /// One JSON object a line.
    Json,
}

/// One source of settings; what it does not mention is `None`.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// What people call this agent [default: sky-PORT]
    #[arg(long, env = "SKY_NAME")]
    name: Option<String>,
    /// Port for clients and peers alike [default: 4321]
    #[arg(short, long, env = "SKY_PORT")]
    port: Option<u16>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, env = "SKY_IP")]
    ip: Option<IpAddr>,
    /// Where other agents reach this one [default: IP:PORT]
    #[arg(long, value_name = "HOST:PORT", env = "SKY_ADVERTISE")]
    advertise: Option<String>,
    /// Agents of the ring to join, separated by commas; a bare PORT is one on this machine
    #[arg(short = 'd', long, value_name = "HOST:PORT", value_delimiter = ',', env = "SKY_JOIN")]
    join: Option<Vec<String>>,
    /// Position on the circle, up to 40 hexadecimal digits [default: SHA-1 of the advertised address]
    #[arg(long, value_name = "HEX", env = "SKY_ID")]
    id: Option<Id>,
    /// Data directory [default: $XDG_STATE_HOME/sky/local-PORT]
    #[arg(long, value_name = "DIR", env = "SKY_DATA")]
    data: Option<PathBuf>,
    /// File with the secret that all agents of the ring share
    #[arg(long, value_name = "FILE", env = "SKY_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// File with the token that administrative HTTP calls must bring
    #[arg(long, value_name = "FILE", env = "SKY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Answer nothing about keys and the ring to clients without the token
    #[arg(long, env = "SKY_REQUIRE_TOKEN", num_args = 0..=1, default_missing_value = "true")]
    require_token: Option<bool>,
    /// Never found a ring: wait until one is initialized or reached
    #[arg(long, env = "SKY_WAIT_FOR_INIT", num_args = 0..=1, default_missing_value = "true")]
    wait_for_init: Option<bool>,
    /// Look of the log [default: auto: coloured text on a terminal]
    #[arg(long, env = "SKY_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// What to log: error, warn, info, debug, trace, or directives of tracing [default: info]
    #[arg(long, value_name = "LEVEL", env = "SKY_LOG")]
    log: Option<String>,
    /// Largest value accepted, in bytes, up to 67108864 [default: 1048576]
    #[arg(long, value_name = "BYTES", env = "SKY_MAX_VALUE_BYTES")]
    max_value_bytes: Option<usize>,
    /// Refuse writes when the disk has fewer bytes left [default: 536870912, a quarter of a small disk]
    #[arg(long, value_name = "BYTES", env = "SKY_DISK_RESERVE")]
    disk_reserve: Option<u64>,
    /// How long a dead member may come back with its disk before it is replaced [default: 10]
    #[arg(long, value_name = "SECONDS", env = "SKY_REPAIR_AFTER")]
    repair_after: Option<u64>,
    /// How many nodes hold each key, the same for all agents of a ring: 1, 3, 5 or 7 [default: 3]
    #[arg(long, value_name = "NUMBER", env = "SKY_REPLICAS")]
    replicas: Option<usize>,
    /// Position of the node that goes on alone when a ring of two has lost the other one, the same for both
    /// [default: none: both refuse]
    #[arg(long, value_name = "ID", env = "SKY_TIE_BREAKER")]
    tie_breaker: Option<Id>,
}

/// A setting that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InvalidSetting {
    what: String,
    /// What to do about it.
    pub hint: String,
}

fn invalid(what: impl Into<String>, hint: impl Into<String>) -> InvalidSetting {
    InvalidSetting { what: what.into(), hint: hint.into() }
}

/// What to log and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// The look.
    pub format: LogFormat,
    /// A level, or directives.
    pub level: String,
}

impl Options {
    /// The settings of a file.
    ///
    /// # Errors
    /// If it cannot be read or says something that is not understood.
    pub fn read(path: &Path) -> Result<Self, InvalidSetting> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let what = format!("the settings file {shown} cannot be read: {error}");
            invalid(what, "Check the path after --config.")
        })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml::from_str(&text).map_err(|error| {
            let place = error
                .location()
                .map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
            let what = format!("the settings file {shown}{place} is not understood: {error}");
            invalid(
                what,
                "Its names are those of the flags, without the dashes: see sky-agent --help.",
            )
        })
    }

    /// What these settings leave out is taken from `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            port: self.port.or(other.port),
            ip: self.ip.or(other.ip),
            advertise: self.advertise.or(other.advertise),
            join: self.join.or(other.join),
            id: self.id.or(other.id),
            data: self.data.or(other.data),
            secret_file: self.secret_file.or(other.secret_file),
            token_file: self.token_file.or(other.token_file),
            require_token: self.require_token.or(other.require_token),
            wait_for_init: self.wait_for_init.or(other.wait_for_init),
            log_format: self.log_format.or(other.log_format),
            log: self.log.or(other.log),
            max_value_bytes: self.max_value_bytes.or(other.max_value_bytes),
            disk_reserve: self.disk_reserve.or(other.disk_reserve),
            repair_after: self.repair_after.or(other.repair_after),
            replicas: self.replicas.or(other.replicas),
            tie_breaker: self.tie_breaker.or(other.tie_breaker),
        }
    }

    /// What to log and how.
    pub fn logging(&self) -> Logging {
        Logging {
            format: self.log_format.unwrap_or_default(),
            level: self.log.clone().unwrap_or_else(|| "info".to_owned()),
        }
    }

    /// Fills in what is not given. `variable` reads the environment.
    ///
    /// # Errors
    /// If the settings contradict each other or a secret cannot be read.
    pub fn resolve(
        self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Settings, InvalidSetting> {
        let ip = self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = self.port.unwrap_or(DEFAULT_PORT);
        if port == 0 {
            return Err(invalid(
                "an agent needs a port that others know",
                "Give a --port from 1 to 65535.",
            ));
        }
        let advertise = match self.advertise {
            Some(address) => host_and_port(&address)?,
            None if ip.is_unspecified() => {
                return Err(invalid(
                    format!("other agents cannot reach this one at {ip}"),
                    "Say where they can with --advertise HOST:PORT, or listen on one address with --ip.",
                ));
            }
            None => std::net::SocketAddr::new(ip, port).to_string(),
        };
        let join = self.join.unwrap_or_default();
        let join = join.iter().map(|address| host_and_port(address)).collect::<Result<_, _>>()?;
        let max_value_bytes = self.max_value_bytes.unwrap_or(1 << 20);
        if max_value_bytes > MAX_VALUE_BYTES {
            return Err(invalid(
                format!("values of {max_value_bytes} bytes are too large to keep"),
                format!("Set --max-value-bytes to {MAX_VALUE_BYTES} at most."),
            ));
        }
        let replicas = self.replicas.unwrap_or(3);
        if ![1, 3, 5, 7].contains(&replicas) {
            return Err(invalid(
                format!("a key cannot be on {replicas} nodes"),
                "Set --replicas to 1, 3, 5 or 7, the same for all agents of the ring.",
            ));
        }
        let data = match self.data {
            Some(data) => data,
            None => state_home(&variable)?.join("sky").join(format!("local-{port}")),
        };
        let token = secret(self.token_file, "SKY_TOKEN", &variable)?;
        let require_token = self.require_token.unwrap_or(false);
        if require_token && token.is_none() {
            return Err(invalid(
                "clients cannot bring a token, because this agent has none",
                "Give it one with --token-file or SKY_TOKEN, or leave --require-token out.",
            ));
        }
        Ok(Settings {
            name: self.name.unwrap_or_else(|| format!("sky-{port}")),
            ip,
            port,
            advertise: advertise.into(),
            join,
            id: self.id,
            data,
            secret: secret(self.secret_file, "SKY_SECRET", &variable)?,
            token,
            require_token,
            wait_for_init: self.wait_for_init.unwrap_or(false),
            max_value_bytes,
            disk_reserve: self.disk_reserve,
            repair_after: Duration::from_secs(self.repair_after.unwrap_or(10)),
            replicas,
            tie_breaker: self.tie_breaker,
        })
    }
}

/// `HOST:PORT` as it is; a bare port means this machine.
fn host_and_port(address: &str) -> Result<String, InvalidSetting> {
    let address = address.trim();
    if address.parse::<u16>().is_ok_and(|port| port > 0) {
        return Ok(format!("127.0.0.1:{address}"));
    }
    match address.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(address.to_owned())
        }
        _ => Err(invalid(
            format!("`{address}` is not an address of an agent"),
            "Write HOST:PORT, [IPV6]:PORT, or only the PORT of an agent on this machine.",
        )),
    }
}

fn state_home(variable: &impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, InvalidSetting> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .ok_or_else(|| invalid("neither HOME nor XDG_STATE_HOME is set", "Say --data DIR."))
}

fn secret(
    file: Option<PathBuf>,
    name: &str,
    variable: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Secret>, InvalidSetting> {
    let (source, bytes) = match (file, variable(name)) {
        (Some(file), _) => {
            let bytes = std::fs::read(&file).map_err(|error| {
                invalid(
                    format!("the secret in {} cannot be read: {error}", file.display()),
                    "Check the path and its permissions.",
                )
            })?;
            (file.display().to_string(), bytes)
        }
        (None, Some(value)) => (name.to_owned(), value.into_encoded_bytes()),
        (None, None) => return Ok(None),
    };
    let secret = Secret::new(&bytes);
    if secret.expose().is_empty() {
        return Err(invalid(
            format!("the secret in {source} is empty"),
            "Write a long random text into it, or leave the setting out.",
        ));
    }
    Ok(Some(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Options {
        Cli::try_parse_from(line.split_whitespace()).unwrap().options
    }

    fn settings(options: Options) -> Result<Settings, InvalidSetting> {
        options.resolve(|name| (name == "HOME").then(|| "/home/me".into()))
    }

    #[test]
    fn a_bare_agent_listens_on_this_machine_only() {
        let settings = settings(flags("sky-agent")).unwrap();
        assert_eq!(&*settings.advertise, "127.0.0.1:4321");
        assert_eq!(settings.data, Path::new("/home/me/.local/state/sky/local-4321"));
        assert!(settings.join.is_empty() && !settings.wait_for_init);
    }

    #[test]
    fn flags_win_over_the_file_and_a_port_is_an_address() {
        let file: Options =
            serde_yaml::from_str("port: 5000\nname: red\njoin: ['4321', 'sky.example:1']").unwrap();
        let settings = settings(flags("sky-agent -p 4322 --wait-for-init").or(file)).unwrap();
        assert_eq!((settings.port, settings.name.as_str()), (4322, "red"));
        assert_eq!(settings.join, ["127.0.0.1:4321", "sky.example:1"]);
        assert!(settings.wait_for_init);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for line in [
            "--ip 0.0.0.0",
            "-p 0",
            "-d example",
            "-d :1",
            "-d 0",
            "--max-value-bytes 99999999",
            "--replicas 2",
        ] {
            let error = settings(flags(&format!("sky-agent {line}"))).unwrap_err();
            assert!(!error.hint.is_empty(), "{line}: {error}");
        }
        assert!(settings(flags("sky-agent --ip 0.0.0.0 --advertise a:1")).is_ok());
        assert!(serde_yaml::from_str::<Options>("prot: 1").is_err());
    }

    #[test]
    fn secrets_come_from_the_environment_and_are_never_shown() {
        let secret = |name: &str| (name != "XDG_STATE_HOME").then(|| "/s3cret\n".into());
        let settings = flags("sky-agent").resolve(secret).unwrap();
        assert!(settings.secret.as_ref().is_some_and(|secret| secret.matches(b"/s3cret")));
        assert!(!format!("{settings:?}").contains("s3cret\""));
        assert!(!format!("{:?}", settings.token).contains("s3cret"));
        assert!(flags("sky-agent").resolve(|_| Some("".into())).is_err());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
