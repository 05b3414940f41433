//! What a server is told at its first boot: cloud-init user-data from the templates `cloud-init/` and
//! `templates/`.
//!
//! It is a gzipped cloud-config. `write_files` holds plain text: `/opt/sky/prepare` (the script that
//! `runcmd` calls, alone), `/opt/sky/user` (the login user), and, where the image of the agent comes
//! from a registry, `run.args` (the options of `docker run` and the image, one a line), `agent.args`
//! (the agent's arguments, one a line) and `agent.env` (its secrets). `ssh_authorized_keys` and
//! `ssh_keys` hold the login key and the machine's first host key.
//!
//! User-data stays readable for the project's members with access to the server and for root on the
//! machine. So it holds the ring's secrets only where nothing but the cloud's API is to be needed, and
//! the host key in it is only good for the first login, which replaces it.

use std::io::Write;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use handlebars::{Handlebars, handlebars_helper};
use serde_json::{Value, json};

use super::marks::Marks;
use crate::error::{During, Error, Result};
use crate::inventory::{Agent, Openstack};
use crate::node::{Launch, NodeSpec};
use crate::state::{Secrets, random_hex};

/// The most that Nova takes, in bytes of base64.
pub(super) const LIMIT: usize = 65_535;
/// About how many bytes the two halves of a key take.
const PUBLIC_KEY: usize = 80;
const PRIVATE_KEY: usize = 400;
const USER_DATA: &str = include_str!("../../../../cloud-init/user-data.yaml.hbs");
const PREPARE: &str = include_str!("../../../../templates/prepare.sh.hbs");

/// What user-data is made of.
pub(super) struct Bootstrap<'a> {
    pub(super) marks: &'a Marks,
    pub(super) settings: &'a Openstack,
    pub(super) agent: &'a Agent,
    pub(super) launch: &'a Launch,
    pub(super) secrets: &'a Secrets,
    /// The key that may log in.
    pub(super) public_key: &'a str,
    /// The machine's first host key: private and public.
    pub(super) host_key: (&'a str, &'a str),
}

handlebars_helper!(as_json: |value: Value| value.to_string());

/// The cloud-config as text.
pub(super) fn render(bootstrap: &Bootstrap<'_>) -> Result<String> {
    let failed = || "cannot make the user-data of a server";
    let mut templates = Handlebars::new();
    templates.set_strict_mode(true);
    templates.register_escape_fn(handlebars::no_escape);
    templates.register_helper("json", Box::new(as_json));
    let prepare = templates.render_template(PREPARE, &json!({})).during(failed)?;
    let settings = bootstrap.settings;
    let lines = |arguments: &[String]| arguments.join("\n") + "\n";
    let registry = settings.agent_image.as_deref();
    let run = registry.map_or_else(Vec::new, |image| docker_run(bootstrap, image));
    let arguments = bootstrap.launch.arguments(bootstrap.agent, "/data");
    let environment = match registry {
        Some(_) => format!(
            "SKY_SECRET={}\nSKY_TOKEN={}\n",
            bootstrap.secrets.secret, bootstrap.secrets.token
        ),
        None => String::new(),
    };
    let values = json!({
        "ring": bootstrap.marks.ring(),
        "public_key": bootstrap.public_key,
        "host_private": bootstrap.host_key.0,
        "host_public": bootstrap.host_key.1,
        "prepare": prepare,
        "user": settings.ssh_user,
        "data_volume": settings.data_volume_gb.is_some(),
        "secrets": registry.is_some(),
        "environment": environment,
        "arguments": lines(&arguments),
        "run": lines(&run),
    });
    templates.render_template(USER_DATA, &values).during(failed)
}

/// The user-data as Nova wants it: gzipped, in base64.
pub(super) fn encode(text: &str) -> Result<String> {
    let encoded = compress(text)?;
    if encoded.len() > LIMIT {
        return Err(too_large(encoded.len()));
    }
    Ok(encoded)
}

/// The error for user-data that no cloud takes.
pub(super) fn too_large(bytes: usize) -> Error {
    Error::new(format!("the user-data of a server is {bytes} bytes, and clouds take {LIMIT}")).hint(
        "a ring of so many nodes needs the image sent by ssh: leave `openstack.agent_image` out",
    )
}

fn compress(text: &str) -> Result<String> {
    let failed = || "cannot compress the user-data of a server";
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).during(failed)?;
    Ok(STANDARD.encode(encoder.finish().during(failed)?))
}

/// How many bytes the user-data of one of `nodes` takes, before there are keys, secrets and addresses:
/// others of the same length, and as hard to compress, stand for them.
pub(super) fn size(
    marks: &Marks,
    settings: &Openstack,
    agent: &Agent,
    nodes: &[NodeSpec],
) -> Result<usize> {
    let Some(node) = nodes.first() else { return Ok(0) };
    let random = |bytes| STANDARD.encode(random_hex(bytes).unwrap_or_default());
    let address = |i: usize| {
        let [.., high, low] = i.to_be_bytes();
        Some(IpAddr::from([10, high.wrapping_mul(37), low, low.wrapping_mul(101)]))
    };
    let others = nodes.iter().enumerate().skip(1);
    let join = others.map(|(i, node)| NodeSpec { host: address(i), ..node.clone() }.address());
    let node = NodeSpec { host: address(0), ..node.clone() };
    let launch =
        Launch { node, join: join.collect(), require_token: true, replicas: 3, tie_breaker: None };
    let secrets = Secrets { secret: random_hex(32)?, token: random_hex(32)? };
    let text = render(&Bootstrap {
        marks,
        settings,
        agent,
        launch: &launch,
        secrets: &secrets,
        public_key: &random(PUBLIC_KEY / 2),
        host_key: (&random(PRIVATE_KEY / 2), &random(PUBLIC_KEY / 2)),
    })?;
    Ok(compress(&text)?.len())
}

/// The arguments of `docker run` up to the image: the same container that this program makes where it
/// reaches the engine itself.
fn docker_run(bootstrap: &Bootstrap<'_>, image: &str) -> Vec<String> {
    let (ring, node) = (bootstrap.marks.ring(), &bootstrap.launch.node);
    let name = crate::provider::docker::container_name(ring, &node.name);
    let mut arguments: Vec<String> = [
        "--detach",
        "--network=host",
        "--restart=unless-stopped",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--log-driver=json-file",
        "--log-opt=max-size=16m",
        "--log-opt=max-file=2",
        "--env-file=/opt/sky/agent.env",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--name={name}"));
    arguments.push(format!("--volume={name}:/data"));
    for (key, value) in crate::provider::docker::node_labels(ring, node) {
        arguments.push(format!("--label={key}={value}"));
    }
    arguments.push(image.to_owned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use sky_chord::Id;

    fn rendered(agent_image: Option<&str>, zone: &str) -> serde_yaml::Value {
        let marks = Marks::new("blue");
        let settings =
            Openstack { agent_image: agent_image.map(str::to_owned), ..Openstack::default() };
        let node = NodeSpec {
            name: "blue-1".into(),
            id: Id::small(7),
            host: Some("10.64.0.5".parse().unwrap()),
            port: 4321,
            zone: Some(zone.into()),
        };
        let join = vec!["10.64.0.6:4321".into()];
        let secrets =
            Secrets { secret: "the-secret-of-the-ring".into(), token: "the-token".into() };
        let text = render(&Bootstrap {
            marks: &marks,
            settings: &settings,
            agent: &Agent::default(),
            launch: &Launch { node, join, require_token: true, replicas: 3, tie_breaker: None },
            secrets: &secrets,
            public_key: "ssh-ed25519 AAAA sky.ring=blue",
            host_key: ("-----BEGIN\nkey\n-----END\n", "ssh-ed25519 BBBB"),
        })
        .unwrap();
        assert!(text.starts_with("#cloud-config\n"));
        assert!(encode(&text).unwrap().len() < LIMIT / 8, "{}", text.len());
        if agent_image.is_none() {
            assert!(!text.contains("the-secret") && !text.contains("the-token"), "{text}");
        }
        serde_yaml::from_str(&text).unwrap()
    }

    fn file(config: &serde_yaml::Value, path: &str) -> Option<String> {
        let files = config["write_files"].as_sequence().unwrap();
        let file = files.iter().find(|file| file["path"].as_str() == Some(path))?;
        Some(file["content"].as_str().unwrap().to_owned())
    }

    #[test]
    fn its_size_is_known_before_it_is_made() {
        let marks = Marks::new("blue");
        let node = |i: u32| NodeSpec {
            name: format!("blue-{i}"),
            id: Id::hash(&i.to_be_bytes()),
            host: None,
            port: 4321,
            zone: None,
        };
        let nodes: Vec<NodeSpec> = (0..100).map(node).collect();
        let bytes = |settings: &Openstack, number: usize| {
            size(&marks, settings, &Agent::default(), &nodes[..number]).unwrap()
        };
        let sent = bytes(&Openstack::default(), 100);
        assert!((2000..6000).contains(&sent), "{sent}");
        let image = Some("registry.example/sky-agent:1".to_owned());
        let pulled = Openstack { agent_image: image, ..Openstack::default() };
        assert!(bytes(&pulled, 100) > bytes(&pulled, 3) + 300);
    }

    #[test]
    fn without_a_registry_there_is_no_secret_in_it() {
        let config = rendered(None, "left");
        assert_eq!(file(&config, "/opt/sky/user").unwrap(), "debian");
        assert!(file(&config, "/opt/sky/prepare").unwrap().starts_with("#!/bin/sh\n"));
        assert_eq!(file(&config, "/opt/sky/agent.env"), None);
        assert_eq!(config["runcmd"][0][0], "/opt/sky/prepare");
        assert_eq!(config["ssh_keys"]["ed25519_private"], "-----BEGIN\nkey\n-----END\n");
    }

    #[test]
    fn with_a_registry_the_agent_is_started_as_everywhere() {
        let config = rendered(Some("registry.example/sky-agent:1"), "a \"b\" $(c)\\");
        let run = file(&config, "/opt/sky/run.args").unwrap();
        assert!(run.ends_with("\nregistry.example/sky-agent:1\n"), "{run}");
        assert!(run.contains("\n--label=sky.zone=a \"b\" $(c)\\\n"), "{run}");
        let arguments = file(&config, "/opt/sky/agent.args").unwrap();
        for wanted in ["--ip\n10.64.0.5\n", "--join\n10.64.0.6:4321\n", "--require-token\n"] {
            assert!(arguments.contains(wanted), "{arguments}");
        }
        let environment = file(&config, "/opt/sky/agent.env").unwrap();
        assert_eq!(environment, "SKY_SECRET=the-secret-of-the-ring\nSKY_TOKEN=the-token\n");
    }
}
