//! What goes wrong in the cloud, and when: rules that the double looks at before and after it carries
//! out a call.

use serde_json::{Value, json};

use super::cloud::State;
use super::http::{Answer, Call};

/// When a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// The call is not carried out.
    Before,
    /// It is, and the client does not learn of it.
    After,
}

/// What happens to the client.
pub(crate) enum Effect {
    /// It gets this answer.
    Answer(Answer),
    /// Its connection ends.
    HangUp,
    /// The client is killed.
    Kill,
    /// The client gets SIGINT and its answer.
    Interrupt,
    /// It gets an error that repeats its request.
    Repeat,
    /// Nothing, but something else in the cloud changes.
    Change(fn(&mut State)),
}

/// One thing that goes wrong.
pub(crate) struct Rule {
    applies: Box<dyn Fn(&Call) -> bool + Send>,
    when: When,
    /// How many calls go well before.
    skip: usize,
    /// How many do not.
    times: usize,
    effect: Effect,
}

impl Rule {
    /// The first call that `applies` fits.
    pub(crate) fn new(
        when: When,
        applies: impl Fn(&Call) -> bool + Send + 'static,
        effect: Effect,
    ) -> Self {
        Self { applies: Box::new(applies), when, skip: 0, times: 1, effect }
    }

    /// The first call with this method whose path ends like this.
    pub(crate) fn on(when: When, method: &str, end: &str, effect: Effect) -> Self {
        let (method, end) = (method.to_owned(), end.to_owned());
        Self::new(when, move |call| call.method == method && call.path.ends_with(&end), effect)
    }

    /// Not the first that fits, but one later.
    pub(crate) fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// More than one call.
    pub(crate) fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

/// All rules, in the order in which they are looked at.
#[derive(Default)]
pub(crate) struct Rules(Vec<Rule>);

impl Rules {
    pub(crate) fn add(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    /// Everything goes well from now on.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The first rule that applies to the call now. Each that fits counts it.
    pub(crate) fn find(&mut self, when: When, call: &Call) -> Option<&Effect> {
        let mut found = None;
        for rule in &mut self.0 {
            if rule.when != when || rule.times == 0 || !(rule.applies)(call) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if found.is_none() {
                rule.times -= 1;
                found = Some(&rule.effect);
            }
        }
        found
    }
}

/// The answer of a service that failed, in the form of a proxy before it.
pub(crate) fn broken(status: u16) -> Effect {
    let page = format!("<html><body><h1>{status} Bad Gateway</h1>nginx</body></html>");
    Effect::Answer(Answer::new(status, Value::String(page)))
}

/// "Later" from a service that is asked too much.
pub(crate) fn later(status: u16, seconds: &str) -> Effect {
    let body = json!({"overLimit": {"code": status, "message": "This request was rate-limited."}});
    Effect::Answer(Answer::new(status, body).header("Retry-After", seconds))
}

/// An error of Neutron.
pub(crate) fn neutron(status: u16, kind: &str, message: &str) -> Effect {
    Effect::Answer(super::neutron::fault(status, kind, message))
}

/// An error of Nova.
pub(crate) fn nova(status: u16, kind: &str, message: &str) -> Effect {
    Effect::Answer(super::nova::fault(status, kind, message))
}
