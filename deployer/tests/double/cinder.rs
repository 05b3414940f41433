//! Cinder: volumes.

use serde_json::{Value, json};

use super::cloud::{OURS, State};
use super::http::{Answer, Call};

fn fault(status: u16, kind: &str, message: &str) -> Answer {
    Answer::new(status, json!({kind: {"code": status, "message": message}}))
}

pub(crate) fn route(state: &mut State, call: &Call, path: &str) -> Answer {
    match (call.method.as_str(), path.split('/').collect::<Vec<_>>().as_slice()) {
        ("GET", ["limits"]) => {
            let gigabytes: i64 =
                state.all("volumes").iter().filter_map(|volume| volume["size"].as_i64()).sum();
            Answer::new(
                200,
                json!({"limits": {"rate": [], "absolute": {
                    "maxTotalVolumes": state.limit("volumes"),
                    "totalVolumesUsed": state.used("volumes"),
                    "maxTotalVolumeGigabytes": state.limit("gigabytes"),
                    "totalGigabytesUsed": gigabytes,
                }}}),
            )
        }
        ("GET", ["volumes", "detail"]) => {
            let ours = state.of("volumes", "project_id", OURS).cloned().collect();
            state.pages(call, "volumes", ours, "volumes_links")
        }
        ("GET", ["volumes", id]) => match state.find("volumes", id) {
            Some(volume) => Answer::new(200, json!({"volume": volume})),
            None => fault(404, "itemNotFound", &format!("Volume {id} could not be found.")),
        },
        ("POST", ["volumes"]) => create(state, &call.body["volume"]),
        ("DELETE", ["volumes", id]) => match state.find("volumes", id) {
            None => fault(404, "itemNotFound", &format!("Volume {id} could not be found.")),
            Some(volume) if volume["status"] == "in-use" => fault(
                400,
                "badRequest",
                "Invalid volume: Volume status must be available or error or error_restoring or \
                 error_extending or error_managing and must not be migrating, attached, belong to a \
                 group, have snapshots or be disassociated from snapshots after volume transfer.",
            ),
            Some(_) => {
                state.remove("volumes", id);
                Answer::new(202, Value::Null)
            }
        },
        _ => fault(404, "itemNotFound", "The resource could not be found."),
    }
}

fn create(state: &mut State, wanted: &Value) -> Answer {
    let size = wanted["size"].as_i64().unwrap_or(0);
    if size < 1 || wanted["description"].as_str().is_none_or(|text| text.len() > 255) {
        return fault(400, "badRequest", "Invalid input received");
    }
    let used = state.used("volumes");
    if !state.fits("volumes", used, 1) {
        let most = state.limit("volumes");
        let message = format!(
            "VolumeLimitExceeded: Maximum number of volumes allowed ({most}) exceeded for quota 'volumes'."
        );
        return fault(413, "overLimit", &message);
    }
    let (id, created) = (state.id(), state.time());
    let made = state.insert("volumes", json!({
        "id": id, "name": wanted["name"], "description": wanted["description"], "size": size,
        "status": "available", "metadata": wanted["metadata"], "attachments": [], "created_at": created,
        "availability_zone": wanted["availability_zone"], "volume_type": wanted["volume_type"],
        "project_id": OURS, "bootable": "false", "encrypted": false,
    }));
    let mut shown = made;
    // What was just made is not there yet.
    shown["status"] = json!("creating");
    Answer::new(202, json!({"volume": shown}))
}
