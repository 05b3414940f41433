//! `/openapi.json`: the interface as an OpenAPI 3.1 document, made of the table of routes, the table of
//! calls, and the types that are sent.

mod calls;
mod parts;

use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use sky_api::watch::WatchReport;
use sky_api::{Code, EventReport, MissedReport, Problem};
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use super::guard::Access;
use super::route::Route;
use crate::config::{Settings, VERSION};
use calls::{Answer, Body, CALLS, Call, Content};

/// The document of one agent, whose settings it tells.
#[derive(Debug)]
pub(super) struct Document(Bytes);

impl Document {
    /// The document of an agent with these settings.
    pub(super) fn new(settings: &Settings) -> Self {
        let facts = Facts {
            max_value_bytes: settings.max_value_bytes,
            has_token: settings.token.is_some(),
            clients_need_it: settings.token.is_some() && settings.require_token,
        };
        Self(document(&facts).to_string().into())
    }

    /// The document as an answer.
    pub(super) fn response(&self) -> Response {
        let mut response = Response::new(self.0.clone().into());
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

/// What of the settings clients need to know.
struct Facts {
    max_value_bytes: usize,
    has_token: bool,
    clients_need_it: bool,
}

impl Facts {
    fn needs_token(&self, route: Route) -> bool {
        match route.access() {
            Access::Open => false,
            Access::Clients => self.clients_need_it,
            Access::Administrators => self.has_token,
        }
    }
}

fn document(facts: &Facts) -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with_transform(Bounds).with_transform(PlainText);
    let settings = settings.with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in Route::ALL {
        let mut methods = Map::new();
        for call in CALLS.iter().filter(|call| call.route == route) {
            methods.insert(call.method.to_owned(), operation(call, facts, &mut schemas));
            if call.method == "get" {
                methods.insert("head".to_owned(), head(methods.get("get")));
            }
        }
        paths.insert(route.template().to_owned(), methods.into());
    }
    let schemas = schemas.take_definitions(true);
    let size = facts.max_value_bytes;
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sky agent",
            "version": VERSION,
            "description": format!("{ABOUT} Values may have up to {size} bytes here."),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of the deployment.",
                },
            },
        },
    })
}

const ABOUT: &str = "A node of a Chord ring that is a replicated key-value store. Any agent answers for \
    any key. Every error is an `application/problem+json` with a stable `code`; another method than those of a \
    path is answered 405 with the code `method_not_allowed`. The header `Host` has to be an address of the agent, \
    `localhost`, or its name.";

fn operation(call: &Call, facts: &Facts, schemas: &mut SchemaGenerator) -> Value {
    let parameters = call.parameters.iter().map(|parameter| parameter.json());
    let parameters: Vec<_> = parameters.chain([parts::request_id()]).collect();
    let mut operation = json!({
        "operationId": call.id,
        "summary": call.summary,
        "parameters": parameters,
        "responses": responses(call, facts, schemas),
        "security": if facts.needs_token(call.route) { json!([{ "token": [] }]) } else { json!([]) },
    });
    if !call.description.is_empty() {
        operation["description"] = call.description.into();
    }
    match call.body {
        Body::None => {}
        Body::Value => {
            operation["requestBody"] = json!({
                "description": "The value, as it is to be stored. Its media type is stored with it.",
                "content": { "application/octet-stream": {}, "*/*": {} },
            });
        }
        Body::Json(schema) => {
            let schema = schema(schemas);
            operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
    }
    operation
}

/// The codes of problems that a call may be answered with.
fn codes(call: &Call, facts: &Facts) -> Vec<Code> {
    let mut codes = vec![Code::BadRequest, Code::ForbiddenOrigin, Code::Internal];
    if facts.needs_token(call.route) || call.route.access() == Access::Administrators {
        codes.push(Code::Unauthorized);
    }
    codes.extend(call.problems());
    codes
}

fn responses(call: &Call, facts: &Facts, schemas: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for answer in call.answers {
        responses.insert(answer.status.to_string(), response(answer, schemas));
    }
    let codes = codes(call, facts);
    let problem = schemas.subschema_for::<Problem>();
    let mut statuses: Vec<_> = codes.iter().map(|code| code.status()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    for status in statuses {
        let codes: Vec<_> = codes.iter().filter(|code| code.status() == status).collect();
        let titles: Vec<_> = codes.iter().map(|code| code.title()).collect();
        let schema = json!({
            "allOf": [problem],
            "properties": { "code": { "enum": codes }, "status": { "const": status } },
        });
        let content = json!({ "application/problem+json": { "schema": schema } });
        let entry = responses.entry(status.to_string());
        // `/readyz` gives its own answer with the same status.
        let response = entry.or_insert_with(|| json!({ "headers": parts::headers(&[]) }));
        if response["content"].is_object() {
            response["content"]["application/problem+json"] =
                content["application/problem+json"].clone();
        } else {
            response["description"] = format!("{}.", titles.join(", or: ")).into();
            response["content"] = content;
        }
        match status {
            401 => response["headers"]["WWW-Authenticate"] = parts::required("`Bearer`."),
            503 => response["headers"]["Retry-After"] = parts::optional("Seconds."),
            _ => {}
        }
    }
    responses.into()
}

fn response(answer: &Answer, schemas: &mut SchemaGenerator) -> Value {
    let mut response =
        json!({ "description": answer.means, "headers": parts::headers(answer.headers) });
    let content = match answer.content {
        Content::None => return response,
        Content::Json(schema) => json!({ "application/json": { "schema": schema(schemas) } }),
        Content::Text(media_type) => json!({ media_type: { "schema": { "type": "string" } } }),
        Content::Any => json!({ "*/*": {} }),
        Content::Events => {
            let report = json!({ "anyOf": [
                schemas.subschema_for::<EventReport>(), schemas.subschema_for::<MissedReport>(),
            ]});
            json!({ "text/event-stream": { "schema": parts::event(parts::PLACE, &report) } })
        }
        Content::Watch => {
            let report = schemas.subschema_for::<WatchReport>().to_value();
            let schema = parts::event(parts::WATCH_PLACE, &report);
            json!({ "text/event-stream": { "schema": schema } })
        }
    };
    response["content"] = content;
    response
}

/// `HEAD` for each `GET`: the same without the body.
fn head(get: Option<&Value>) -> Value {
    let mut head = get.cloned().unwrap_or_default();
    let id = head["operationId"].as_str().unwrap_or_default();
    head["operationId"] = format!("{id}Head").into();
    let summary = head["summary"].as_str().unwrap_or_default();
    head["summary"] = format!("{summary}: only the head").into();
    for response in head["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        response.as_object_mut().and_then(|response| response.remove("content"));
    }
    head
}

/// Bounds of integers, which schemars only names.
#[derive(Debug, Clone)]
struct Bounds;

impl Transform for Bounds {
    fn transform(&mut self, schema: &mut Schema) {
        let most = match schema.get("format").and_then(Value::as_str) {
            Some("uint64") => Some(u64::MAX),
            Some("uint32") => Some(u32::MAX.into()),
            Some("uint16") => Some(u16::MAX.into()),
            Some("uint8") => Some(u8::MAX.into()),
            _ => None,
        };
        if let Some(most) = most {
            schema.insert("maximum".to_owned(), most.into());
        }
        transform_subschemas(self, schema);
    }
}

/// Descriptions without the links of rustdoc, which lead nowhere here.
#[derive(Debug, Clone)]
struct PlainText;

impl Transform for PlainText {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = without_links(text);
        }
        transform_subschemas(self, schema);
    }
}

/// Names in place of links: ``[`module::Type`]`` becomes `` `Type` ``.
fn without_links(text: &str) -> String {
    let mut parts = text.split("[`");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (path, rest) = part.split_once("`]").unwrap_or((part, ""));
        let name = path.find(char::is_uppercase).map_or(path, |at| &path[at..]);
        plain.push_str(&format!("`{name}`{rest}"));
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn facts(clients_need_it: bool) -> Facts {
        Facts { max_value_bytes: 1 << 20, has_token: true, clients_need_it }
    }

    #[test]
    fn every_route_has_a_call_for_each_of_its_methods() {
        for route in Route::ALL {
            let documented = CALLS.iter().filter(|call| call.route == route);
            let documented: BTreeSet<_> =
                documented.map(|call| call.method.to_uppercase()).collect();
            let answered = route.methods().iter().map(|method| method.as_str().to_owned());
            // HEAD goes with GET.
            let answered: BTreeSet<_> = answered.filter(|method| method != "HEAD").collect();
            assert_eq!(documented, answered, "{route:?}");
        }
        let ids: BTreeSet<_> = CALLS.iter().map(|call| call.id).collect();
        assert_eq!(ids.len(), CALLS.len());
    }

    #[test]
    fn every_code_is_told_of() {
        let all = schemars::schema_for!(Code).to_value().to_string();
        for code in Code::ALL {
            let name = serde_json::to_string(&code).unwrap();
            assert!(all.contains(&format!("\"const\":{name}")), "{name}");
            let told = CALLS.iter().any(|call| codes(call, &facts(true)).contains(&code));
            let everywhere = ABOUT.contains(name.trim_matches('"'));
            assert!(told || everywhere, "no call tells of {name}");
        }
        assert_eq!(all.matches("\"const\"").count(), Code::ALL.len(), "one is not in ALL");
        for call in CALLS {
            let codes = codes(call, &facts(true));
            for (index, code) in codes.iter().enumerate() {
                assert!(!codes[..index].contains(code), "{}: {code:?} twice", call.id);
            }
        }
    }

    #[test]
    fn descriptions_have_no_links() {
        let text = document(&facts(false)).to_string();
        assert!(text.contains("One operation of a `BatchRequest`."), "{text}");
        let links: Vec<_> = text.match_indices("[`").map(|(at, _)| &text[at..at + 40]).collect();
        assert!(links.is_empty() && !text.contains("`]"), "{links:?}");
        assert_eq!(without_links("[`a::b::C::d`], [`e`]: `f`"), "`C::d`, `e`: `f`");
    }

    #[test]
    fn references_lead_somewhere_and_templates_have_their_parameters() {
        let document = document(&facts(false));
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for (path, methods) in document["paths"].as_object().unwrap() {
            let wanted = path.split('{').skip(1).map(|part| part.split('}').next().unwrap());
            let wanted: BTreeSet<_> = wanted.collect();
            for (method, operation) in methods.as_object().unwrap() {
                let parameters = operation["parameters"].as_array().unwrap().iter();
                let found = parameters.filter(|parameter| parameter["in"] == "path");
                let found: BTreeSet<_> = found.map(|it| it["name"].as_str().unwrap()).collect();
                assert_eq!(found, wanted, "{method} {path}");
            }
        }
    }

    #[test]
    fn who_needs_the_token_is_told() {
        for clients_need_it in [false, true] {
            let document = document(&facts(clients_need_it));
            let needs = |path: &str, method: &str| {
                document["paths"][path][method]["security"] == json!([{ "token": [] }])
            };
            assert_eq!(needs("/kv/{key}", "put"), clients_need_it);
            assert!(needs("/admin/leave", "post") && !needs("/healthz", "head"));
        }
    }
}
