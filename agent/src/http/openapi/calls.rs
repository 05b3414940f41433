//! The table of calls: what each takes, and how it may be answered.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use sky_api::batch::{BatchReport, BatchRequest};
use sky_api::{
    Code, ForceRequest, InitRequest, KeyList, LocalKeys, LookupReport, OwnReport, Readiness,
    RingReport,
};
use sky_chord::Config;

use super::parts::{Header, Parameter};
use crate::http::route::Route;

/// The schema of a type.
pub(super) type Type = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

fn view_or_report(schemas: &mut SchemaGenerator) -> Schema {
    let (view, report) = (of::<OwnReport>(schemas), of::<RingReport>(schemas));
    schemars::json_schema!({ "anyOf": [view, report] })
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object" })
}

/// One method of one route.
pub(super) struct Call {
    pub(super) route: Route,
    /// In lower case. `HEAD` goes with `GET`.
    pub(super) method: &'static str,
    /// The `operationId`.
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) body: Body,
    pub(super) answers: &'static [Answer],
    pub(super) asks: Asks,
    /// Besides those that every call may be answered with, and those that come with what it takes and asks.
    pub(super) problems: &'static [Code],
}

/// Whom a call needs for its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Nobody,
    /// The node of this agent.
    Node,
    /// Other members of the ring, by way of it.
    Ring,
}

impl Call {
    /// Its own problems, and those that come with what it takes and asks.
    pub(super) fn problems(&self) -> Vec<Code> {
        let takes = |parameter| self.parameters.contains(&parameter);
        let has_body = !matches!(self.body, Body::None);
        let common: [(bool, &[Code]); 5] = [
            (takes(Parameter::Key), &[Code::InvalidKey]),
            (has_body, &[Code::TooLarge, Code::UnsupportedMediaType]),
            (self.asks != Asks::Nobody, &[Code::Overloaded]),
            (self.asks == Asks::Ring, &[Code::Unavailable]),
            (takes(Parameter::IdempotencyKey), &[Code::MaybeApplied, Code::DiskFull]),
        ];
        let common = common.into_iter().filter(|(holds, _)| *holds).flat_map(|(_, codes)| codes);
        common.chain(self.problems).copied().collect()
    }
}

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Body {
    None,
    Value,
    Json(Type),
}

/// An answer that is no problem.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) means: &'static str,
    pub(super) headers: &'static [Header],
    pub(super) content: Content,
}

/// What is answered.
#[derive(Clone, Copy)]
pub(super) enum Content {
    None,
    Json(Type),
    Text(&'static str),
    Any,
    Events,
    Watch,
}

const fn answer(status: u16, means: &'static str, content: Content) -> Answer {
    Answer { status, means, headers: &[], content }
}

const fn tagged(status: u16, means: &'static str) -> Answer {
    Answer { status, means, headers: &[Header::ETag], content: Content::None }
}

const fn read(route: Route, id: &'static str, summary: &'static str) -> Call {
    Call {
        route,
        method: "get",
        id,
        summary,
        description: "",
        parameters: &[],
        body: Body::None,
        answers: &[],
        asks: Asks::Nobody,
        problems: &[],
    }
}

const fn change(
    route: Route,
    method: &'static str,
    id: &'static str,
    summary: &'static str,
) -> Call {
    Call { method, ..read(route, id, summary) }
}

/// All calls.
pub(super) const CALLS: &[Call] = &[
    Call {
        description: "In the order of the hashes of keys. A key that is there all the time is listed once; \
            a page may have fewer keys than asked for, also none, and still not be the last one.",
        parameters: &[Parameter::Prefix, Parameter::Limit, Parameter::Cursor],
        answers: &[answer(200, "A page of keys.", Content::Json(of::<KeyList>))],
        asks: Asks::Ring,
        ..read(Route::Keys, "listKeys", "List keys across the ring")
    },
    Call {
        parameters: &[
            Parameter::Key,
            Parameter::Consistency,
            Parameter::IfMatch,
            Parameter::IfNoneMatch,
        ],
        answers: &[
            Answer {
                status: 200,
                means: "The value, with the media type that was stored with it.",
                headers: &[Header::ETag, Header::Ttl, Header::Consistency],
                content: Content::Any,
            },
            Answer {
                status: 304,
                means: "The version is one that `If-None-Match` names.",
                headers: &[Header::ETag, Header::Consistency],
                content: Content::None,
            },
        ],
        asks: Asks::Ring,
        problems: &[Code::NotFound, Code::PreconditionFailed],
        ..read(Route::Key, "readKey", "Read a key")
    },
    Call {
        parameters: &[
            Parameter::Key,
            Parameter::IfMatch,
            Parameter::IfNoneMatchAny,
            Parameter::IdempotencyKey,
            Parameter::Ttl,
        ],
        body: Body::Value,
        answers: &[tagged(200, "The value was replaced."), tagged(201, "The key was created.")],
        asks: Asks::Ring,
        problems: &[Code::PreconditionFailed],
        ..change(Route::Key, "put", "setKey", "Set the value of a key")
    },
    Call {
        parameters: &[Parameter::Key, Parameter::IdempotencyKey, Parameter::Ttl],
        body: Body::Value,
        answers: &[tagged(201, "The key was created.")],
        asks: Asks::Ring,
        problems: &[Code::AlreadyExists],
        ..change(Route::Key, "post", "createKey", "Create a key that does not exist")
    },
    Call {
        parameters: &[Parameter::Key, Parameter::IfMatch, Parameter::IdempotencyKey],
        answers: &[answer(204, "The key was deleted.", Content::None)],
        asks: Asks::Ring,
        problems: &[Code::NotFound, Code::PreconditionFailed],
        ..change(Route::Key, "delete", "deleteKey", "Delete a key")
    },
    Call {
        description: "No transaction: every operation succeeds or fails by itself, as the single call would. \
            Those on one key are carried out in their order, those on different keys side by side.",
        body: Body::Json(of::<BatchRequest>),
        answers: &[answer(
            200,
            "The result of each operation, also of those that were refused.",
            Content::Json(of::<BatchReport>),
        )],
        ..change(Route::Batch, "post", "batch", "Carry out several operations")
    },
    Call {
        parameters: &[Parameter::Key],
        answers: &[answer(200, "The way to the key's owner.", Content::Json(of::<LookupReport>))],
        asks: Asks::Ring,
        ..read(Route::Lookup, "lookupKey", "Look up who keeps a key")
    },
    Call {
        parameters: &[Parameter::Scope],
        answers: &[answer(
            200,
            "What this agent sees, or with `scope=all` what everyone does.",
            Content::Json(view_or_report),
        )],
        asks: Asks::Node,
        ..read(Route::Ring, "viewRing", "View the ring")
    },
    Call {
        answers: &[answer(
            200,
            "A digraph of the nodes, for Graphviz.",
            Content::Text("text/vnd.graphviz"),
        )],
        asks: Asks::Node,
        ..read(Route::RingDot, "drawRing", "Draw the ring")
    },
    Call {
        parameters: &[Parameter::Limit, Parameter::Cursor],
        answers: &[answer(200, "A page of keys.", Content::Json(of::<LocalKeys>))],
        asks: Asks::Node,
        ..read(Route::Local, "listLocalKeys", "List the keys that this agent holds itself")
    },
    Call {
        description: "The data of each event is a WatchReport, and its id the place to go on from. First every \
            key that is there is told, then `synced`, then what changes. For each key versions are told in \
            their order; some may be left out, never the last one. A watch is kept for a minute after its client \
            went: with the id of the last event and the same parameters nothing is missed. At another agent, or \
            later, `missed` is told and everything anew.",
        parameters: &[
            Parameter::Prefix,
            Parameter::Values,
            Parameter::WatchAfter,
            Parameter::WatchFollow,
            Parameter::LastEventId,
        ],
        answers: &[answer(200, "Events, until the client or the agent ends it.", Content::Watch)],
        asks: Asks::Ring,
        problems: &[Code::TooManyKeys],
        ..read(Route::Watch, "watchKeys", "Watch the keys of a prefix")
    },
    Call {
        description: "As `/watch`, of one key.",
        parameters: &[
            Parameter::Key,
            Parameter::Values,
            Parameter::WatchAfter,
            Parameter::WatchFollow,
            Parameter::LastEventId,
        ],
        answers: &[answer(200, "Events, until the client or the agent ends it.", Content::Watch)],
        asks: Asks::Ring,
        ..read(Route::WatchKey, "watchKey", "Watch a key")
    },
    Call {
        description: "The data of each event is an EventReport or a MissedReport, and its id the place to go on \
            from. Without a place the stream begins now, with an id and no data.",
        parameters: &[Parameter::After, Parameter::Follow, Parameter::LastEventId],
        answers: &[answer(200, "Events, until the client or the agent ends it.", Content::Events)],
        ..read(Route::Events, "followEvents", "Follow the changes of the ring")
    },
    Call {
        answers: &[answer(200, "The process works.", Content::Text("text/plain"))],
        ..read(Route::Healthz, "isAlive", "Ask whether the agent is alive")
    },
    Call {
        answers: &[
            answer(200, "It is.", Content::Json(of::<Readiness>)),
            answer(503, "It is not yet, or not any more.", Content::Json(of::<Readiness>)),
        ],
        asks: Asks::Node,
        ..read(Route::Readyz, "isReady", "Ask whether the agent is ready for clients")
    },
    Call {
        answers: &[answer(200, "Prometheus text.", Content::Text("text/plain"))],
        asks: Asks::Node,
        ..read(Route::Metrics, "readMetrics", "Read what the agent counts")
    },
    Call {
        answers: &[answer(200, "This document.", Content::Json(any_object))],
        ..read(Route::OpenApi, "describe", "Describe this interface")
    },
    Call {
        answers: &[answer(200, "HTML.", Content::Text("text/html"))],
        ..read(Route::Page, "showPage", "Show the page of the agent")
    },
    Call {
        parameters: &[Parameter::PageVersion, Parameter::PageFile],
        answers: &[answer(200, "The file.", Content::Any)],
        problems: &[Code::NoSuchPath],
        ..read(Route::PageFile, "readPageFile", "Read a part of that page, as the page names it")
    },
    Call {
        body: Body::Json(of::<InitRequest>),
        answers: &[answer(204, "The agent is in this ring.", Content::None)],
        asks: Asks::Node,
        problems: &[Code::OtherRing, Code::LengthRequired],
        ..change(Route::Init, "post", "foundRing", "Found a ring")
    },
    Call {
        description: "The phase in `/ring` is `drained` when everything is handed over.",
        answers: &[answer(202, "The agent begins to hand over its data.", Content::None)],
        asks: Asks::Node,
        ..change(Route::Leave, "post", "leaveRing", "Leave the ring")
    },
    Call {
        description: "May lose what was acknowledged: only for a range whose majority is gone for good.",
        body: Body::Json(of::<ForceRequest>),
        answers: &[answer(
            200,
            "The configuration that the survivors go on with.",
            Content::Json(of::<Config>),
        )],
        asks: Asks::Node,
        problems: &[Code::PreconditionFailed, Code::LengthRequired],
        ..change(Route::Force, "post", "forceRange", "Let the survivors of a range go on")
    },
];
