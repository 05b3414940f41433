//! Glance: images.

use serde_json::{Value, json};

use super::cloud::{State, THEIRS};
use super::http::{Answer, Call};

pub(crate) fn furnish(state: &mut State) {
    for (name, disk, ram) in
        [("debian-12", 3, 512), ("debian-12-gpu", 3, 512), ("huge", 500, 65_536)]
    {
        let created = state.time();
        state.plant("images", json!({
            "name": name, "status": "active", "min_disk": disk, "min_ram": ram, "created_at": created,
            "visibility": "public", "project_id": THEIRS, "owner": THEIRS, "size": 1000,
        }));
    }
    let created = state.time();
    let queued = json!({
        "name": "unfinished", "status": "queued", "min_disk": 0, "min_ram": 0,
        "created_at": created, "visibility": "private", "size": null,
    });
    state.plant("images", queued);
}

pub(crate) fn route(state: &State, call: &Call, path: &str) -> Answer {
    match (call.method.as_str(), path.split('/').collect::<Vec<_>>().as_slice()) {
        ("GET", ["images"]) => {
            let mut answer = state.pages(call, "images", state.all("images").to_vec(), "links");
            // Glance gives a bare path.
            let next = answer.body["links"][0]["href"].as_str();
            let next =
                next.map(|next| next.trim_start_matches("http://inner.invalid/image").to_owned());
            if let (Some(body), Some(next)) = (answer.body.as_object_mut(), next) {
                body.remove("links");
                body.insert("next".to_owned(), Value::String(next));
            }
            answer
        }
        ("GET", ["images", id]) => match state.find("images", id) {
            Some(image) => Answer::new(200, image.clone()),
            None => Answer::new(404, Value::String("404 Not Found: no such image".to_owned())),
        },
        _ => Answer::new(404, Value::Null),
    }
}
