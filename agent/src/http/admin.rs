//! `/admin`: founding a ring, leaving it, and going on without members that are gone for good.

use sky_api::{Code, ForceRequest, InitRequest};
use sky_chord::{RangeTag, Reply, Request, RingId};
use warp::http::StatusCode;
use warp::reply::Response;

use super::problem::Refused;
use super::{Api, json, kv};

/// Founds a ring. The same ring id again changes nothing.
pub(super) async fn init(api: &Api, request: InitRequest) -> Result<Response, Refused> {
    let ring = ring_id(&request.ring)?;
    match api.ask(Request::Init { ring }).await? {
        Reply::Initialized => Ok(status(StatusCode::NO_CONTENT)),
        Reply::OtherRing(other) => {
            let detail = format!("This agent belongs to the ring {other}, not to {ring}.");
            let hint = "An agent changes rings only with an empty data directory.";
            Err(Refused::new(Code::OtherRing, detail).hint(hint))
        }
        other => Err(kv::unexpected(&other)),
    }
}

/// Begins to hand over all data. `/ring` tells when it is done: the phase is `drained` then.
pub(super) async fn leave(api: &Api) -> Result<Response, Refused> {
    match api.ask(Request::Leave).await? {
        Reply::Leaving => Ok(status(StatusCode::ACCEPTED)),
        other => Err(kv::unexpected(&other)),
    }
}

/// Lets the survivors of a range go on without its majority.
pub(super) async fn force(api: &Api, request: ForceRequest) -> Result<Response, Refused> {
    let ForceRequest { hi, epoch, survivors, by } = request;
    let by: String = by.chars().take(100).flat_map(char::escape_default).collect();
    tracing::warn!(%hi, epoch, ?survivors, %by, "survivors are told to go on without a majority");
    match api.ask(Request::Force { at: RangeTag { hi, epoch }, survivors }).await? {
        Reply::Forced(Ok(config)) => {
            let (epoch, members) = (config.epoch, &config.members);
            tracing::warn!(%hi, epoch, ?members, %by, "survivors go on without a majority");
            Ok(json(&config))
        }
        Reply::Forced(Err(reason)) => {
            tracing::warn!(%hi, epoch, %by, reason, "survivors do not go on without a majority");
            Err(Refused::new(Code::PreconditionFailed, format!("Nothing was changed: {reason}.")))
        }
        other => Err(kv::unexpected(&other)),
    }
}

fn ring_id(text: &str) -> Result<RingId, Refused> {
    let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(id) if digits => Ok(RingId(id)),
        _ => {
            let detail = "The ring id is not 32 hexadecimal digits.";
            Err(Refused::new(Code::BadRequest, detail)
                .hint("Draw it at random, once for each ring."))
        }
    }
}

fn status(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_ids_are_32_digits() {
        let id = RingId(0xab << 120 | 7);
        assert_eq!(ring_id(&id.to_string()).unwrap(), id);
        for text in ["", "7", "+0000000000000000000000000000007", &"x".repeat(32)] {
            assert_eq!(ring_id(text).unwrap_err().code(), Code::BadRequest, "{text}");
        }
    }
}
