//! Carries out a plan, and waits until the ring is right. May be interrupted at any point: the next
//! apply finds out what is there and goes on.

use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{self, StreamExt};

use crate::amount::of;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::node::NodeSpec;
use crate::observe::{NodeState, Sighting};
use crate::plan::{Plan, Step, wanted_nodes};
use crate::provider::ports;
use crate::timing::Progress;
use crate::{converge, drain};

/// How many nodes are started at once.
const AT_ONCE: usize = 8;
/// How often agents that do not answer yet are asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Does what the plan says and waits until the ring is right.
pub async fn carry_out(
    deployment: &mut Deployment,
    plan: &Plan,
    progress: &Progress,
) -> Result<()> {
    let observed = deployment.observe().await?;
    let kind = deployment.provider.kind();
    let mut wanted = wanted_nodes(&deployment.inventory, kind, &observed)?;
    let is_removed = |seen: &Sighting| wanted.iter().all(|node| node.name != seen.node.name);
    let (leaving, broken): (Vec<Sighting>, Vec<Sighting>) =
        observed.into_iter().filter(is_removed).partition(|seen| hands_over(seen, plan));
    let starts = |step: &&Step| matches!(step, Step::Create(_) | Step::Start(_));
    let starting: Vec<&NodeSpec> = plan.steps.iter().filter(starts).map(Step::node).collect();
    if !starting.is_empty() {
        if kind.is_local() {
            ports::are_free(starting.iter().copied())?;
        }
        deployment.prepare()?;
        // Nodes that were made before need nothing new.
        let created = plan.created();
        if !created.is_empty() {
            let begun = Instant::now();
            progress.printer().passing("preparing what the nodes need");
            for prepared in deployment.provider.prepare(&created).await? {
                if let Some(node) = wanted.iter_mut().find(|node| node.name == prepared.name) {
                    *node = prepared;
                }
            }
            progress.quiet(begun, "prepare", "what the nodes need is prepared");
        }
    }
    let deployment = &*deployment;
    // Those that are to leave are members until they have left.
    let mut members = wanted;
    members.extend(leaving.iter().map(|seen| seen.node.clone()));

    // Boxed, or the compiler cannot see that this work may move between threads.
    let steps = plan.steps.iter().map(|step| do_step(deployment, step, &members, progress).boxed());
    let results: Vec<Result<()>> =
        stream::iter(steps.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
    let failed = results.into_iter().filter_map(Result::err).flat_map(|error| error.problems);
    Error::of(failed.collect()).map_or(Ok(()), Err)?;

    found(deployment, &members, progress).await?;
    for seen in broken {
        drain::remove(deployment, &seen.node.name, progress).await?;
    }
    wait_until_right(deployment, &members, progress).await?;
    for seen in leaving {
        drain::remove(deployment, &seen.node.name, progress).await?;
        members.retain(|node| node.name != seen.node.name);
        wait_until_right(deployment, &members, progress).await?;
    }
    Ok(())
}

/// Whether a node that is to be removed takes part in the ring until it has handed over its data: it is a
/// member, or becomes one again.
fn hands_over(seen: &Sighting, plan: &Plan) -> bool {
    let is_woken = |step: &Step| match step {
        Step::Start(node) | Step::Unpause(node) => node.name == seen.node.name,
        Step::Create(_) | Step::Restart(_) | Step::Remove(_) => false,
    };
    let is_there = matches!(seen.state, NodeState::Up | NodeState::Starting);
    (is_there && knows_a_ring(seen)) || plan.steps.iter().any(is_woken)
}

/// Everything but removals, which come later, one at a time.
async fn do_step(
    deployment: &Deployment,
    step: &Step,
    all: &[NodeSpec],
    progress: &Progress,
) -> Result<()> {
    let begun = Instant::now();
    let (kind, done) = match step {
        Step::Create(node) | Step::Start(node) => {
            // As it was prepared: with its address.
            let node = all.iter().find(|prepared| prepared.name == node.name).unwrap_or(node);
            deployment.start(node, all).await?;
            let (kind, done) = match step {
                Step::Create(_) => ("create", "created"),
                _ => ("start", "started"),
            };
            (kind, format!("{} {done} at {}", node.name, node.url()))
        }
        Step::Unpause(node) => {
            deployment.provider.unpause(&node.name).await?;
            ("unpause", format!("{} goes on", node.name))
        }
        Step::Restart(node) => {
            deployment.provider.stop(&node.name).await?;
            deployment.start(node, all).await?;
            ("restart", format!("{} started again, to join again", node.name))
        }
        Step::Remove(_) => return Ok(()),
    };
    progress.done(begun, kind, Some(&step.node().name), done);
    Ok(())
}

/// Waits until the ring of these nodes is right.
pub async fn wait_until_right(
    deployment: &Deployment,
    wanted: &[NodeSpec],
    progress: &Progress,
) -> Result<()> {
    let begun = Instant::now();
    let ring = format!("the ring {}", deployment.inventory.ring.name);
    let replicas = deployment.inventory.ring.replicas;
    let names = names(wanted);
    let look = || {
        async {
            let nodes = deployment.observe().await?;
            deployment.refuse_dead(&nodes, &names).await?;
            deployment.refuse_lost(&nodes).await?;
            Ok(nodes.into_iter().filter(|seen| names.contains(&seen.node.name)).collect())
        }
        .boxed()
    };
    let within = deployment.provider.patience().right;
    let nodes = converge::wait(&ring, within, replicas, progress.printer(), look).await?;
    progress.done(
        begun,
        "right",
        None,
        format_args!("{ring} is right: {}", of(nodes.len() as u64, "node")),
    );
    Ok(())
}

/// Founds the ring if no agent and no data directory knows one: every agent must have said so, and
/// the ring must never have been founded before.
async fn found(deployment: &Deployment, members: &[NodeSpec], progress: &Progress) -> Result<()> {
    let names = names(members);
    let name = &deployment.inventory.ring.name;
    let begun = Instant::now();
    let within = deployment.provider.patience().answer;
    let (nodes, silent) = loop {
        let nodes = deployment.observe().await?;
        if nodes.iter().any(knows_a_ring) {
            return remember_founded(deployment);
        }
        deployment.refuse_dead(&nodes, &names).await?;
        let answers = |name: &&String| {
            nodes.iter().any(|seen| seen.node.name == **name && seen.view.is_some())
        };
        let silent: Vec<String> = names.iter().filter(|name| !answers(name)).cloned().collect();
        if silent.is_empty() || begun.elapsed() > within {
            break (nodes, silent);
        }
        progress.printer().passing(format_args!("waiting for the answer of {}", silent.join(", ")));
        tokio::time::sleep(ASK_EVERY).await;
    };
    if !silent.is_empty() {
        return Err(Error::new(format!(
            "no answer from {} after {} s",
            silent.join(", "),
            within.as_secs()
        ))
        .hint("`sky-deploy logs NODE` may tell why; apply again goes on waiting"));
    }
    let record = deployment.folder.record()?.ok_or_else(|| {
        Error::new(format!("the record of the ring {name} is gone"))
            .hint("somebody else changes this ring: apply again")
    })?;
    if record.founded {
        return Err(refounded(name, &nodes));
    }
    let first = members.first().ok_or_else(|| Error::new("a ring needs a node"))?;
    let seen = deployment.find(&first.name).await?;
    deployment.client.init(&seen.url, &record.ring_id).await?;
    remember_founded(deployment)?;
    let said = format_args!("{} founded the ring {name}", first.name);
    progress.done(begun, "found", Some(&first.name), said);
    Ok(())
}

/// The error for a ring that was founded and of which no agent that answers knows. Its data may be with
/// those that do not.
fn refounded(ring: &str, nodes: &[Sighting]) -> Error {
    let error = Error::new(format!(
        "the ring {ring} was founded before, and no agent that answers has its data any more"
    ));
    let is_silent = |seen: &&Sighting| seen.view.is_none() && seen.state != NodeState::Missing;
    let Some(seen) = nodes.iter().find(is_silent) else {
        return error.hint("nothing is left to save: `sky-deploy destroy`, then apply again");
    };
    let (name, verb) = (&seen.node.name, if seen.runs { "restart" } else { "start" });
    error
        .because(format!("{name} is {} and may have it", seen.state))
        .hint(format!("`sky-deploy {verb} {name}`, then apply again"))
}

fn remember_founded(deployment: &Deployment) -> Result<()> {
    match deployment.folder.record()? {
        Some(mut record) if !record.founded => {
            record.founded = true;
            deployment.folder.write_record(&record)
        }
        _ => Ok(()),
    }
}

fn knows_a_ring(seen: &Sighting) -> bool {
    seen.view.as_ref().is_some_and(|view| view.ring.is_some())
}

fn names(nodes: &[NodeSpec]) -> Vec<String> {
    nodes.iter().map(|node| node.name.clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;
    use std::process::{Child, Command};

    use sky_api::OwnReport;
    use sky_chord::{Id, KeyCount, Load, NodeId, Peer, Phase, RangeView, View};
    use tokio::net::TcpListener;
    use warp::Filter;

    use super::*;
    use crate::client::Client;
    use crate::inventory::{Inventory, ProviderKind};
    use crate::node::LOOPBACK;
    use crate::printer::Printer;
    use crate::provider::Site;
    use crate::provider::process::Processes;
    use crate::state::{RingFolder, RingRecord};

    /// The ring `sky` as processes leave it on the disk, and agents that only report.
    pub(crate) struct Stage {
        pub(crate) deployment: Deployment,
        folder: tempfile::TempDir,
        /// They stand for the processes of agents.
        processes: Vec<Child>,
    }

    impl Stage {
        pub(crate) fn new(inventory: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("inventory.yaml");
            std::fs::write(&path, inventory).unwrap();
            let inventory = Inventory::load(&path).unwrap();
            let ring = RingFolder::at(folder.path(), "sky");
            ring.create().unwrap();
            let site =
                Site::new(ring.clone(), inventory.agent.clone(), inventory.openstack.clone());
            let deployment = Deployment {
                path,
                inventory,
                folder: ring,
                provider: Box::new(Processes::new(site.unwrap())),
                why: "for the test".to_owned(),
                client: Client::new(None).unwrap(),
            };
            Self { deployment, folder, processes: Vec::new() }
        }

        pub(crate) fn inventory(&self) -> String {
            std::fs::read_to_string(&self.deployment.path).unwrap()
        }

        fn nodes(&self) -> PathBuf {
            self.folder.path().join("sky/nodes")
        }

        /// A node of which only the place is there.
        pub(crate) fn place(&self, number: u64, port: u16) -> NodeSpec {
            let (name, id) = (format!("sky-{number}"), Id::small(number));
            let node = NodeSpec { name, id, host: Some(LOOPBACK), port, zone: None };
            self.write(&node, None);
            node
        }

        /// A node that is stopped.
        pub(crate) fn stopped(&self, number: u64, port: u16) -> NodeSpec {
            let node = self.place(number, port);
            std::fs::create_dir(self.nodes().join(&node.name).join("data")).unwrap();
            node
        }

        /// A node whose process was started a moment ago, and whose agent does not answer.
        pub(crate) fn silent(&mut self, number: u64, port: u16) -> NodeSpec {
            let node = self.stopped(number, port);
            let process = Command::new("sleep").arg("60").spawn().unwrap();
            self.write(&node, Some(process.id()));
            self.processes.push(process);
            node
        }

        fn write(&self, node: &NodeSpec, pid: Option<u32>) {
            let process = pid.map(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                let ticks = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap();
                let (ticks, boot) = (ticks.parse::<u64>().unwrap(), crate::machine::boot_id());
                serde_json::json!({"pid": pid, "start_ticks": ticks, "boot": boot})
            });
            let record =
                serde_json::json!({"node": node, "program": "/nonexistent", "process": process});
            let folder = self.nodes().join(&node.name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("record.json"), record.to_string()).unwrap();
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            for process in &mut self.processes {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }

    /// What the agent of a node may report that keeps these ranges; none if it knows no ring.
    pub(crate) fn report(node: &NodeSpec, ranges: Option<Vec<RangeView>>) -> OwnReport {
        let view = View {
            me: peer(node),
            ring: ranges.is_some().then(|| "r".to_owned()),
            phase: if ranges.is_some() { Phase::Up } else { Phase::Waiting },
            predecessor: None,
            successors: Vec::new(),
            fingers: Vec::new(),
            ranges: ranges.unwrap_or_default(),
            members: Vec::new(),
            keys: KeyCount::default(),
            load: Load::default(),
        };
        OwnReport { view, transfers: Vec::new() }
    }

    /// All of the circle, with these members.
    pub(crate) fn circle(members: &[&NodeSpec]) -> RangeView {
        RangeView {
            lo: Id::small(1),
            hi: Id::small(1),
            epoch: 1,
            members: members.iter().map(|node| peer(node)).collect(),
            prev: Vec::new(),
            leads: true,
            unswept: false,
            lagging: Vec::new(),
            keys: 0,
        }
    }

    fn peer(node: &NodeSpec) -> Peer {
        let it = NodeId { position: node.id, incarnation: 1 };
        Peer { node: it, address: node.address().into() }
    }

    /// A port of an agent that is yet to answer.
    pub(crate) async fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// From now on an agent reports this there.
    pub(crate) fn answers(listener: TcpListener, report: OwnReport) {
        let ring = warp::path!("ring").map(move || warp::reply::json(&report));
        tokio::spawn(warp::serve(ring).incoming(listener).run());
    }

    fn founded(stage: &Stage) {
        let record = RingRecord {
            provider: ProviderKind::Process,
            ring_id: "0".repeat(32),
            founded: true,
            replicas: 3,
            tie_breaker: None,
        };
        stage.deployment.folder.write_record(&record).unwrap();
    }

    #[tokio::test]
    async fn a_ring_is_not_given_up_while_a_node_that_is_silent_may_have_its_data() {
        let mut stage = Stage::new("nodes: 1\n");
        founded(&stage);
        let (listener, port) = listener().await;
        let new = stage.silent(2, port);
        answers(listener, report(&new, None));
        let progress = Progress::new(&Printer::from_environment());
        let fails = async |stage: &Stage| {
            let found = found(&stage.deployment, std::slice::from_ref(&new), &progress).await;
            found.unwrap_err().to_string()
        };
        let old = stage.stopped(1, 1);
        let text = fails(&stage).await;
        assert!(text.contains("sky-1 is down and may have it (`sky-deploy start sky-1`"), "{text}");
        assert!(!text.contains("destroy"), "{text}");
        std::fs::remove_dir_all(stage.nodes().join(old.name)).unwrap();
        let text = fails(&stage).await;
        assert!(text.contains("nothing is left to save"), "{text}");
    }

    #[tokio::test]
    async fn who_cannot_leave_is_told_what_brings_back_the_others() {
        let mut stage = Stage::new("nodes: 1\n");
        let (listener, port) = listener().await;
        let first = stage.silent(1, port);
        let (second, third) = (stage.stopped(2, 1), stage.stopped(3, 2));
        answers(listener, report(&first, Some(vec![circle(&[&first, &second, &third])])));
        let text = stage.deployment.refuse_bound("sky-1").await.unwrap_err().to_string();
        let hint = "(first `sky-deploy start sky-2` and `sky-deploy start sky-3`; then try again)";
        assert!(text.ends_with(hint), "{text}");
    }

    #[tokio::test]
    async fn who_was_just_started_may_take_its_time_to_answer() {
        let mut stage = Stage::new("nodes: 1\n");
        let ((here, port), (there, other_port)) = (listener().await, listener().await);
        let (first, second) = (stage.silent(1, port), stage.silent(2, other_port));
        let third = stage.stopped(3, 2);
        let range = || Some(vec![circle(&[&first, &second, &third])]);
        answers(here, report(&first, range()));
        let late = report(&second, range());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            answers(there, late);
        });
        stage.deployment.refuse_bound("sky-1").await.unwrap();
    }
}
