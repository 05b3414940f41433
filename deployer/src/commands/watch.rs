//! `kv watch`: changes of keys as they happen, through agents that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use sky_api::batch::Content;
use sky_api::watch::WatchReport;

use super::Context;
use crate::cli::WatchArgs;
use crate::client::Watched;
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};
use crate::sse::{Event, Events};

/// How long to wait before the next agent is asked.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked whether anybody still reads.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn run(context: &Context<'_>, args: &WatchArgs) -> Result<ExitCode> {
    let deployment = Deployment::open(&args.target.inventory).await?;
    let what = match (&args.key, &args.prefix) {
        (Some(key), _) => {
            super::kv::check(key)?;
            Watched::Key(key)
        }
        (None, prefix) => Watched::Prefix(prefix.as_deref().unwrap_or_default()),
    };
    let mut watch = Watch {
        context,
        deployment: &deployment,
        what,
        values: args.values,
        told: BTreeMap::new(),
        anew: None,
        place: None,
        was_synced: false,
        trouble: None,
        is_unread: false,
    };
    let mut ended = pin!(tokio::signal::ctrl_c());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut following = pin!(watch.follow());
    loop {
        tokio::select! {
            outcome = &mut following => return outcome.map(|()| ExitCode::SUCCESS),
            _ = ticks.tick() => if context.printer.nobody_reads() { break },
            _ = &mut ended => break,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A watch over all the agents it goes through.
struct Watch<'a> {
    context: &'a Context<'a>,
    deployment: &'a Deployment,
    what: Watched<'a>,
    values: bool,
    /// The versions printed last.
    told: BTreeMap<String, String>,
    /// The keys that were told since everything is told anew.
    anew: Option<BTreeSet<String>>,
    /// Where to go on: the agent, and the id of its last event.
    place: Option<(String, String)>,
    was_synced: bool,
    /// What was said of the last failure, so that it is said once.
    trouble: Option<Error>,
    is_unread: bool,
}

impl Watch<'_> {
    /// Goes on until nobody reads. Only a refusal that every agent would give ends it otherwise.
    async fn follow(&mut self) -> Result<()> {
        let mut last_tried = None;
        while !self.is_unread {
            let agent = match self.deployment.agents().await {
                Ok(agents) => self.choose(agents, last_tried.as_deref()),
                Err(error) => {
                    self.tell(error);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            last_tried = Some(agent.clone());
            let error = match self.through(&agent).await {
                Ok(Some(refusal)) => return Err(refusal),
                Ok(None) => continue,
                Err(error) => error,
            };
            tracing::debug!("the watch through {agent} ended: {error}");
            self.tell(error);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// The agent that knows what was told, unless it has just failed; else the one after that.
    fn choose(&self, agents: Vec<String>, last_tried: Option<&str>) -> String {
        let knows = self.place.as_ref().map(|(agent, _)| agent.as_str());
        if let Some(agent) =
            knows.filter(|agent| self.trouble.is_none() || Some(*agent) != last_tried)
            && agents.iter().any(|other| other == agent)
        {
            return agent.to_owned();
        }
        let at = agents.iter().position(|agent| Some(agent.as_str()) == last_tried);
        let next = at.map_or(0, |at| (at + 1) % agents.len());
        agents.into_iter().nth(next).unwrap_or_default()
    }

    /// Says what went wrong, unless it was just said.
    fn tell(&mut self, error: Error) {
        if self.trouble.as_ref() != Some(&error) {
            self.context.printer.warn(&error);
            self.trouble = Some(error);
        }
    }

    /// Prints what one agent tells, as long as it does. Returns a refusal that is no matter of the agent.
    async fn through(&mut self, agent: &str) -> Result<Option<Error>> {
        let place = self.place.as_ref().filter(|(other, _)| other == agent);
        let place = place.map(|(_, id)| id.clone());
        let client = &self.deployment.client;
        let response = client.watch(agent, self.what, self.values, place.as_deref()).await?;
        let response = match response {
            Ok(response) => response,
            Err(refusal) => return Ok(Some(refusal)),
        };
        if place.is_none() {
            self.begin_anew();
        }
        let mut events = Events::new(response);
        while let Some(Event { id, data }) = events.next().await? {
            if !data.is_empty() {
                let failed = || format!("the agent at {agent} tells something else");
                let report = serde_json::from_str(&data).during(failed)?;
                if let Some(refusal) = self.take(report)? {
                    return Ok(Some(refusal));
                }
                self.trouble = None;
            }
            if let Some(id) = id {
                self.place = Some((agent.to_owned(), id));
            }
            if self.is_unread {
                return Ok(None);
            }
        }
        Err(Error::new(format!("the agent at {agent} has ended the watch")))
    }

    /// Everything that is there is told now; what is known already is not printed again.
    fn begin_anew(&mut self) {
        self.anew = Some(BTreeSet::new());
    }

    fn take(&mut self, report: WatchReport) -> Result<Option<Error>> {
        match &report {
            WatchReport::Value { key, etag, .. } => {
                if let Some(told) = &mut self.anew {
                    told.insert(key.clone());
                }
                if self.told.insert(key.clone(), etag.clone()).as_ref() != Some(etag) {
                    self.print(&report)?;
                }
            }
            WatchReport::Deleted { key, .. } => {
                if self.told.remove(key).is_some() {
                    self.print(&report)?;
                }
            }
            WatchReport::Synced => {
                if let Some(there) = self.anew.take() {
                    self.print_gone(&there)?;
                }
                if !std::mem::replace(&mut self.was_synced, true) {
                    self.print(&report)?;
                }
            }
            WatchReport::Missed { .. } => self.begin_anew(),
            WatchReport::Ended { problem } => {
                let error = Error::new(problem.detail.trim_end_matches('.'));
                let error = match &problem.hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                };
                self.place = None;
                if problem.status < 500 {
                    return Ok(Some(error));
                }
                return Err(error);
            }
        }
        Ok(None)
    }

    /// What was told before and is not there any more.
    fn print_gone(&mut self, there: &BTreeSet<String>) -> Result<()> {
        let (kept, gone) = std::mem::take(&mut self.told)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(key, _)| there.contains(key));
        self.told = kept;
        for (key, etag) in gone {
            self.print(&WatchReport::Deleted { key, etag })?;
        }
        Ok(())
    }

    fn print(&mut self, report: &WatchReport) -> Result<()> {
        let line = if self.context.json {
            serde_json::to_string(report).during(|| "cannot encode what is told")?
        } else {
            match line(report) {
                Some(line) => line,
                None => return Ok(()),
            }
        };
        self.is_unread |= self.context.printer.try_bytes(format!("{line}\n").as_bytes()).is_err();
        Ok(())
    }
}

/// For people. A key with control characters must not act on the terminal.
fn line(report: &WatchReport) -> Option<String> {
    match report {
        WatchReport::Value { key, size, content_type, value, .. } => {
            let key = key.escape_debug();
            Some(match value {
                Some(Content::Text(text)) => format!("set {key} = {}", text.escape_debug()),
                _ => format!("set {key}, {size} bytes, {}", content_type.escape_debug()),
            })
        }
        WatchReport::Deleted { key, .. } => Some(format!("deleted {}", key.escape_debug())),
        _ => None,
    }
}
