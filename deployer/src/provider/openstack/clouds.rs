//! Where a cloud is and who we are there: clouds.yaml, secure.yaml and the `OS_` variables, read as
//! the OpenStack client reads them (openstacksdk, "Configuring OpenStack SDK Applications").
//!
//! The order is explicit: the inventory's `cloud`, else `OS_CLOUD`, else the other `OS_` variables.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use crate::error::{During, Error, Result};

/// Everything needed to talk to one cloud.
#[derive(Clone, Debug)]
pub(super) struct CloudConfig {
    /// Where this was read, for errors: `cloud mycloud of /etc/openstack/clouds.yaml`.
    pub(super) source: String,
    /// Keystone, with its version: `https://cloud.example:5000/v3`.
    pub(super) auth_url: String,
    /// Who we are.
    pub(super) login: Login,
    /// The project, for logins that are not bound to one.
    pub(super) scope: Option<Scope>,
    /// The region, where the catalog has several.
    pub(super) region: Option<String>,
    /// Which of the catalog's URLs: `public`, `internal` or `admin`.
    pub(super) interface: String,
    /// A file with the certificates to trust, instead of the system's.
    pub(super) cacert: Option<PathBuf>,
    /// Whether certificates are checked at all.
    pub(super) verify: bool,
    /// URLs that replace those of the catalog, by service type.
    pub(super) endpoints: Vec<(String, String)>,
}

/// Who we are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// A user with a password.
    Password { user: Named, password: String },
    /// An application credential: by id, or by name with its user.
    Credential { credential: Named, user: Option<Named>, secret: String },
    /// A token that somebody else got.
    Token(String),
}

/// Something of Keystone by id, or by name within a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its id or its name.
    pub(super) text: String,
    /// Whether that is the id.
    pub(super) is_id: bool,
    /// The domain of a name: (id or name, whether it is the id).
    pub(super) domain: Option<(String, bool)>,
}

/// The project that a token is for.
pub(super) type Scope = Named;

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({})", user.text),
            Self::Credential { credential, .. } => write!(f, "Credential({})", credential.text),
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

/// The environment, so that tests need not change that of the process.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads who and where we are.
pub(super) fn load(cloud: Option<&str>) -> Result<CloudConfig> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    load_with(cloud, &environment)
}

/// The same, from another environment.
pub(super) fn load_with(cloud: Option<&str>, environment: Lookup<'_>) -> Result<CloudConfig> {
    match cloud.map(str::to_owned).or_else(|| environment("OS_CLOUD")) {
        Some(name) => from_files(&name, environment),
        None if environment("OS_AUTH_URL").is_some() => from_environment(environment),
        None => Err(Error::new("nothing says which cloud").hint(
            "set `openstack.cloud` in the inventory or OS_CLOUD to an entry of clouds.yaml, or \
             source the cloud's openrc file",
        )),
    }
}

/// The files that may hold clouds: the first that exists counts.
fn places(file: &str, variable: &str, environment: Lookup<'_>) -> Vec<PathBuf> {
    if let Some(path) = environment(variable) {
        return vec![PathBuf::from(path)];
    }
    let mut places = vec![PathBuf::from(file)];
    let config = environment("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(environment("HOME")?).join(".config")));
    places.extend(config.map(|config| config.join("openstack").join(file)));
    places.push(Path::new("/etc/openstack").join(file));
    places
}

/// The first of these files that exists, with its clouds.
fn read_clouds(places: &[PathBuf]) -> Result<Option<(PathBuf, Mapping)>> {
    for path in places {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Error::caused(format!("cannot read {}", path.display()), &error));
            }
        };
        let failed = || format!("{} is not YAML", path.display());
        let mut whole: Value = serde_yaml::from_str(&text).during(failed)?;
        whole.apply_merge().during(failed)?;
        let clouds = whole.get("clouds").and_then(Value::as_mapping).cloned();
        return Ok(Some((path.clone(), clouds.unwrap_or_default())));
    }
    Ok(None)
}

fn from_files(name: &str, environment: Lookup<'_>) -> Result<CloudConfig> {
    let places = places("clouds.yaml", "OS_CLIENT_CONFIG_FILE", environment);
    let Some((path, clouds)) = read_clouds(&places)? else {
        let looked: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::new(format!("there is no clouds.yaml for the cloud {name}"))
            .hint(format!("looked for {}", looked.join(", "))));
    };
    let known = || {
        let names: Vec<&str> = clouds.keys().filter_map(Value::as_str).collect();
        if names.is_empty() { "it has none".to_owned() } else { names.join(", ") }
    };
    let file = path.display();
    let Some(entry) = clouds.get(name) else {
        return Err(Error::new(format!("{file} has no cloud {name}"))
            .hint(format!("its clouds: {}", known())));
    };
    if !entry.is_mapping() {
        return Err(Error::new(format!("the cloud {name} of {file} is not a map")));
    }
    let mut entry = entry.clone();
    let secrets = self::places("secure.yaml", "OS_CLIENT_SECURE_FILE", environment);
    if let Some((_, secrets)) = read_clouds(&secrets)?
        && let Some(more) = secrets.get(name)
    {
        merge(&mut entry, more);
    }
    let source = format!("the cloud {name} of {file}");
    if let Some(profile) = entry.get("profile").or_else(|| entry.get("cloud")) {
        let profile = text(profile).unwrap_or_default();
        return Err(Error::new(format!("{source} relies on the vendor profile {profile}"))
            .hint("write its auth_url, region_name and so on into the entry itself"));
    }
    let auth = entry.get("auth").cloned().unwrap_or_default();
    if auth.is_null() && entry.get("auth_url").is_some() {
        return Err(Error::new(format!("{source} has auth_url beside `auth`"))
            .hint("auth_url, username, password and so on belong under `auth:`"));
    }
    let get = |key: &str| {
        let found = auth.get(key).or_else(|| entry.get(key)).and_then(text);
        found.filter(|value| !value.is_empty())
    };
    let endpoints = entry.as_mapping().into_iter().flatten().filter_map(|(key, value)| {
        let service = key.as_str()?.strip_suffix("_endpoint_override")?;
        Some((service.replace('_', "-"), text(value)?))
    });
    let endpoints = endpoints.collect();
    let verify = entry.get("verify").and_then(Value::as_bool).unwrap_or(true);
    build(source, &get, endpoints, verify, environment)
}

fn from_environment(environment: Lookup<'_>) -> Result<CloudConfig> {
    let get = |key: &str| {
        let name = format!("OS_{}", key.to_ascii_uppercase());
        // The names that older openrc files use.
        environment(&name).or_else(|| match key {
            "project_name" => environment("OS_TENANT_NAME"),
            "project_id" => environment("OS_TENANT_ID"),
            "interface" => {
                environment("OS_ENDPOINT_TYPE").map(|kind| kind.trim_end_matches("URL").to_owned())
            }
            _ => None,
        })
    };
    let insecure = environment("OS_INSECURE");
    let verify = !insecure.is_some_and(|text| matches!(text.as_str(), "1" | "true" | "True"));
    let services = ["compute", "network", "image", "volume", "block_storage"];
    let endpoints = services.iter().filter_map(|service| {
        let name = format!("OS_{}_ENDPOINT_OVERRIDE", service.to_ascii_uppercase());
        Some((service.replace('_', "-"), environment(&name)?))
    });
    let endpoints = endpoints.collect();
    build("the OS_ variables".to_owned(), &get, endpoints, verify, environment)
}

fn build(
    source: String,
    get: &dyn Fn(&str) -> Option<String>,
    endpoints: Vec<(String, String)>,
    verify: bool,
    environment: Lookup<'_>,
) -> Result<CloudConfig> {
    let need = |key: &str| get(key).ok_or_else(|| Error::new(format!("{source} has no {key}")));
    let domain = |what: &str| {
        get(&format!("{what}_domain_id"))
            .map(|id| (id, true))
            .or_else(|| get(&format!("{what}_domain_name")).map(|name| (name, false)))
            .or_else(|| get("default_domain").map(|id| (id, true)))
            .or_else(|| get("domain_id").map(|id| (id, true)))
            .or_else(|| get("domain_name").map(|name| (name, false)))
    };
    // Keystone's own default, when nothing else is said.
    let domain = |what: &str| domain(what).or_else(|| Some(("default".to_owned(), true)));
    let by_id = |id: String| Named { text: id, is_id: true, domain: None };
    let user = || {
        let id = get("user_id").map(by_id);
        id.or_else(|| {
            get("username").map(|text| Named { text, is_id: false, domain: domain("user") })
        })
    };
    let project = || {
        let id = get("project_id").or_else(|| get("tenant_id")).map(by_id);
        id.or_else(|| {
            let name = get("project_name").or_else(|| get("tenant_name"));
            name.map(|text| Named { text, is_id: false, domain: domain("project") })
        })
    };
    let kind = get("auth_type").unwrap_or_else(|| {
        let credential = get("application_credential_secret").is_some();
        if credential { "v3applicationcredential" } else { "password" }.to_owned()
    });
    let (login, scope) = match kind.as_str() {
        "password" | "v3password" => {
            let user = user()
                .ok_or_else(|| Error::new(format!("{source} has neither username nor user_id")))?;
            let scope = project().ok_or_else(|| {
                Error::new(format!("{source} has neither project_name nor project_id"))
            })?;
            (Login::Password { user, password: need("password")? }, Some(scope))
        }
        "v3applicationcredential" | "application_credential" => {
            let secret = need("application_credential_secret")?;
            let (credential, user) = match get("application_credential_id") {
                Some(id) => (by_id(id), None),
                None => {
                    let text = need("application_credential_name")?;
                    let user = user().ok_or_else(|| {
                        Error::new(format!(
                            "{source} names an application credential without its user"
                        ))
                        .hint("give application_credential_id, or username or user_id as well")
                    })?;
                    (Named { text, is_id: false, domain: None }, Some(user))
                }
            };
            // It belongs to one project; Keystone refuses another scope.
            (Login::Credential { credential, user, secret }, None)
        }
        "token" | "v3token" => (Login::Token(need("token")?), project()),
        other => {
            return Err(Error::new(format!("{source} wants auth_type {other}")).hint(
                "sky-deploy knows password, v3password, v3applicationcredential, token and v3token",
            ));
        }
    };
    let cacert = get("cacert").map(|path| match (path.strip_prefix("~/"), environment("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    });
    Ok(CloudConfig {
        auth_url: versioned(&need("auth_url")?),
        login,
        scope,
        region: get("region_name"),
        interface: get("interface").unwrap_or_else(|| "public".to_owned()),
        cacert,
        verify,
        endpoints,
        source,
    })
}

/// The URL of version 3: clouds.yaml may leave the version out.
fn versioned(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/v2.0").unwrap_or(url);
    if url.ends_with("/v3") { url.to_owned() } else { format!("{url}/v3") }
}

/// The text of a scalar: people write ids and passwords of digits without quotes.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Puts what `more` says over what is there, map by map.
fn merge(value: &mut Value, more: &Value) {
    match (value, more) {
        (Value::Mapping(map), Value::Mapping(more)) => {
            for (key, more) in more {
                match map.get_mut(key) {
                    Some(value) => merge(value, more),
                    None => {
                        map.insert(key.clone(), more.clone());
                    }
                }
            }
        }
        (value, more) => *value = more.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUDS: &str = "
clouds:
  plain:
    region_name: RegionOne
    auth: {auth_url: 'https://cloud.example:5000', username: me, password: 12345, project_name: mine,
           user_domain_id: d1, project_domain_name: Ours}
    block_storage_endpoint_override: http://127.0.0.1:1/v3
    verify: false
  base: &base
    auth: {auth_url: 'https://cloud.example/identity/v3/'}
  merged:
    <<: *base
    auth_type: v3applicationcredential
    cacert: ~/ca.pem
  broken: 5
  nested: {auth_url: 'https://cloud.example', auth_type: password}
  vendor: {profile: vexxhost}
  odd: {auth_type: v3oidcpassword, auth: {auth_url: 'https://x'}}
";
    const SECURE: &str = "
clouds:
  merged: {auth: {auth_url: 'https://cloud.example/identity', application_credential_id: id1,
                  application_credential_secret: s3cret}}
";

    fn read(name: Option<&str>, more: &[(&str, &str)]) -> Result<CloudConfig> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("clouds.yaml"), CLOUDS).unwrap();
        std::fs::write(folder.path().join("secure.yaml"), SECURE).unwrap();
        let path = |file: &str| Some(folder.path().join(file).display().to_string());
        let environment = |variable: &str| match variable {
            "OS_CLIENT_CONFIG_FILE" => path("clouds.yaml"),
            "OS_CLIENT_SECURE_FILE" => path("secure.yaml"),
            "HOME" => Some("/home/me".to_owned()),
            _ => more.iter().find(|(name, _)| *name == variable).map(|(_, v)| (*v).to_owned()),
        };
        load_with(name, &environment)
    }

    #[test]
    fn a_password_with_domains_by_id_and_name() {
        let cloud = read(Some("plain"), &[]).unwrap();
        assert_eq!(cloud.auth_url, "https://cloud.example:5000/v3");
        let Login::Password { user, password } = &cloud.login else { panic!("{cloud:?}") };
        assert_eq!(user.domain, Some(("d1".to_owned(), true)));
        assert_eq!(password, "12345");
        assert_eq!(cloud.scope.unwrap().domain, Some(("Ours".to_owned(), false)));
        assert!(!cloud.verify);
        assert_eq!(cloud.endpoints[0].0, "block-storage");
    }

    #[test]
    fn merge_keys_and_secure_yaml_complete_an_entry() {
        let cloud = read(None, &[("OS_CLOUD", "merged")]).unwrap();
        assert_eq!(cloud.auth_url, "https://cloud.example/identity/v3");
        assert!(matches!(&cloud.login, Login::Credential { user: None, .. }));
        assert_eq!((cloud.scope, cloud.cacert), (None, Some("/home/me/ca.pem".into())));
        assert!(!format!("{:?}", cloud.login).contains("s3cret"));
    }

    #[test]
    fn the_inventory_counts_before_the_environment() {
        let others = [("OS_CLOUD", "merged"), ("OS_AUTH_URL", "https://other.example")];
        assert!(read(Some("plain"), &others).unwrap().source.contains("the cloud plain of "));
    }

    #[test]
    fn variables_alone_are_enough() {
        let mut variables = vec![
            ("OS_AUTH_URL", "https://cloud.example/v3"),
            ("OS_USERNAME", "me"),
            ("OS_PASSWORD", "x"),
            ("OS_TENANT_NAME", "mine"),
            ("OS_USER_DOMAIN_ID", "d1"),
            ("OS_ENDPOINT_TYPE", "internalURL"),
            ("OS_INSECURE", "1"),
        ];
        let cloud = read(None, &variables).unwrap();
        assert_eq!(cloud.interface, "internal");
        assert!(!cloud.verify);
        assert_eq!(cloud.scope.unwrap().text, "mine");
        variables.remove(2);
        let error = read(None, &variables).unwrap_err().to_string();
        assert!(error.contains("password"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (name, wanted) in [
            ("plan", "clouds.yaml has no cloud plan (its clouds: plain, base, merged"),
            ("broken", "is not a map"),
            ("nested", "has auth_url beside `auth`"),
            ("vendor", "relies on the vendor profile vexxhost"),
            ("odd", "wants auth_type v3oidcpassword"),
            ("base", "has neither username nor user_id"),
        ] {
            let error = read(Some(name), &[]).unwrap_err().to_string();
            assert!(error.contains(wanted), "{name}: {error}");
        }
        assert!(read(None, &[]).unwrap_err().to_string().contains("nothing says which cloud"));
    }
}
