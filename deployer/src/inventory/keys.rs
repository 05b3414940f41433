//! The keys of an inventory and what may stand at each: one table for the checker and for editors.

use std::net::IpAddr;

use sky_chord::Id;

use super::parse_duration;

/// What may stand at a key.
pub(super) enum Kind {
    /// A map with these keys.
    Map(&'static [Key]),
    /// Text of this form.
    Text(&'static Form),
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A list of texts of this form.
    Texts(&'static Form),
    /// Yes or no.
    Flag,
    /// A whole number from the first to the second.
    Number(u64, u64),
    /// One of these words or numbers, written without quotes.
    Word(&'static [&'static str]),
    /// A number of nodes, or a list of maps with these keys.
    Nodes(&'static [Key]),
}

/// A key and what may stand there.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

/// A form of text.
pub(super) struct Form {
    /// What is wrong with a text, if anything is.
    pub(super) fault: fn(&str) -> Option<String>,
    /// A pattern (ECMA 262) that every right text matches, for editors: it may match others too.
    pub(super) pattern: &'static str,
}

const fn form(fault: fn(&str) -> Option<String>, pattern: &'static str) -> Form {
    Form { fault, pattern }
}

static NAME: Form = form(name, "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$");
static SECRET: Form = form(secret, "^[!-~]{16,}$");
static ID: Form = form(id, "^[0-9A-Fa-f]{1,40}$");
static GIVEN: Form = form(given, r"\S");
static REPAIR_AFTER: Form = form(repair_after, "^(auto|[0-9]*[1-9][0-9]*[smh])$");
static ROOMY_NETWORK: Form = form(roomy_network, r"^[0-9.]+/\+?0*([89]|1[0-9]|2[0-8])$");
static ADDRESS: Form = form(address, "^[0-9A-Fa-f.:]+$");
static NETWORK: Form = form(network, r"^[0-9A-Fa-f.:]+/\+?[0-9]{1,3}$");
static USER: Form = form(user, "^[a-z_][a-z0-9_-]{0,31}$");
static IMAGE: Form = form(image_reference, "^[A-Za-z0-9][A-Za-z0-9._/:@-]*$");

/// The keys of a whole inventory.
pub(super) static TOP: &[Key] = &[
    key("ring", Kind::Map(RING)),
    key("provider", Kind::Choice(&["auto", "process", "docker", "openstack"])),
    key("nodes", Kind::Nodes(NODE)),
    key("agent", Kind::Map(AGENT)),
    key("docker", Kind::Map(&[])),
    key("openstack", Kind::Map(OPENSTACK)),
];

static RING: &[Key] = &[
    key("name", Kind::Text(&NAME)),
    key("replicas", Kind::Word(&["1", "3", "5", "7"])),
    key("tie_breaker", Kind::Text(&NAME)),
    key("secret", Kind::Text(&SECRET)),
];

static NODE: &[Key] = &[
    key("name", Kind::Text(&NAME)),
    key("id", Kind::Text(&ID)),
    key("port", Kind::Number(1, 65_535)),
    key("zone", Kind::Text(&GIVEN)),
];

static AGENT: &[Key] = &[
    key("port", Kind::Number(1, 65_535)),
    key("max_value_bytes", Kind::Number(1, sky_api::MAX_VALUE_BYTES as u64)),
    key("repair_after", Kind::Text(&REPAIR_AFTER)),
    key("log", Kind::Choice(&["text", "json"])),
];

static OPENSTACK: &[Key] = &[
    key("cloud", Kind::Text(&GIVEN)),
    key("image", Kind::Text(&GIVEN)),
    key("flavor", Kind::Text(&GIVEN)),
    key("network", Kind::Text(&GIVEN)),
    key("subnet", Kind::Text(&GIVEN)),
    key("cidr", Kind::Text(&ROOMY_NETWORK)),
    key("dns", Kind::Texts(&ADDRESS)),
    key("router", Kind::Text(&GIVEN)),
    key("external_network", Kind::Text(&GIVEN)),
    key("floating_ips", Kind::Choice(&["none", "one", "all"])),
    key("security_group", Kind::Text(&GIVEN)),
    key("allow_from", Kind::Texts(&NETWORK)),
    key("ssh_from", Kind::Texts(&NETWORK)),
    key("keypair", Kind::Text(&GIVEN)),
    key("ssh_key", Kind::Text(&GIVEN)),
    key("ssh_user", Kind::Text(&USER)),
    key("anti_affinity", Kind::Choice(&["soft", "hard", "none"])),
    key("availability_zones", Kind::Texts(&GIVEN)),
    key("root_volume_gb", Kind::Number(1, 16_384)),
    key("data_volume_gb", Kind::Number(1, 16_384)),
    key("volume_type", Kind::Text(&GIVEN)),
    key("config_drive", Kind::Flag),
    key("agent_image", Kind::Text(&IMAGE)),
];

/// What a ring of servers cannot do without, in the section `openstack`, and examples.
pub(super) const SERVERS_NEED: [(&str, &str); 2] = [("image", "debian-12"), ("flavor", "m1.small")];

/// The most nodes of a ring.
pub(super) const MOST_NODES: u64 = 1000;

pub(super) fn one_of(text: &str, choices: &[&str]) -> Option<String> {
    (!choices.contains(&text)).then(|| format!("must be one of {}", choices.join(", ")))
}

pub(super) fn name(text: &str) -> Option<String> {
    let good = (1..=40).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-');
    (!good).then(|| {
        "must be at most 40 lower-case letters, digits and hyphens, beginning with a letter"
            .to_owned()
    })
}

fn secret(text: &str) -> Option<String> {
    let good = text.len() >= 16 && text.bytes().all(|b| b.is_ascii_graphic());
    (!good).then(|| "must be at least 16 printable ASCII characters without blanks".to_owned())
}

fn id(text: &str) -> Option<String> {
    let invalid = text.parse::<Id>().err()?;
    Some(format!("must be a position on the circle: {invalid}"))
}

fn repair_after(text: &str) -> Option<String> {
    let good = text == "auto" || parse_duration(text).is_some_and(|time| !time.is_zero());
    (!good).then(|| "must be auto or a duration with its unit, such as 10s, 2m or 1h".to_owned())
}

fn given(text: &str) -> Option<String> {
    let bad = text.trim().is_empty() || text.chars().any(char::is_control);
    bad.then(|| "must be text, and on one line".to_owned())
}

fn address(text: &str) -> Option<String> {
    text.parse::<IpAddr>().is_err().then(|| "must be an IP address".to_owned())
}

/// A network in CIDR notation (RFC 4632): its first address and the length of its prefix.
fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (first, length) = text.split_once('/')?;
    let (first, length) = (first.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
    let (bits, width) = match first {
        IpAddr::V4(first) => (u128::from(first.to_bits()), 32_u8),
        IpAddr::V6(first) => (first.to_bits(), 128),
    };
    let inside = u32::from(width.checked_sub(length)?);
    let is_first = inside == 0 || bits << (128 - inside) == 0;
    is_first.then_some((first, length))
}

/// A network as Neutron writes it: clouds give it back so, however it was written.
pub(super) fn canonical_network(text: &str) -> Option<String> {
    parse_network(text).map(|(first, length)| format!("{first}/{length}"))
}

fn network(text: &str) -> Option<String> {
    let what = "must be a network such as 192.0.2.0/24, or 192.0.2.7/32 for one address";
    parse_network(text).is_none().then(|| what.to_owned())
}

fn roomy_network(text: &str) -> Option<String> {
    let good = matches!(parse_network(text), Some((IpAddr::V4(_), 8..=28)));
    (!good).then(|| "must be an IPv4 network from /8 to /28, such as 10.64.0.0/24".to_owned())
}

fn user(text: &str) -> Option<String> {
    let good = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    (!good).then(|| "must be the name of a user, such as debian or ubuntu".to_owned())
}

fn image_reference(text: &str) -> Option<String> {
    let good = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    (!good).then(|| "must be the name of an image, such as registry.example/sky-agent:1".to_owned())
}

/// Every key there is, for the test that holds types and checker together.
#[cfg(test)]
pub(super) fn known_keys() -> Vec<String> {
    fn collect(keys: &[Key], found: &mut Vec<String>) {
        for key in keys {
            found.push(key.name.to_owned());
            if let Kind::Map(inner) | Kind::Nodes(inner) = key.kind {
                collect(inner, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(TOP, &mut found);
    found
}
