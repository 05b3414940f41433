//! One ring as this program works with it: its inventory, folder, provider and agents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;
use sky_chord::Id;
use tokio::sync::Mutex;

use crate::amount::of;
use crate::client::Client;
use crate::error::{Error, Problem, Result};
use crate::inventory::{Inventory, ProviderKind};
use crate::loss::{self, LostRange, REPAIR};
use crate::node::{Handle, NodeSpec};
use crate::observe::{self, NodeReport, NodeState, Sighting, StatusReport};
use crate::provider::{self, Chosen, LogRequest, Provider, Said, Site};
use crate::state::{RingFolder, RingRecord};
use crate::{converge, plan};

/// How long agents that run may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often they are asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long ranges must have no majority before that counts.
const LOST_FOR: Duration = Duration::from_secs(1);

/// A ring and everything needed to work with it.
pub struct Deployment {
    /// Where the inventory was read.
    pub path: PathBuf,
    /// What is wanted.
    pub inventory: Inventory,
    /// The ring's folder.
    pub folder: RingFolder,
    /// Where its nodes live.
    pub provider: Box<dyn Provider>,
    /// Why there, as a clause.
    pub why: String,
    /// Calls to its agents.
    pub client: Client,
}

impl Deployment {
    /// Reads the inventory and opens the ring's provider. Changes nothing.
    pub async fn open(path: &Path) -> Result<Self> {
        let inventory = Inventory::load(path)?;
        let folder = RingFolder::of(&inventory.ring.name)?;
        let kept = match folder.record()? {
            Some(record) => Some(record.provider),
            None => folder.path().join("nodes").exists().then_some(ProviderKind::Process),
        };
        let site = Site::new(folder.clone(), inventory.agent.clone(), inventory.openstack.clone())?;
        let Chosen { provider, why } = provider::choose(inventory.provider, kept, site).await?;
        let client = Client::new(folder.secrets()?.map(|secrets| secrets.token))?;
        Ok(Self { path: path.to_owned(), inventory, folder, provider, why, client })
    }

    /// Makes the secrets and the ring's record, if they are not there. From then on the ring has a
    /// provider.
    pub fn prepare(&mut self) -> Result<RingRecord> {
        self.folder.create()?;
        let secrets = self.folder.make_secrets(self.inventory.ring.secret.as_deref())?;
        self.client = Client::new(Some(secrets.token))?;
        if let Some(record) = self.folder.record()? {
            return Ok(record);
        }
        let record = RingRecord {
            provider: self.provider.kind(),
            ring_id: crate::state::random_hex(16)?,
            founded: false,
            replicas: self.inventory.ring.replicas,
            tie_breaker: self.inventory.ring.tie_breaker.clone(),
        };
        self.folder.write_record(&record)?;
        Ok(record)
    }

    /// The nodes there are, as they are now.
    pub async fn look(&self) -> Result<Vec<Sighting>> {
        observe::observe(&*self.provider, &self.client).await
    }

    /// [`Self::look`] for what changes the ring: an error if this machine does not know it.
    pub async fn observe(&self) -> Result<Vec<Sighting>> {
        let nodes = self.look().await?;
        self.refuse_foreign(&nodes)?;
        Ok(nodes)
    }

    /// An error if there are nodes that were made elsewhere: what this machine would tell them and give
    /// to new ones, secrets and keys, would be none of theirs. Nodes that are processes are in the folder.
    fn refuse_foreign(&self, nodes: &[Sighting]) -> Result<()> {
        let is_local = self.provider.kind() == ProviderKind::Process;
        if is_local || nodes.iter().all(|seen| seen.handle.is_none()) {
            return Ok(());
        }
        if self.folder.record()?.is_some() && self.folder.secrets()?.is_some() {
            return Ok(());
        }
        let (ring, place) = (&self.inventory.ring.name, self.folder.path().display());
        Err(Error::new(format!(
            "the ring {ring} is there, but was made by another machine or user"
        ))
        .because(format!("there are no secrets of it in {place}"))
        .hint("`sky-deploy adopt` takes it over; a ring of your own needs another `ring.name`"))
    }

    /// The nodes there are, and those that are wanted and not there.
    pub async fn expected(&self) -> Result<Vec<Sighting>> {
        let mut nodes = self.look().await?;
        for wanted in plan::wanted_nodes(&self.inventory, self.provider.kind(), &nodes)? {
            if !nodes.iter().any(|seen| seen.node.name == wanted.name) {
                nodes.push(Sighting::missing(wanted));
            }
        }
        Ok(nodes)
    }

    /// One node of the ring.
    pub async fn find(&self, name: &str) -> Result<Sighting> {
        self.among(self.observe().await?, name)
    }

    /// The node of this name.
    pub fn among(&self, mut nodes: Vec<Sighting>, name: &str) -> Result<Sighting> {
        match nodes.iter().position(|seen| seen.node.name == name) {
            Some(at) => Ok(nodes.swap_remove(at)),
            None => {
                let names: Vec<&str> = nodes.iter().map(|seen| seen.node.name.as_str()).collect();
                let hint = if names.is_empty() {
                    "the ring has no nodes; `sky-deploy apply` makes them".to_owned()
                } else {
                    format!("its nodes are {}", names.join(", "))
                };
                let ring = &self.inventory.ring.name;
                Err(Error::new(format!("the ring {ring} has no node {name}")).hint(hint))
            }
        }
    }

    /// An error if the inventory says of the ring what its agents must not be told any more.
    pub fn refuse_changed(&self) -> Result<()> {
        let record = self.folder.record()?;
        record.map_or(Ok(()), |record| record.agrees_with(&self.inventory.ring))
    }

    /// Starts a node, knowing all the others.
    pub async fn start(&self, node: &NodeSpec, all: &[NodeSpec]) -> Result<()> {
        self.refuse_changed()?;
        self.provider
            .start(&plan::launch(node, all, &self.inventory.ring, self.provider.kind()))
            .await
    }

    /// How the ring is.
    pub async fn status(&self) -> Result<StatusReport> {
        let nodes = self.expected().await?;
        let verdict = converge::judge(&nodes, self.inventory.ring.replicas);
        let lost = self.lost_for_good(&nodes);
        let kind = self.provider.kind();
        Ok(StatusReport {
            ring: self.inventory.ring.name.clone(),
            right: verdict.right,
            replicated: verdict.replicated,
            problems: lost.iter().map(LostRange::sentence).chain(verdict.problems).collect(),
            needs_repair: !lost.is_empty(),
            nodes: nodes.iter().map(|node| NodeReport::new(node, kind)).collect(),
        })
    }

    /// The agents that can be asked about keys, as URLs. Nodes that run and do not answer at once are
    /// asked again for a while.
    pub async fn agents(&self) -> Result<Vec<String>> {
        let begun = Instant::now();
        loop {
            let nodes = self.look().await?;
            let up = nodes.iter().filter(|seen| seen.state == NodeState::Up);
            let urls: Vec<String> = up.map(|seen| seen.url.clone()).collect();
            if !urls.is_empty() {
                return Ok(urls);
            }
            let busy = nodes.iter().any(|seen| seen.handle.is_some());
            if !busy || begun.elapsed() > ANSWER_WITHIN {
                return Err(self.none_up(&nodes));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn none_up(&self, nodes: &[Sighting]) -> Error {
        let error = Error::new(format!("no node of the ring {} is up", self.inventory.ring.name));
        let noted = nodes.iter().filter_map(|seen| Some((&seen.node.name, seen.note.as_ref()?)));
        noted
            .fold(error, |error, (name, note)| error.because(format!("{name}: {note}")))
            .hint("`sky-deploy status` tells why, `sky-deploy apply` starts what is down")
    }

    /// An error for nodes that should be there and are not, with the last words of agents that ended.
    pub async fn refuse_dead(&self, nodes: &[Sighting], names: &[String]) -> Result<()> {
        let mut problems = Vec::new();
        for seen in nodes.iter().filter(|seen| names.contains(&seen.node.name)) {
            let name = &seen.node.name;
            if seen.state == NodeState::Missing {
                let mut problem = Problem::new(format!("the machine of {name} is gone"));
                problem.hint = Some("`sky-deploy apply` makes it anew".to_owned());
                problems.push(problem);
            }
            // Of a server whose agent was started a moment ago, the cloud may still say otherwise.
            let may_run = seen.runs || matches!(seen.handle, Some(Handle::Server(_)));
            if seen.state != NodeState::Down || may_run {
                continue;
            }
            let mut problem = Problem::new(format!("the agent of {name} has ended"));
            let wanted = LogRequest { lines: Some(3), since: None, follow: false };
            let said: Vec<_> = self.provider.logs(name, wanted).collect().await;
            let lines = said.into_iter().filter_map(|said| match said {
                Ok(Said::Line(line)) => Some(String::from_utf8_lossy(&line.text).into_owned()),
                Ok(Said::CaughtUp) | Err(_) => None,
            });
            problem.causes = lines.collect();
            problem.hint = Some(format!("`sky-deploy logs {name}` shows all of its log"));
            problems.push(problem);
        }
        Error::of(problems).map_or(Ok(()), Err)
    }

    /// The ranges that a majority of their members does not answer for.
    fn stuck(&self, nodes: &[Sighting]) -> Vec<LostRange> {
        loss::stuck(nodes, self.inventory.ring.tie_breaker.as_deref())
    }

    /// The ranges that nothing but `repair` gets going again.
    pub(crate) fn lost_for_good(&self, nodes: &[Sighting]) -> Vec<LostRange> {
        let mut lost = self.stuck(nodes);
        lost.retain(LostRange::is_for_good);
        lost
    }

    /// An error if ranges have lost their majority for good: no waiting makes their ring right.
    pub async fn refuse_lost(&self, nodes: &[Sighting]) -> Result<()> {
        if self.lost_for_good(nodes).is_empty() {
            return Ok(());
        }
        // The agents' reports are not from one moment.
        tokio::time::sleep(LOST_FOR).await;
        let lost = self.lost_for_good(&self.expected().await?);
        let Some(first) = lost.first() else { return Ok(()) };
        let what = of(lost.len() as u64, "range");
        let ring = &self.inventory.ring.name;
        let error = Error::new(format!(
            "the ring {ring} cannot become right: a majority of the members of {what} is gone for good"
        ));
        let hint = format!("{REPAIR}; a backup can be restored into a new ring");
        Err(error.because(first.sentence()).hint(hint))
    }

    /// The parts (lo, hi] of the circle that nobody keeps, and that nobody who is silent may still keep.
    pub(crate) async fn kept_by_nobody(&self) -> Result<Vec<(Id, Id)>> {
        // Boxed, or the compiler cannot see that this work may move between threads.
        found_twice(|| {
            async {
                let nodes = self.expected().await?;
                let told =
                    |seen: &Sighting| seen.view.is_some() || seen.state == NodeState::Missing;
                let (_, gaps) = loss::judge(&nodes);
                Ok(if nodes.iter().all(told) { gaps } else { Vec::new() })
            }
            .boxed()
        })
        .await
    }

    /// An error if a node cannot leave, because ranges that it keeps cannot decide who takes its place.
    pub async fn refuse_bound(&self, name: &str) -> Result<()> {
        let begun = Instant::now();
        let bound = loop {
            let nodes = self.expected().await?;
            let mut bound = self.stuck(&nodes);
            bound.retain(|range| range.members.iter().any(|member| member == name));
            // The agents' reports are not from one moment, and those just started have yet to answer.
            let starting = nodes.iter().any(|seen| seen.state == NodeState::Starting);
            let within = if starting { ANSWER_WITHIN } else { LOST_FOR };
            if bound.is_empty() || begun.elapsed() > within {
                break bound;
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        let Some(first) = bound.first() else { return Ok(()) };
        let gone: Vec<&str> = first.gone.iter().map(|gone| gone.name.as_str()).collect();
        let (what, gone) = (of(bound.len() as u64, "range"), gone.join(", "));
        let hint = if bound.iter().any(LostRange::is_for_good) {
            REPAIR.to_owned()
        } else {
            let back = bound.iter().flat_map(|range| &range.gone);
            let back: BTreeSet<_> = back.filter_map(|gone| gone.comes_back_by.as_deref()).collect();
            let back: Vec<_> = back.into_iter().map(|command| format!("`{command}`")).collect();
            format!("first {}; then try again", back.join(" and "))
        };
        let error = Error::new(format!(
            "{name} cannot leave the ring: of {what} that it keeps a majority does not answer"
        ));
        Err(error.because(format!("no answer from {gone}")).hint(hint))
    }
}

/// What is found, if something is found again after a while: the agents' reports are not from one moment.
async fn found_twice<'a, T>(look: impl Fn() -> BoxFuture<'a, Result<Vec<T>>>) -> Result<Vec<T>> {
    let found = look().await?;
    if found.is_empty() {
        return Ok(found);
    }
    tokio::time::sleep(LOST_FOR).await;
    look().await
}

/// Keeps a ring open, because a provider may have logged in to a cloud and opened connections; opens it
/// anew when its inventory was edited or its record changed.
pub struct Kept {
    path: PathBuf,
    opened: Mutex<Option<(Stamp, Arc<Deployment>)>>,
}

/// What the files of a ring were like when it was opened: when they were last changed.
type Stamp = [Option<SystemTime>; 2];

fn stamp(path: &Path, deployment: &Deployment) -> Stamp {
    let record = deployment.folder.path().join("ring.json");
    [path, &record].map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok())
}

impl Kept {
    /// The ring of an inventory, not yet opened.
    pub fn new(path: PathBuf) -> Self {
        Self { path, opened: Mutex::default() }
    }

    /// Where the inventory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open ring.
    pub async fn open(&self) -> Result<Arc<Deployment>> {
        let mut opened = self.opened.lock().await;
        if let Some((when, deployment)) = &*opened
            && *when == stamp(&self.path, deployment)
        {
            return Ok(Arc::clone(deployment));
        }
        let deployment = Arc::new(Deployment::open(&self.path).await?);
        *opened = Some((stamp(&self.path, &deployment), Arc::clone(&deployment)));
        Ok(deployment)
    }
}
