//! Many requests at once over all agents of a ring. An agent that does not answer is passed over for a
//! while, and what cannot be answered now is asked again.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use sky_api::KeyList;
use tokio::sync::Semaphore;

use crate::client::{self, Client, KeyAnswer};
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};
use crate::observe::NodeState;
use crate::room::Room;

/// How many requests are under way at once.
const AT_ONCE: usize = 64;
/// How long a request may be refused or stay unanswered before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an agent that was silent is passed over.
const REST: Duration = Duration::from_secs(1);
/// How long to wait before a request is sent again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long after trouble began it is looked who is up.
const LOOK_AFTER: Duration = Duration::from_secs(3);

/// The agents of a ring, as one.
pub(crate) struct Pool<'a> {
    deployment: &'a Deployment,
    agents: RefCell<Vec<Agent>>,
    turn: Cell<usize>,
    looked: Cell<Instant>,
    slots: Semaphore,
    room: Room,
}

struct Agent {
    url: String,
    rests_until: Option<Instant>,
}

impl<'a> Pool<'a> {
    /// The agents that are up.
    pub(crate) async fn of(deployment: &'a Deployment) -> Result<Self> {
        let pool = Self {
            deployment,
            agents: RefCell::default(),
            turn: Cell::new(0),
            looked: Cell::new(Instant::now()),
            slots: Semaphore::new(AT_ONCE),
            room: Room::new(),
        };
        pool.take(deployment.agents().await?);
        Ok(pool)
    }

    fn take(&self, urls: Vec<String>) {
        let agents = urls.into_iter().map(|url| Agent { url, rests_until: None });
        self.agents.replace(agents.collect());
    }

    /// The id of the ring.
    pub(crate) async fn ring(&self) -> Result<String> {
        let ring = self.deployment.client.view(&self.pick()).await?.ring;
        let name = &self.deployment.inventory.ring.name;
        ring.ok_or_else(|| Error::new(format!("{name} is not a ring yet")))
    }

    /// A page of the keys of the ring, from a place on.
    pub(crate) async fn page(&self, cursor: Option<&str>, limit: usize) -> Result<KeyList> {
        let answer = self
            .ask(async |client, agent| client.key_page(agent, cursor, limit).await)
            .await?
            .success()?;
        answer.json()
    }

    /// The value of a key, of about so many bytes. The answer is a success, or says that the key is not
    /// there (404). The value takes its room as long as somebody has it.
    pub(crate) async fn get(&self, key: &str, bytes: usize) -> Result<Answered> {
        let place = self.room.take(bytes).await;
        let get = async |client: &Client, agent: &str| {
            client.key(agent, Method::GET, key, None, None).await
        };
        let mut answered = self.ask(get).await?;
        answered.answer.body = place.hold(answered.answer.body);
        Ok(answered)
    }

    /// Stores a value. The answer is a success, or says that the key is there (409).
    pub(crate) async fn store(
        &self,
        method: &Method,
        key: &str,
        (content_type, value): (&str, &Bytes),
        ttl: Option<u64>,
    ) -> Result<Answered> {
        let _place = self.room.take(value.len()).await;
        self.ask(async |client, agent| {
            let value = Some((content_type, value));
            client.typed_key(agent, method.clone(), key, value, ttl).await
        })
        .await
    }

    async fn ask(&self, ask: impl AsyncFn(&Client, &str) -> Result<KeyAnswer>) -> Result<Answered> {
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await.ok();
        let begun = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let agent = self.pick();
            let error = match ask(&self.deployment.client, &agent).await {
                Ok(answer) if is_final(answer.status) => return Ok(Answered { agent, answer }),
                Ok(answer) if is_passing(answer.status) => {
                    client::problem(&agent, answer.status, &answer.body)
                }
                Ok(answer) => return Err(client::problem(&agent, answer.status, &answer.body)),
                Err(error) => {
                    self.let_rest(&agent);
                    error
                }
            };
            if begun.elapsed() > PATIENCE {
                let tried = format!("asked again for {} s", PATIENCE.as_secs());
                return Err(error
                    .because(tried)
                    .hint("`sky-deploy status` tells what is not right"));
            }
            tokio::time::sleep(pause).await;
            pause = PAUSES.1.min(pause * 2);
            if begun.elapsed() > LOOK_AFTER {
                self.look().await;
            }
        }
    }

    /// The next agent in turn that does not rest, or any.
    fn pick(&self) -> String {
        let agents = self.agents.borrow();
        let now = Instant::now();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let in_turn = (0..agents.len()).map(|step| &agents[turn.wrapping_add(step) % agents.len()]);
        let awake = in_turn.clone().find(|agent| agent.rests_until.is_none_or(|until| until < now));
        awake.or(in_turn.clone().next()).map(|agent| agent.url.clone()).unwrap_or_default()
    }

    fn let_rest(&self, url: &str) {
        for agent in self.agents.borrow_mut().iter_mut().filter(|agent| agent.url == url) {
            agent.rests_until = Some(Instant::now() + REST);
        }
    }

    /// Looks again who is up, for nodes come and go; not more often than once in a while.
    async fn look(&self) {
        if self.looked.get().elapsed() < LOOK_AFTER {
            return;
        }
        self.looked.set(Instant::now());
        let Ok(nodes) = self.deployment.look().await else { return };
        let up = nodes.into_iter().filter(|seen| seen.state == NodeState::Up);
        let urls: Vec<String> = up.map(|seen| seen.url).collect();
        if !urls.is_empty() {
            self.take(urls);
        }
    }
}

/// Whether the agent did what was asked, or said what there is.
fn is_final(status: StatusCode) -> bool {
    status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT)
}

/// Whether the same request may succeed later, or elsewhere.
const fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::REQUEST_TIMEOUT
    )
}

/// An answer, and whose it is.
pub(crate) struct Answered {
    agent: String,
    /// The answer.
    pub(crate) answer: KeyAnswer,
}

impl Answered {
    /// An error unless it is a success.
    pub(crate) fn success(self) -> Result<Self> {
        if self.answer.status.is_success() { Ok(self) } else { Err(self.problem()) }
    }

    /// What the agent said, as an error.
    pub(crate) fn problem(&self) -> Error {
        client::problem(&self.agent, self.answer.status, &self.answer.body)
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.answer.body)
            .during(|| format!("the agent at {} answers something else", self.agent))
    }
}
