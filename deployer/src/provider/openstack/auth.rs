//! Authentication with Keystone (API v3, "Authentication and token management"), as the sessions of
//! osauth want it: tokens, their renewal, and the catalog.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use osauth::{EndpointFilters, ErrorKind};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::clouds::{CloudConfig, Login, Named};

/// A token is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(120);

/// The names that catalogs use for the volume service.
const VOLUME_TYPES: &[&str] = &["block-storage", "volumev3", "volume"];

/// Who we are, for every call of a session. Shared by all clones.
#[derive(Clone)]
pub(super) struct Auth {
    cloud: Arc<CloudConfig>,
    token: Arc<Mutex<Option<Arc<Token>>>>,
}

/// A token and what came with it.
pub(super) struct Token {
    id: String,
    renew_at: SystemTime,
    /// The project it is for.
    pub(super) project: String,
    catalog: Vec<Service>,
}

struct Service {
    kind: String,
    endpoints: Vec<Endpoint>,
}

struct Endpoint {
    interface: String,
    region: Option<String>,
    url: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({})", self.cloud.source)
    }
}

impl Auth {
    /// The authentication of a cloud; nothing is asked yet.
    pub(super) fn new(cloud: CloudConfig) -> Self {
        Self { cloud: Arc::new(cloud), token: Arc::default() }
    }

    /// Which of the catalog's URLs are used.
    pub(super) fn interface(&self) -> &str {
        &self.cloud.interface
    }

    /// A token that is good for a while.
    pub(super) async fn token(&self, http: &Client) -> Result<Arc<Token>, osauth::Error> {
        let mut held = self.token.lock().await;
        if let Some(token) = held.as_ref().filter(|token| SystemTime::now() < token.renew_at) {
            return Ok(Arc::clone(token));
        }
        let token = Arc::new(self.authenticate_anew(http).await?);
        *held = Some(Arc::clone(&token));
        Ok(token)
    }

    /// Replaces a token that was refused. Of several callers with the same token one asks.
    pub(super) async fn renew(&self, http: &Client, refused: &Token) -> Result<(), osauth::Error> {
        let mut held = self.token.lock().await;
        if held.as_ref().is_none_or(|token| token.id == refused.id) {
            *held = None;
            *held = Some(Arc::new(self.authenticate_anew(http).await?));
        }
        Ok(())
    }

    /// Adds a token to a request.
    pub(super) fn sign(request: RequestBuilder, token: &Token) -> RequestBuilder {
        request.header("X-Auth-Token", &token.id)
    }

    async fn authenticate_anew(&self, http: &Client) -> Result<Token, osauth::Error> {
        let cloud = &self.cloud;
        let url = format!("{}/auth/tokens", cloud.auth_url);
        let failed = |what: String| osauth::Error::new(ErrorKind::AuthenticationFailed, what);
        let request = http.post(&url).json(&login(cloud));
        let response = request.send().await.map_err(|error| {
            let why =
                crate::error::Error::caused(format!("Keystone does not answer at {url}"), &error);
            osauth::Error::new(ErrorKind::ProtocolError, why.to_string())
        })?;
        let status = response.status();
        let id = response.headers().get("x-subject-token").and_then(|id| id.to_str().ok());
        let id = id.map(str::to_owned);
        let body: Value = response.json().await.unwrap_or_default();
        if !status.is_success() {
            let said = body["error"]["message"].as_str().unwrap_or_default();
            let who = match status {
                StatusCode::UNAUTHORIZED => {
                    format!("Keystone refuses the login of {}", cloud.source)
                }
                _ => format!("Keystone at {url} answers {status}"),
            };
            return Err(failed(format!("{who}: {said}")));
        }
        let token = &body["token"];
        let (Some(id), Some(project)) = (id, token["project"]["id"].as_str()) else {
            return Err(failed(format!(
                "the token of {} is for no project: name one, or use a credential that has one",
                cloud.source
            )));
        };
        Ok(Token {
            id,
            renew_at: expiry(token["expires_at"].as_str().unwrap_or_default()),
            project: project.to_owned(),
            catalog: catalog(&token["catalog"]),
        })
    }

    /// The URL of a service. `block-storage` stands for all its names.
    pub(super) async fn endpoint(&self, http: &Client, kind: &str) -> Result<Url, osauth::Error> {
        let kinds: Vec<&str> =
            if VOLUME_TYPES.contains(&kind) { VOLUME_TYPES.to_vec() } else { vec![kind] };
        let missing = |what: String| osauth::Error::new(ErrorKind::EndpointNotFound, what);
        let cloud = &self.cloud;
        let parse = |url: &str| {
            url.parse::<Url>()
                .map_err(|error| missing(format!("{kind} has the URL {url}: {error}")))
        };
        let given = cloud.endpoints.iter().find(|(name, _)| kinds.contains(&name.as_str()));
        if let Some((_, url)) = given {
            return parse(url);
        }
        let token = self.token(http).await?;
        let services =
            token.catalog.iter().filter(|service| kinds.contains(&service.kind.as_str()));
        let all: Vec<&Endpoint> = services.flat_map(|service| &service.endpoints).collect();
        if all.is_empty() {
            let names: Vec<&str> = token.catalog.iter().map(|s| s.kind.as_str()).collect();
            let names = names.join(", ");
            return Err(missing(format!("{} has no {kind} service, only {names}", cloud.source)));
        }
        let here = |endpoint: &&&Endpoint| {
            cloud.region.is_none() || endpoint.region.is_none() || endpoint.region == cloud.region
        };
        let near: Vec<&&Endpoint> = all.iter().filter(here).collect();
        if near.is_empty() {
            let mut regions: Vec<&str> = all.iter().filter_map(|e| e.region.as_deref()).collect();
            regions.sort_unstable();
            regions.dedup();
            let wanted = cloud.region.as_deref().unwrap_or_default();
            let known = regions.join(", ");
            return Err(missing(format!("{kind} is not in the region {wanted}, only in {known}")));
        }
        let endpoint = near.iter().find(|endpoint| endpoint.interface == cloud.interface);
        match endpoint {
            Some(endpoint) => parse(&endpoint.url),
            None => Err(missing(format!("{kind} has no {} endpoint", cloud.interface))),
        }
    }
}

#[async_trait]
impl osauth::AuthType for Auth {
    async fn authenticate(
        &self,
        client: &Client,
        request: RequestBuilder,
    ) -> Result<RequestBuilder, osauth::Error> {
        Ok(Self::sign(request, &*self.token(client).await?))
    }

    async fn get_endpoint(
        &self,
        client: &Client,
        service_type: &str,
        _filters: &EndpointFilters,
    ) -> Result<Url, osauth::Error> {
        self.endpoint(client, service_type).await
    }

    async fn refresh(&self, client: &Client) -> Result<(), osauth::Error> {
        // Asked for once, when a session is opened: the token there is will do.
        self.token(client).await.map(drop)
    }
}

fn named(named: &Named) -> Value {
    if named.is_id {
        return json!({"id": named.text});
    }
    match &named.domain {
        Some((domain, true)) => json!({"name": named.text, "domain": {"id": domain}}),
        Some((domain, false)) => json!({"name": named.text, "domain": {"name": domain}}),
        None => json!({"name": named.text}),
    }
}

/// The body of a request for a token.
fn login(cloud: &CloudConfig) -> Value {
    let identity = match &cloud.login {
        Login::Password { user, password } => {
            let mut user = named(user);
            user["password"] = json!(password);
            json!({"methods": ["password"], "password": {"user": user}})
        }
        Login::Credential { credential, user, secret } => {
            let mut credential = named(credential);
            credential["secret"] = json!(secret);
            if let Some(user) = user {
                credential["user"] = named(user);
            }
            json!({"methods": ["application_credential"], "application_credential": credential})
        }
        Login::Token(token) => json!({"methods": ["token"], "token": {"id": token}}),
    };
    let mut auth = json!({"identity": identity});
    if let Some(scope) = &cloud.scope {
        auth["scope"] = json!({"project": named(scope)});
    }
    json!({"auth": auth})
}

/// What a catalog offers. What cannot be understood is left out: other services may be fine.
fn catalog(catalog: &Value) -> Vec<Service> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let endpoint = |value: &Value| {
        let region = text(&value["region_id"]).or_else(|| text(&value["region"]));
        Some(Endpoint { interface: text(&value["interface"])?, region, url: text(&value["url"])? })
    };
    let service = |value: &Value| {
        let endpoints = value["endpoints"].as_array().into_iter().flatten().filter_map(endpoint);
        Some(Service { kind: text(&value["type"])?, endpoints: endpoints.collect() })
    };
    catalog.as_array().into_iter().flatten().filter_map(service).collect()
}

/// When to renew a token that expires at this time. A time that cannot be read means soon: an
/// unneeded renewal does no harm.
fn expiry(text: &str) -> SystemTime {
    let soon = SystemTime::now() + RENEW_BEFORE;
    crate::moment::parse(text).map_or(soon, |time| (time - RENEW_BEFORE).max(soon.min(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_times_are_read() {
        let seconds =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        // 2100-01-01T00:00:00Z is 4102444800.
        let far = seconds(expiry("2100-01-01T00:00:00.000000Z"));
        assert_eq!(far, 4_102_444_800 - RENEW_BEFORE.as_secs());
        assert!(expiry("tomorrow") > SystemTime::now());
    }

    #[test]
    fn odd_catalogs_are_read_as_far_as_possible() {
        let odd = json!([
            {"type": "compute", "endpoints": [{"interface": "public", "region": null, "url": "http://a"}]},
            {"endpoints": []},
            {"type": "network", "endpoints": [{"interface": "public"}, 5]},
        ]);
        let services = catalog(&odd);
        assert_eq!(services.len(), 2);
        assert_eq!((services[0].endpoints.len(), services[1].endpoints.len()), (1, 0));
        assert!(catalog(&Value::Null).is_empty());
    }
}
