//! Calls to the APIs of a cloud: one HTTP client with time-outs, bounded retries and errors that say
//! what was asked.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode, Url};
use serde_json::Value;

use super::auth::Auth;
use super::clouds::{self, CloudConfig};
use super::rehearsal::Rehearsal;
use crate::error::{During, Error, Result};
use crate::inventory::Openstack;

/// How long a service may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long one call may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How often a call is tried that does no harm when it is repeated.
const TRIES: u32 = 4;
/// How long a service that says "later" is waited for, in all.
const PATIENCE: Duration = Duration::from_secs(120);
/// The most characters of a service's message in an error.
const MESSAGE_LIMIT: usize = 2000;
/// Nova's microversion for everything here: tags (2.52), descriptions (2.19), server groups with one
/// policy (2.64), volume types (2.67). Part of the release Stein of 2019 and of every later one.
const COMPUTE_VERSION: &str = "2.67";
/// The most pages of one list, against services that never come to an end.
const PAGES: usize = 1000;

/// A service of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Compute,
    Network,
    Image,
    Volume,
}

impl Service {
    /// Its type in the catalog.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Network => "network",
            Self::Image => "image",
            Self::Volume => "block-storage",
        }
    }

    /// What catalogs leave out of the service's URL.
    const fn version(self) -> &'static str {
        match self {
            Self::Compute | Self::Volume => "",
            Self::Network => "v2.0",
            Self::Image => "v2",
        }
    }
}

/// What a call did not do.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// The answer's status; none if there was no answer.
    pub(super) status: Option<u16>,
    /// What the service calls this: `OverQuota`, `itemNotFound`.
    pub(super) kind: String,
    /// What the service says.
    pub(super) message: String,
    /// How the service's log calls the request.
    pub(super) request_id: Option<String>,
    /// `POST /servers of compute`.
    call: String,
    /// Whether it may have been done all the same.
    unsure: bool,
    /// Whether the catalog has no such service for us.
    absent: bool,
}

impl Fault {
    /// Whether the service answered with this status.
    pub(super) fn is(&self, status: u16) -> bool {
        self.status == Some(status)
    }

    /// Whether a quota is used up.
    pub(super) fn is_quota(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.kind == "OverQuota"
            || (matches!(self.status, Some(403 | 409 | 413)) && message.contains("quota"))
    }

    /// Whether it may have been done all the same: the answer was lost.
    pub(super) const fn unsure(&self) -> bool {
        self.unsure
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            None if self.absent => return f.write_str(&self.message),
            Some(status) => write!(f, "{} was answered {status}", self.call)?,
            None => write!(f, "{} was not answered", self.call)?,
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if let Some(id) = &self.request_id {
            write!(f, " (request {id})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let hint = if fault.is_quota() {
            Some(
                "ask for a larger quota, or plan fewer or smaller nodes; what was made is kept, and \
                  the same command goes on from there",
            )
        } else {
            match fault.status {
                Some(401) => Some("the credentials are refused, or were revoked: log in again"),
                Some(403) => Some(
                    "the cloud's policy forbids this to your roles: ask its operators, or make the \
                     resource in another way and name it in the inventory",
                ),
                Some(429 | 503) => Some("the service is busy: the same command later goes on"),
                Some(500 | 502 | 504) => {
                    Some("the service failed, and its operators can look the request up by its id")
                }
                None if fault.absent => {
                    Some("check `region_name` and `interface` in clouds.yaml, and the catalog")
                }
                None if fault.unsure => Some(
                    "it may have been done: the same command again looks for what is there first",
                ),
                None => Some(
                    "check the network, the URL in the catalog, and `interface` and `cacert` in \
                     clouds.yaml",
                ),
                _ => None,
            }
        };
        let error = Self::new(fault.to_string());
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The APIs of one cloud, as one user in one project.
#[derive(Clone)]
pub(super) struct Api {
    http: Client,
    auth: Auth,
    project: String,
    cloud: openstack::Cloud,
    source: String,
    rehearsal: Arc<OnceLock<Rehearsal>>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Api({:?})", self.auth)
    }
}

impl Api {
    /// Logs in to the cloud of an inventory.
    pub(super) async fn connect(settings: &Openstack) -> Result<Self> {
        Self::open(clouds::load(settings.cloud.as_deref())?).await
    }

    async fn open(cloud: CloudConfig) -> Result<Self> {
        let source = cloud.source.clone();
        let http = client(&cloud)?;
        let auth = Auth::new(cloud);
        let refused = |error: osauth::Error| {
            let text = error.to_string();
            let hint = login_hint(&text);
            Error::new(format!("cannot log in to {source}")).because(text).hint(hint)
        };
        let token = auth.token(&http).await.map_err(refused)?;
        let session = osauth::Session::new_with_client(http.clone(), auth.clone());
        let session = session.await.map_err(refused)?;
        let cloud = openstack::Cloud::from(session);
        let (project, rehearsal) = (token.project.clone(), Arc::default());
        Ok(Self { http, auth, project, cloud, source, rehearsal })
    }

    /// From now on changes nothing any more: see [`Rehearsal`].
    pub(super) fn rehearse(&self) {
        self.rehearsal.get_or_init(Rehearsal::default);
    }

    /// What was rehearsed; none if calls are real.
    pub(super) fn rehearsal(&self) -> Option<&Rehearsal> {
        self.rehearsal.get()
    }

    /// Where it was read which cloud this is, and who we are there.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The id of our project.
    pub(super) fn project(&self) -> &str {
        &self.project
    }

    /// Typed calls over the same session.
    pub(super) const fn cloud(&self) -> &openstack::Cloud {
        &self.cloud
    }

    /// Whether the cloud has a service.
    pub(super) async fn has(&self, service: Service) -> bool {
        self.auth.endpoint(&self.http, service.kind()).await.is_ok()
    }

    /// What is at `path`, which may have a query.
    pub(super) async fn get(&self, service: Service, path: &str) -> Result<Value, Fault> {
        self.call(service, Method::GET, path, None).await
    }

    /// Makes or does something. An unclear outcome is not tried again: see [`Fault::unsure`].
    pub(super) async fn post(
        &self,
        service: Service,
        path: &str,
        body: Value,
    ) -> Result<Value, Fault> {
        self.call(service, Method::POST, path, Some(body)).await
    }

    /// Changes something.
    pub(super) async fn put(
        &self,
        service: Service,
        path: &str,
        body: Value,
    ) -> Result<Value, Fault> {
        self.call(service, Method::PUT, path, Some(body)).await
    }

    /// Removes something; what is not there is removed.
    pub(super) async fn delete(&self, service: Service, path: &str) -> Result<(), Fault> {
        match self.call(service, Method::DELETE, path, None).await {
            Err(fault) if !fault.is(404) => Err(fault),
            _ => Ok(()),
        }
    }

    /// All pages of a list: the array at `key` of the answers.
    pub(super) async fn list(
        &self,
        service: Service,
        path: &str,
        key: &str,
    ) -> Result<Vec<Value>, Fault> {
        let mut items = Vec::new();
        let mut path = path.to_owned();
        for _ in 0..PAGES {
            let mut page = self.get(service, &path).await?;
            let next = next_page(&page, key);
            match page.get_mut(key).map(Value::take) {
                Some(Value::Array(some)) if !some.is_empty() => items.extend(some),
                _ => break,
            }
            // Only the query is taken over: the host in a link may be the service's inner one.
            match next.as_deref().and_then(|next| next.split_once('?')) {
                Some((_, query)) => {
                    let bare = path.split_once('?').map_or(path.as_str(), |(bare, _)| bare);
                    path = format!("{bare}?{query}");
                }
                None => break,
            }
        }
        Ok(items)
    }

    async fn call(
        &self,
        service: Service,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Fault> {
        let rehearsal = self.rehearsal();
        if let Some(answer) =
            rehearsal.and_then(|all| all.answer(service, &method, path, body.as_ref()))
        {
            return Ok(answer);
        }
        let bare = path.split_once('?').map_or(path, |(bare, _)| bare);
        let call = format!("{method} /{bare} of {}", service.kind());
        let silence = |message: String| Fault {
            status: None,
            kind: String::new(),
            message,
            request_id: None,
            call: call.clone(),
            unsure: false,
            absent: false,
        };
        let url = self.url(service, path).await.map_err(|error| {
            let absent = error.kind() == osauth::ErrorKind::EndpointNotFound;
            // Our own words, without those the library puts before them.
            let text = error.to_string();
            let text = text.split_once("was not found: ").map_or(text.as_str(), |(_, own)| own);
            Fault { absent, ..silence(text.to_owned()) }
        })?;
        // Asking again for the same is harmless, but a second POST makes a second thing.
        let repeatable = method != Method::POST;
        let (mut tries, mut waited, mut renewed) = (0, Duration::ZERO, false);
        loop {
            let token = self.auth.token(&self.http).await;
            let token = token.map_err(|error| silence(error.to_string()))?;
            let request = Auth::sign(self.http.request(method.clone(), url.clone()), &token);
            let request = request.header("Accept", "application/json");
            let request = if service == Service::Compute {
                request
                    .header("OpenStack-API-Version", format!("compute {COMPUTE_VERSION}"))
                    .header("X-OpenStack-Nova-API-Version", COMPUTE_VERSION)
            } else {
                request
            };
            let request = match &body {
                Some(body) => request.json(body),
                None => request,
            };
            tries += 1;
            let fault = match request.send().await {
                Ok(response) if response.status().is_success() => {
                    return read(response)
                        .await
                        .map_err(|message| Fault { unsure: !repeatable, ..silence(message) });
                }
                Ok(response) => {
                    let later = retry_after(&response);
                    let fault = refusal(response, call.clone()).await;
                    if fault.is(401) && !renewed {
                        renewed = true;
                        let renewal = self.auth.renew(&self.http, &token).await;
                        renewal.map_err(|error| silence(error.to_string()))?;
                        continue;
                    }
                    // "Later" means that nothing was done.
                    let is_later = fault.is(429) || (fault.is(503) && later.is_some());
                    let pause = later.unwrap_or_default().max(backoff(tries));
                    if is_later && waited + pause <= PATIENCE {
                        waited += pause;
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    fault
                }
                Err(error) => {
                    let text = Error::caused("", &error).problems.remove(0).causes.join(": ");
                    let interface = self.auth.interface();
                    let message = format!("its {interface} endpoint: {}", without_secrets(&text));
                    Fault { unsure: !repeatable && !error.is_connect(), ..silence(message) }
                }
            };
            let again = match fault.status {
                None => repeatable || !fault.unsure,
                Some(500 | 502 | 503 | 504) => repeatable,
                Some(_) => false,
            };
            if !again || tries >= TRIES {
                return Err(fault);
            }
            tracing::debug!(%fault, "asked again");
            tokio::time::sleep(backoff(tries)).await;
        }
    }

    /// The URL of a path of a service. Version documents are not asked: they often name hosts that
    /// only the cloud itself reaches.
    async fn url(&self, service: Service, path: &str) -> Result<Url, osauth::Error> {
        let base = self.auth.endpoint(&self.http, service.kind()).await?;
        let text = base.as_str().trim_end_matches('/');
        let version = service.version();
        let text = if version.is_empty() || text.ends_with(version) {
            format!("{text}/{path}")
        } else {
            format!("{text}/{version}/{path}")
        };
        text.parse().map_err(|error| {
            let what = format!("{text} is not a URL: {error}");
            osauth::Error::new(osauth::ErrorKind::InvalidInput, what)
        })
    }
}

/// The HTTP client for a cloud.
fn client(cloud: &CloudConfig) -> Result<Client> {
    let mut builder = Client::builder()
        .user_agent(concat!("sky-deploy/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WITHIN)
        .timeout(ANSWER_WITHIN);
    let host = cloud.auth_url.parse::<Url>().ok().and_then(|url| url.host_str().map(str::to_owned));
    let host = host.unwrap_or_default();
    if host == "localhost" || host.starts_with("127.") || host == "[::1]" {
        builder = builder.no_proxy();
    }
    if let Some(path) = &cloud.cacert {
        let failed = || format!("cannot use the certificates in {}", path.display());
        let pem = std::fs::read(path).during(failed)?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).during(failed)?;
        if certificates.is_empty() {
            return Err(Error::new(failed()).hint("`cacert` must name a file in PEM format"));
        }
        for certificate in certificates {
            builder = builder.add_root_certificate(certificate);
        }
    }
    if !cloud.verify {
        tracing::warn!(
            "certificates are not checked, because {} says so: anybody between here and \
                        the cloud can read its passwords",
            cloud.source
        );
        builder = builder.danger_accept_invalid_certs(true);
    }
    builder.build().during(|| format!("cannot make an HTTP client for {}", cloud.source))
}

/// What to do about a login that failed, by what was said.
fn login_hint(text: &str) -> &'static str {
    if text.contains("CaUsedAsEndEntity") {
        "the server's certificate is a CA certificate of its own: make one with CA:FALSE, or set \
         `verify: false` for this cloud while you try"
    } else if text.contains("certificate") || text.contains("UnknownIssuer") {
        "name the file with the cloud's CA certificates at `cacert` in clouds.yaml"
    } else if text.contains("refuses the login") {
        "check user, password, domains and project, or the application credential"
    } else if text.contains("does not answer") {
        "check auth_url and the network"
    } else {
        "check the entry of clouds.yaml"
    }
}

/// Doubles from a second on, with jitter so that callers do not come back at once together.
fn backoff(tries: u32) -> Duration {
    let base = 500 * 2_u64.saturating_pow(tries.min(5));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let jitter = now.map_or(0, |now| u64::from(now.subsec_nanos()) % (base / 2));
    Duration::from_millis(base / 2 + jitter)
}

/// How many seconds a service asks to wait (RFC 9110, section 10.2.3); a date counts as a while.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?;
    Some(Duration::from_secs(value.trim().parse().unwrap_or(5)))
}

async fn read(response: Response) -> Result<Value, String> {
    let status = response.status();
    let bytes = response.bytes().await.map_err(|error| Error::caused("", &error).to_string())?;
    if bytes.is_empty() || status == StatusCode::NO_CONTENT {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|_| "the answer is not JSON: is there a proxy in between?".to_owned())
}

/// The fault that an answer describes, in the forms the services use.
async fn refusal(response: Response, call: String) -> Fault {
    let status = response.status().as_u16();
    let id = |name: &str| {
        response.headers().get(name).and_then(|id| id.to_str().ok()).map(str::to_owned)
    };
    let request_id = id("x-openstack-request-id").or_else(|| id("x-compute-request-id"));
    let text = response.text().await.unwrap_or_default();
    let (kind, message) = describe(&text);
    // A server error says nothing of whether the work was done before.
    let unsure = status >= 500 && call.starts_with("POST");
    Fault {
        status: Some(status),
        kind,
        message: without_secrets(&message),
        request_id,
        call,
        unsure,
        absent: false,
    }
}

/// Kind and message of an error's body: `{"itemNotFound": {"message": …}}`,
/// `{"NeutronError": {"type": …, "message": …}}`, `{"error": {"message": …}}`, `{"errors": […]}`, or HTML.
fn describe(text: &str) -> (String, String) {
    let Ok(json) = serde_json::from_str::<Value>(text) else {
        return (String::new(), without_markup(text));
    };
    let first = json.as_object().and_then(|map| map.iter().next());
    let Some((name, inner)) = first else { return (String::new(), text.to_owned()) };
    let inner = if let Value::Array(list) = inner { list.first().unwrap_or(inner) } else { inner };
    let kind = inner["type"].as_str().or_else(|| inner["code"].as_str()).unwrap_or(name);
    let message = ["message", "detail", "title"].iter().find_map(|key| inner[key].as_str());
    let message = message.or_else(|| inner.as_str()).unwrap_or(text);
    (kind.to_owned(), message.to_owned())
}

/// The words of a page.
fn without_markup(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for c in html.chars() {
        match c {
            '<' => inside = true,
            '>' => {
                inside = false;
                text.push(' ');
            }
            _ if !inside => text.push(c),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A message short enough to read. Some services repeat the whole request, user-data included, so a
/// long word without blanks is left out.
fn without_secrets(message: &str) -> String {
    let words = message.split_whitespace();
    let words = words.map(|word| if word.len() > 200 { "(left out)" } else { word });
    let mut text = words.collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = text.char_indices().nth(MESSAGE_LIMIT) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// The link to the next page: Nova and Neutron `{key}_links`, Glance `next`.
fn next_page(page: &Value, key: &str) -> Option<String> {
    let links = page.get(format!("{key}_links")).and_then(Value::as_array).into_iter().flatten();
    let mut next =
        links.filter(|link| link["rel"] == "next").filter_map(|link| link["href"].as_str());
    next.next().or_else(|| page["next"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::clouds::{Login, load_with};
    use super::*;

    fn cloud(cacert: Option<&std::path::Path>) -> CloudConfig {
        let variables = |name: &str| match name {
            "OS_AUTH_URL" => Some("https://cloud.example".to_owned()),
            "OS_AUTH_TYPE" => Some("token".to_owned()),
            "OS_TOKEN" => Some("t".to_owned()),
            "OS_CACERT" => cacert.map(|path| path.display().to_string()),
            _ => None,
        };
        let cloud = load_with(None, &variables).unwrap();
        assert_eq!(cloud.login, Login::Token("t".to_owned()));
        cloud
    }

    #[test]
    fn certificates_that_cannot_be_used_are_named() {
        assert!(client(&cloud(None)).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let error = client(&cloud(Some(&path))).unwrap_err().to_string();
        assert!(error.contains("cannot use the certificates in") && error.contains("ca.pem"));
        std::fs::write(&path, "not a certificate").unwrap();
        let error = client(&cloud(Some(&path))).unwrap_err().to_string();
        assert!(error.contains("must name a file in PEM format"), "{error}");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, broken).unwrap();
        assert!(client(&cloud(Some(&path))).is_err());
    }

    #[test]
    fn errors_of_all_services_are_understood() {
        for (body, kind, message) in [
            (r#"{"itemNotFound": {"code": 404, "message": "no"}}"#, "itemNotFound", "no"),
            (r#"{"NeutronError": {"type": "OverQuota", "message": "full"}}"#, "OverQuota", "full"),
            (r#"{"NeutronError": "text"}"#, "NeutronError", "text"),
            (r#"{"errors": [{"code": "placement", "detail": "odd"}]}"#, "placement", "odd"),
            ("<html><h1>502</h1>Bad <b>Gateway</b></html>", "", "502 Bad Gateway"),
            ("", "", ""),
        ] {
            assert_eq!(describe(body), (kind.to_owned(), message.to_owned()), "{body}");
        }
    }
}
