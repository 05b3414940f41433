//! Keystone: tokens and the catalog.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::cloud::{OURS, State};
use super::http::{Answer, Call};

/// What a user must know.
pub(crate) const PASSWORD: &str = "correct horse battery staple";
/// What an application credential is.
pub(crate) const CREDENTIAL: (&str, &str) =
    ("c0ffee00c0ffee00c0ffee00c0ffee00", "s3cr3t-of-the-credential");

pub(crate) fn route(state: &mut State, call: &Call, path: &str) -> Answer {
    match (call.method.as_str(), path) {
        ("POST", "/auth/tokens") => login(state, &call.body["auth"]),
        ("GET", "" | "/") => {
            let url = format!("http://{}/identity/v3/", state.address);
            let links = json!([{"rel": "self", "href": url}]);
            Answer::new(
                200,
                json!({"version": {"id": "v3.14", "status": "stable", "links": links}}),
            )
        }
        _ => Answer::new(404, json!({"error": {"code": 404, "message": "not here"}})),
    }
}

fn refused(status: u16, message: &str) -> Answer {
    Answer::new(status, json!({"error": {"code": status, "title": "no", "message": message}}))
}

fn login(state: &mut State, auth: &Value) -> Answer {
    let identity = &auth["identity"];
    let unauthorized = "The request you have made requires authentication.";
    match identity["methods"][0].as_str() {
        Some("password") => {
            let user = &identity["password"]["user"];
            let domain = &user["domain"];
            if user["id"].is_null() && domain["id"].is_null() && domain["name"].is_null() {
                return refused(400, "Expecting to find domain in user.");
            }
            let known =
                user["name"] == "me" && (domain["id"] == "default" || domain["name"] == "Default");
            if !known || user["password"] != PASSWORD {
                return refused(401, unauthorized);
            }
            let project = &auth["scope"]["project"];
            if project["id"] != OURS && project["name"] != "mine" {
                return refused(401, unauthorized);
            }
        }
        Some("application_credential") => {
            let credential = &identity["application_credential"];
            let by_id = credential["id"] == CREDENTIAL.0;
            let by_name = credential["name"] == "robot" && credential["user"]["name"] == "me";
            if credential["secret"] != CREDENTIAL.1 || !(by_id || by_name) {
                return refused(401, unauthorized);
            }
            if !auth["scope"].is_null() {
                return refused(401, "Application credentials cannot request a scope.");
            }
        }
        Some("token") => {
            let token = identity["token"]["id"].as_str().unwrap_or_default();
            if !state.tokens.contains(token) {
                return refused(401, unauthorized);
            }
        }
        _ => return refused(400, "unknown method"),
    }
    let id = format!("gAAAAAB-token-{}", state.id());
    state.tokens.insert(id.clone());
    let expires = SystemTime::now() + state.token_life;
    let body = json!({"token": {
        "methods": identity["methods"],
        "expires_at": iso(expires),
        "project": {"id": OURS, "name": "mine", "domain": {"id": "default", "name": "Default"}},
        "user": {"id": "u1", "name": "me"},
        "roles": [{"id": "r1", "name": "member"}],
        "catalog": catalog(state),
    }});
    Answer::new(201, body).header("X-Subject-Token", &id)
}

fn catalog(state: &State) -> Vec<Value> {
    let base = format!("http://{}", state.address);
    let service = |kind: &str, path: &str| {
        json!({"type": kind, "name": kind, "id": kind, "endpoints": [
            {"id": "e1", "interface": "admin", "region": "RegionOne", "region_id": "RegionOne",
             "url": "http://admin.invalid:1/"},
            {"id": "e2", "interface": "public", "region": "RegionOne", "region_id": "RegionOne",
             "url": format!("{base}{path}")},
        ]})
    };
    let mut services = vec![
        service("identity", "/identity/v3"),
        service("compute", "/compute/v2.1"),
        service("network", "/network"),
        service("image", "/image"),
        service("block-storage", &format!("/volume/v3/{OURS}")),
    ];
    (state.catalog)(&mut services);
    services
}

/// A time as services write it.
pub(crate) fn iso(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // The date of a day (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000000Z")
}
