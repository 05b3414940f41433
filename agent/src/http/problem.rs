//! Errors as clients see them: `application/problem+json` (RFC 9457) with a stable code.

use std::convert::Infallible;
use std::error::Error;

use sky_api::{Code, Problem};
use sky_chord::Failure;
use warp::Rejection;
use warp::filters::body::BodyDeserializeError;
use warp::http::{HeaderValue, header};
use warp::reject::{
    InvalidHeader, InvalidQuery, LengthRequired, MethodNotAllowed, MissingHeader, PayloadTooLarge,
    UnsupportedMediaType,
};
use warp::reply::Response;

use super::request_id;
use super::route::Route;

/// Why a request is not carried out, on its way to the client.
#[derive(Debug)]
pub(super) struct Refused {
    code: Code,
    detail: String,
    hint: Option<&'static str>,
    allow: Option<&'static str>,
}

impl warp::reject::Reject for Refused {}

impl Refused {
    /// `detail` is a sentence: what happened, to what, and why.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), hint: None, allow: None }
    }

    /// What to do next.
    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// 405, with the methods that exist as the `Allow` header must name them (RFC 9110, 15.5.6).
    pub(super) fn method(route: Route) -> Self {
        let allow = route.allow();
        let detail = format!("This path understands {allow} only.");
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, detail) }
    }

    /// Whether this is why.
    pub(super) fn is(&self, code: Code) -> bool {
        self.code == code
    }

    /// The code, for tests.
    #[cfg(test)]
    pub(super) const fn code(&self) -> Code {
        self.code
    }

    /// What the client reads.
    pub(super) fn problem(&self) -> Problem {
        Problem {
            code: self.code,
            status: self.code.status(),
            title: self.code.title().to_owned(),
            detail: self.detail.clone(),
            hint: self.hint.map(str::to_owned),
            request_id: None,
        }
    }

    /// The answer to the client; [`request_id::finish`] writes its body.
    pub(super) fn into_response(self) -> Response {
        let mut response = request_id::unfinished(self.problem());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.code {
            Code::Unavailable | Code::Overloaded => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Code::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable(reason) => Self::new(
                Code::Unavailable,
                format!("Nothing was changed: {}.", reason.trim_end_matches('.')),
            )
            .hint("Try again in a second; any agent of the ring will do."),
            Failure::MaybeApplied => Self::new(
                Code::MaybeApplied,
                "The time ran out after the change was proposed: it may be applied, now or later.",
            )
            .hint(
                "Read the key to see, or send the same request with the same Idempotency-Key again.",
            ),
            Failure::TooOld => Self::new(
                Code::Unavailable,
                "Nothing was changed: the key has forgotten requests as old as this one.",
            )
            .hint("Send it again."),
            Failure::DiskFull => Self::new(
                Code::DiskFull,
                "Nothing was changed: a majority of the key's members have no disk space left.",
            )
            .hint("Make room on the disks of the agents; reading goes on meanwhile."),
            Failure::NotMember(_) => Self::new(
                Code::Unavailable,
                "Nothing was changed: the members of the key's range are changing.",
            )
            .hint("Try again in a second."),
        }
    }
}

/// The last filter: whatever no route took becomes a problem.
pub(super) async fn recover(rejection: Rejection) -> Result<Response, Infallible> {
    Ok(from_rejection(&rejection).into_response())
}

fn from_rejection(rejection: &Rejection) -> Refused {
    if rejection.is_not_found() {
        return Refused::new(Code::NoSuchPath, "This agent has nothing at that path.")
            .hint("Keys are below /kv/; /openapi.json describes everything.");
    }
    if let Some(Refused { code, detail, hint, allow }) = rejection.find() {
        return Refused { code: *code, detail: detail.clone(), hint: *hint, allow: *allow };
    }
    if let Some(error) = rejection.find::<BodyDeserializeError>() {
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        return Refused::new(
            Code::BadRequest,
            format!("The JSON body is not understood: {cause}."),
        );
    }
    if rejection.find::<InvalidQuery>().is_some() {
        return Refused::new(
            Code::BadRequest,
            "The query is not understood: a parameter is given twice, or is not UTF-8.",
        );
    }
    if rejection.find::<PayloadTooLarge>().is_some() {
        return Refused::new(Code::TooLarge, "The body is larger than this call takes.");
    }
    if rejection.find::<LengthRequired>().is_some() {
        return Refused::new(Code::LengthRequired, "The body needs a Content-Length here.")
            .hint("Send the body in one piece, not chunked.");
    }
    if rejection.find::<UnsupportedMediaType>().is_some() {
        return Refused::new(Code::UnsupportedMediaType, "The body has to be application/json.");
    }
    if rejection.find::<MethodNotAllowed>().is_some() {
        return Refused::new(Code::MethodNotAllowed, "This path does not understand that method.");
    }
    let header = rejection.find::<MissingHeader>().map(MissingHeader::name);
    let header = header.or_else(|| rejection.find::<InvalidHeader>().map(InvalidHeader::name));
    match header {
        Some(name) => {
            Refused::new(Code::BadRequest, format!("The header {name} is not understood."))
        }
        None => Refused::new(Code::BadRequest, "The request could not be read to its end."),
    }
}
