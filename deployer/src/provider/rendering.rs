//! What would be put onto machines, for people and programs to read. Made by the code that makes the
//! machines; what is secret or not known yet has a word in angle brackets in its place.

use serde::Serialize;
use serde_json::Value;

use crate::state::Secrets;

/// One thing that would be made, told or started.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rendered {
    /// The node it is for; none if it is for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it is: the call, or the name of a file.
    pub what: String,
    /// It.
    #[serde(flatten)]
    pub body: Body,
}

/// The body of something that is rendered.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// The parameters of a call.
    Parameters(Value),
    /// A text.
    Text(String),
}

impl Rendered {
    /// Parameters of a call for a node.
    pub fn call(node: &str, what: impl Into<String>, parameters: Value) -> Self {
        let body = Body::Parameters(parameters);
        Self { node: Some(node.to_owned()), what: what.into(), body }
    }
}

/// Stand for secrets where they are not to be shown.
pub fn redacted() -> Secrets {
    Secrets { secret: "<secret>".to_owned(), token: "<token>".to_owned() }
}
