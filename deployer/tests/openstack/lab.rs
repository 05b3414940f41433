//! The lab that the tests run in: where it is, and its services as one of its users.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::need;

/// How long one call to a service may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The microversion that sky-deploy uses.
const COMPUTE_VERSION: &str = "2.67";

/// A lab that runs.
pub(crate) struct Lab {
    folder: PathBuf,
    /// Nova's metadata service.
    pub(crate) metadata: String,
    /// What Neutron's proxy signs its questions with.
    pub(crate) secret: String,
}

impl Lab {
    /// The lab that `SKY_OPENSTACK_LAB` names, or that of this project. None, and a word about it, if
    /// it does not run or this test may not make network namespaces.
    pub(crate) fn find() -> Option<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/openstack-lab");
        let folder = std::env::var_os("SKY_OPENSTACK_LAB").map_or(own, PathBuf::from);
        let read = |name: &str| -> Option<Value> {
            let text = std::fs::read_to_string(folder.join("etc").join(name)).ok()?;
            serde_yaml::from_str(&text).ok()
        };
        let found = read("clouds.yaml").zip(read("metadata.json"));
        let auth = found.as_ref().and_then(|(clouds, _)| {
            let url: reqwest::Url =
                clouds["clouds"]["lab"]["auth"]["auth_url"].as_str()?.parse().ok()?;
            Some((url.host_str()?.to_owned(), url.port()?))
        });
        let answers = auth.is_some_and(|address| std::net::TcpStream::connect(address).is_ok());
        let is_root = rustix::process::getuid().is_root();
        let need = "root and an OpenStack lab (`deployer/tests/openstack/lab/lab up`)";
        if !need::is_met(answers && is_root, need) {
            return None;
        }
        let (_, metadata) = found?;
        let text = |key: &str| metadata[key].as_str().unwrap().to_owned();
        Some(Self { metadata: text("url"), secret: text("secret"), folder })
    }

    /// Its clouds.yaml.
    pub(crate) fn clouds(&self) -> Value {
        let path = self.folder.join("etc/clouds.yaml");
        serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Logs in as the user of one of its clouds.
    pub(crate) async fn login(&self, cloud: &str) -> Cloud {
        let clouds = self.clouds();
        let auth = &clouds["clouds"][cloud]["auth"];
        let domain = |key: &str| json!({"name": auth[key]});
        let user = json!({
            "name": auth["username"],
            "password": auth["password"],
            "domain": domain("user_domain_name"),
        });
        let project =
            json!({"name": auth["project_name"], "domain": domain("project_domain_name")});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": project},
        }});
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build().unwrap();
        let url = format!("{}/auth/tokens", auth["auth_url"].as_str().unwrap());
        let answer = http.post(url).json(&body).send().await.unwrap();
        let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
        let body: Value = answer.json().await.unwrap();
        let project = body["token"]["project"]["id"].as_str().unwrap().to_owned();
        Cloud { http, token, project, catalog: body["token"]["catalog"].clone() }
    }
}

/// The services as one user in one project.
#[derive(Clone)]
pub(crate) struct Cloud {
    http: reqwest::Client,
    token: String,
    /// The id of the project.
    pub(crate) project: String,
    catalog: Value,
}

impl Cloud {
    /// The URL of a service, as the catalog has it.
    pub(crate) fn endpoint(&self, service: &str) -> String {
        let services = self.catalog.as_array().unwrap().iter();
        let mut found = services.filter(|entry| entry["type"] == service);
        let endpoints = found.next().unwrap()["endpoints"].as_array().unwrap().clone();
        let public = endpoints.iter().find(|endpoint| endpoint["interface"] == "public").unwrap();
        public["url"].as_str().unwrap().trim_end_matches('/').to_owned()
    }

    /// One call; none if the service answers that there is no such thing.
    pub(crate) async fn call(
        &self,
        method: Method,
        service: &str,
        path: &str,
        body: Option<Value>,
    ) -> Option<Value> {
        let version = match service {
            "network" => "/v2.0",
            "image" => "/v2",
            _ => "",
        };
        let url = format!("{}{version}/{path}", self.endpoint(service));
        let mut request = self.http.request(method.clone(), &url);
        request = request.header("X-Auth-Token", &self.token);
        request = request.header("OpenStack-API-Version", format!("compute {COMPUTE_VERSION}"));
        if let Some(body) = &body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        if status == reqwest::StatusCode::NOT_FOUND {
            return None;
        }
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {url}: {status} {text}");
        Some(serde_json::from_str(&text).unwrap_or_default())
    }

    /// What is at a path.
    pub(crate) async fn get(&self, service: &str, path: &str) -> Value {
        self.call(Method::GET, service, path, None).await.unwrap()
    }

    /// Makes something: `key` is what its body and its answer are wrapped in.
    pub(crate) async fn make(&self, service: &str, path: &str, key: &str, body: Value) -> Value {
        let made = self.call(Method::POST, service, path, Some(json!({key: body}))).await;
        made.unwrap()[key].take()
    }

    /// Removes something, if it is there.
    pub(crate) async fn remove(&self, service: &str, path: &str) {
        self.call(Method::DELETE, service, path, None).await;
    }

    /// The servers of the project.
    pub(crate) async fn servers(&self) -> Vec<Value> {
        self.list("compute", "servers/detail", "servers").await
    }

    /// A list that fits on one page.
    pub(crate) async fn list(&self, service: &str, path: &str, key: &str) -> Vec<Value> {
        let mut answer = self.get(service, path).await;
        assert!(answer[format!("{key}_links")].is_null(), "{path} has a second page");
        answer[key].as_array_mut().map(std::mem::take).unwrap()
    }
}
