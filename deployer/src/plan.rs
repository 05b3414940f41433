//! What has to be done: a pure function of the inventory and of what was observed. It leaves nothing
//! for the execution to decide.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sky_chord::{Id, RangeView};

use crate::error::{Error, Problem, Result};
use crate::inventory::{Inventory, NodeEntry, Nodes, ProviderKind, Ring, node_name};
use crate::node::{LOOPBACK, Launch, NodeSpec};
use crate::observe::{NodeState, Sighting};
use crate::outlook::{Outlook, Quota, Resource};
use crate::placement::{arc_length, arcs, even_position, members, widest_gap, zones};
use crate::ranges::{gaps, latest};

/// The whole plan for one ring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The ring.
    pub ring: String,
    /// Where its nodes live.
    pub provider: ProviderKind,
    /// Why there, as a clause.
    pub why: String,
    /// What is done, in this order; starts first, then removals, one at a time.
    pub steps: Vec<Step>,
    /// The nodes as they will be, by position, with what they own before and after.
    pub shares: Vec<Share>,
    /// About how many copies of keys go over the network.
    pub keys_to_move: u64,
    /// What is made beside the nodes.
    pub resources: Vec<Resource>,
    /// What the plan takes of quotas.
    pub quotas: Vec<Quota>,
    /// What the user should know before saying yes.
    pub warnings: Vec<String>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Step {
    /// A node that is not there is made.
    Create(NodeSpec),
    /// A node that does not run is started on its data.
    Start(NodeSpec),
    /// A frozen node goes on.
    Unpause(NodeSpec),
    /// A node that has left the ring is started again, and joins again.
    Restart(NodeSpec),
    /// A node hands over its data, and is removed with its data.
    Remove(NodeSpec),
}

/// What a node owns of the circle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Share {
    /// Its name.
    pub name: String,
    /// Its position.
    pub id: Id,
    /// Its share before, from 0 to 1; none if it is new.
    pub before: Option<f64>,
    /// Its share after; none if it is removed.
    pub after: Option<f64>,
}

impl Step {
    /// The node it is about.
    pub const fn node(&self) -> &NodeSpec {
        match self {
            Self::Create(node)
            | Self::Start(node)
            | Self::Unpause(node)
            | Self::Restart(node)
            | Self::Remove(node) => node,
        }
    }
}

impl Plan {
    /// Whether everything is as the inventory wants it.
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether nodes are taken away.
    pub fn removes(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Remove(_)))
    }

    /// Whether a person must agree: something is taken away, or made that is not on this machine.
    pub fn asks(&self) -> bool {
        let creates = || self.steps.iter().any(|step| matches!(step, Step::Create(_)));
        self.removes() || (!self.provider.is_local() && creates())
    }

    /// The nodes that are made.
    pub fn created(&self) -> Vec<NodeSpec> {
        let created = self.steps.iter().filter(|step| matches!(step, Step::Create(_)));
        created.map(|step| step.node().clone()).collect()
    }

    /// Lets nodes run before they are removed, if the others may lack what they have: who is down hands over
    /// nothing. Only for a ring that was founded: else no node has data.
    #[must_use]
    pub fn with_handovers(mut self, observed: &[Sighting]) -> Self {
        let views = observed.iter().filter_map(|seen| seen.view.as_ref());
        let views: Vec<&RangeView> = views.flat_map(|view| &view.ranges).collect();
        let ranges = latest(&views);
        let untold = !gaps(ranges.iter().map(|range| (range.lo, range.hi)).collect()).is_empty();
        let members = || ranges.iter().flat_map(|range| range.members.iter().chain(&range.prev));
        let is_needed = |id: Id| untold || members().any(|member| member.node.position == id);
        let is_removal = |step: &Step| matches!(step, Step::Remove(_));
        let first = self.steps.iter().position(is_removal).unwrap_or(self.steps.len());
        let removed = self.steps[first..].iter().map(Step::node).filter(|node| is_needed(node.id));
        let woken = removed.filter_map(|node| {
            let seen = observed.iter().find(|seen| seen.node.name == node.name)?;
            match seen.state {
                NodeState::Down if !seen.runs => Some(Step::Start(node.clone())),
                NodeState::Paused => Some(Step::Unpause(node.clone())),
                _ => None,
            }
        });
        let woken: Vec<Step> = woken.collect();
        self.steps.splice(first..first, woken);
        self
    }

    /// Adds what the provider knows of the plan.
    #[must_use]
    pub fn with(mut self, outlook: Outlook) -> Self {
        self.resources = outlook.resources;
        self.quotas = outlook.quotas;
        self.warnings.extend(outlook.warnings);
        self
    }
}

/// Plans the way from what was observed to what the inventory wants.
pub fn plan(
    inventory: &Inventory,
    provider: ProviderKind,
    why: &str,
    observed: &[Sighting],
) -> Result<Plan> {
    let wanted = wanted_nodes(inventory, provider, observed)?;
    let is_wanted = |name: &str| wanted.iter().any(|node| node.name == name);
    let mut steps = Vec::new();
    for node in &wanted {
        let seen = observed.iter().find(|seen| seen.node.name == node.name);
        match seen.map(|seen| seen.state) {
            Some(NodeState::Draining) if seen.is_some_and(Sighting::has_left) => {
                steps.push(Step::Restart(node.clone()));
            }
            None | Some(NodeState::Missing) => steps.push(Step::Create(node.clone())),
            Some(NodeState::Paused) => steps.push(Step::Unpause(node.clone())),
            Some(NodeState::Down) => steps.push(Step::Start(node.clone())),
            Some(NodeState::Starting | NodeState::Up | NodeState::Draining) => {}
        }
    }
    let mut warnings = Vec::new();
    for seen in observed {
        if !is_wanted(&seen.node.name) {
            steps.push(Step::Remove(seen.node.clone()));
        } else if seen.state == NodeState::Draining && !seen.has_left() {
            warnings.push(format!(
                "{} is leaving the ring although the inventory wants it: apply again when it has left",
                seen.node.name
            ));
        }
        if seen.state == NodeState::Down {
            warnings.push(format!(
                "{} is down: keys it holds have one copy less until it is back",
                seen.node.name
            ));
        }
    }
    if let Some(name) = inventory.ring.tie_breaker.as_ref().filter(|name| !is_wanted(name)) {
        let names: Vec<&str> = wanted.iter().map(|node| node.name.as_str()).collect();
        return Err(Error::new(format!("`ring.tie_breaker` is {name}, which is not a node"))
            .hint(format!("the nodes are {}", names.join(", "))));
    }
    if inventory.ring.tie_breaker.is_some() && wanted.len() != 2 {
        warnings
            .push("`ring.tie_breaker` has no effect: the ring is not one of two nodes".to_owned());
    }
    if wanted.len() < inventory.ring.replicas {
        warnings.push(format!(
            "with {} of {} nodes a key has fewer copies, and the ring survives less",
            wanted.len(),
            inventory.ring.replicas
        ));
    }
    // What has only a place owns nothing yet.
    let there = observed.iter().filter(|seen| seen.state != NodeState::Missing);
    let there: Vec<Sighting> = there.cloned().collect();
    Ok(Plan {
        ring: inventory.ring.name.clone(),
        provider,
        why: why.to_owned(),
        steps,
        shares: shares(&wanted, &there),
        keys_to_move: keys_to_move(&wanted, &there, inventory.ring.replicas),
        resources: Vec::new(),
        quotas: Vec::new(),
        warnings,
    })
}

/// What `node` is started with: it knows all the others.
pub fn launch(node: &NodeSpec, all: &[NodeSpec], ring: &Ring, provider: ProviderKind) -> Launch {
    let others = all.iter().filter(|other| other.name != node.name);
    let join = others.map(NodeSpec::address).collect();
    let is_it = |node: &&NodeSpec| Some(&node.name) == ring.tie_breaker.as_ref();
    Launch {
        node: node.clone(),
        join,
        require_token: !provider.is_local(),
        replicas: ring.replicas,
        tie_breaker: all.iter().find(is_it).map(|node| node.id),
    }
}

/// The nodes the inventory wants, each with a name, a position and a port. Those that exist keep
/// theirs.
pub fn wanted_nodes(
    inventory: &Inventory,
    provider: ProviderKind,
    observed: &[Sighting],
) -> Result<Vec<NodeSpec>> {
    let ring = &inventory.ring.name;
    let entries = inventory.listed().unwrap_or_else(|| match inventory.nodes {
        Nodes::Count(count) => counted(ring, count, observed),
        Nodes::List(_) => Vec::new(),
    });
    let mut problems = Vec::new();
    let mut wanted: Vec<(NodeEntry, Option<NodeSpec>)> = Vec::new();
    for entry in entries {
        let name = entry.name.as_deref().unwrap_or_default();
        let existing = observed.iter().map(|seen| &seen.node).find(|node| node.name == name);
        if let Some(node) = existing {
            let moved = [
                (entry.id.is_some_and(|id| id != node.id), "position", node.id.to_string()),
                (entry.port.is_some_and(|port| port != node.port), "port", node.port.to_string()),
            ];
            for (_, what, has) in moved.into_iter().filter(|(moved, ..)| *moved) {
                let mut problem = Problem::new(format!("{name} has the {what} {has} and keeps it"));
                problem.hint =
                    Some("give the new node another name, and this one is removed".to_owned());
                problems.push(problem);
            }
        }
        let existing = existing.cloned();
        wanted.push((entry, existing));
    }
    if let Some(error) = Error::of(problems) {
        return Err(error);
    }

    // Nodes that are going away still hold their positions and ports.
    let mut ids: BTreeSet<Id> = observed.iter().map(|seen| seen.node.id).collect();
    ids.extend(wanted.iter().filter_map(|(entry, _)| entry.id));
    let mut ports: BTreeSet<u16> = observed.iter().map(|seen| seen.node.port).collect();
    ports.extend(wanted.iter().filter_map(|(entry, _)| entry.port));
    // A ring that is made in pieces is as balanced as one that is made at once.
    let total = wanted.len();
    let mut even: BTreeSet<Id> = (0..total).map(|place| even_position(place, total)).collect();
    let is_even = ids.is_subset(&even);
    even.retain(|id| is_even && !ids.contains(id));
    let mut nodes = Vec::new();
    for (entry, existing) in wanted {
        let name = entry.name.unwrap_or_default();
        let node = match existing {
            Some(node) => node,
            None => NodeSpec {
                id: entry.id.unwrap_or_else(|| {
                    let id = even.pop_first().unwrap_or_else(|| widest_gap(&ids));
                    ids.insert(id);
                    id
                }),
                host: provider.is_local().then_some(LOOPBACK),
                port: match entry.port {
                    Some(port) => port,
                    // A machine of its own has all its ports free.
                    None if !provider.is_local() => inventory.agent.port,
                    None => free_port(inventory.agent.port, &mut ports)?,
                },
                zone: entry.zone,
                name,
            },
        };
        nodes.push(node);
    }
    if provider == ProviderKind::Openstack {
        place_in_zones(&mut nodes, observed, &inventory.openstack.availability_zones);
    }
    Ok(nodes)
}

/// Gives new nodes that name no zone one of the cloud, alternating along the ring.
fn place_in_zones(nodes: &mut [NodeSpec], observed: &[Sighting], names: &[String]) {
    let all = nodes.iter().chain(observed.iter().map(|seen| &seen.node));
    let given: BTreeMap<Id, String> =
        all.filter_map(|node| Some((node.id, node.zone.clone()?))).collect();
    let placed = zones(&nodes.iter().map(|node| node.id).collect(), &given, names);
    let is_new = |node: &&mut NodeSpec| observed.iter().all(|seen| seen.node.name != node.name);
    for node in nodes.iter_mut().filter(is_new) {
        node.zone = placed.get(&node.id).cloned();
    }
}

/// The entries behind `nodes: N`: those that exist, lowest numbers first, and new ones with the
/// lowest free numbers.
fn counted(ring: &str, count: usize, observed: &[Sighting]) -> Vec<NodeEntry> {
    let number = |name: &str| name.strip_prefix(ring)?.strip_prefix('-')?.parse::<usize>().ok();
    let mut names: Vec<&str> = observed.iter().map(|seen| seen.node.name.as_str()).collect();
    names.sort_by_key(|name| (number(name).unwrap_or(usize::MAX), *name));
    let kept: Vec<String> = names.into_iter().take(count).map(str::to_owned).collect();
    let taken: BTreeSet<String> = observed.iter().map(|seen| seen.node.name.clone()).collect();
    let new = (1..).map(|number| node_name(ring, number)).filter(|name| !taken.contains(name));
    let missing = count - kept.len();
    kept.into_iter()
        .chain(new.take(missing))
        .map(|name| NodeEntry { name: Some(name), ..NodeEntry::default() })
        .collect()
}

fn free_port(first: u16, ports: &mut BTreeSet<u16>) -> Result<u16> {
    let free = (first..=u16::MAX).find(|port| !ports.contains(port)).ok_or_else(|| {
        Error::new(format!("there are not enough ports from {first} on"))
            .hint("set a smaller first port at `agent.port`")
    })?;
    ports.insert(free);
    Ok(free)
}

fn shares(wanted: &[NodeSpec], observed: &[Sighting]) -> Vec<Share> {
    let before: BTreeSet<Id> = observed.iter().map(|seen| seen.node.id).collect();
    let after: BTreeSet<Id> = wanted.iter().map(|node| node.id).collect();
    let share = |ids: &BTreeSet<Id>, id: Id| {
        let arc = arcs(ids).into_iter().find(|(_, to)| *to == id)?;
        Some(arc_length(arc.0, arc.1).fraction())
    };
    let removed = observed.iter().map(|seen| &seen.node).filter(|node| !after.contains(&node.id));
    let mut shares: Vec<Share> = wanted
        .iter()
        .chain(removed)
        .map(|node| Share {
            name: node.name.clone(),
            id: node.id,
            before: share(&before, node.id),
            after: share(&after, node.id),
        })
        .collect();
    shares.sort_by_key(|share| share.id);
    shares
}

/// An estimate from the keys each node owns now: every piece of the circle is copied to the members
/// it gets and does not have.
fn keys_to_move(wanted: &[NodeSpec], observed: &[Sighting], replicas: usize) -> u64 {
    let before: BTreeSet<Id> = observed.iter().map(|seen| seen.node.id).collect();
    let after: BTreeSet<Id> = wanted.iter().map(|node| node.id).collect();
    let owner =
        |ids: &BTreeSet<Id>, point: Id| ids.range(point..).next().or_else(|| ids.first()).copied();
    let cuts: BTreeSet<Id> = before.union(&after).copied().collect();
    let mut keys = 0.0;
    for (from, to) in arcs(&cuts) {
        let (Some(old), Some(new)) = (owner(&before, to), owner(&after, to)) else { continue };
        let Some(view) =
            observed.iter().find(|seen| seen.node.id == old).and_then(|seen| seen.view.as_ref())
        else {
            continue;
        };
        let whole = arcs(&before).into_iter().find(|(_, end)| *end == old);
        let whole = whole.map_or(1.0, |(from, to)| arc_length(from, to).fraction());
        let part = arc_length(from, to).fraction() / whole.max(f64::MIN_POSITIVE);
        let old_members = members(&before, old, replicas);
        let gaining = members(&after, new, replicas).difference(&old_members).count();
        keys += view.keys.owned as f64 * part * gaining as f64;
    }
    keys.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::{circle, report};
    use crate::node::Handle;

    fn inventory(text: &str) -> Inventory {
        Inventory::parse(text, "i.yaml").unwrap()
    }

    fn seen(node: &NodeSpec, state: NodeState) -> Sighting {
        Sighting {
            node: node.clone(),
            state,
            handle: Some(Handle::Pid(1)),
            runs: true,
            view: None,
            transfers: Vec::new(),
            url: node.url(),
            note: None,
        }
    }

    fn planned(text: &str, observed: &[Sighting]) -> Plan {
        plan(&inventory(text), ProviderKind::Process, "of the test", observed).unwrap()
    }

    /// The ring of an inventory, as it is after an apply.
    fn applied(text: &str, observed: &[Sighting]) -> Vec<Sighting> {
        let wanted = wanted_nodes(&inventory(text), ProviderKind::Process, observed).unwrap();
        wanted.iter().map(|node| seen(node, NodeState::Up)).collect()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.steps.iter().map(|step| step.node().name.as_str()).collect()
    }

    #[test]
    fn a_new_ring_is_perfectly_balanced_and_asks_nothing() {
        let plan = planned("nodes: 5", &[]);
        assert_eq!(names(&plan), ["sky-1", "sky-2", "sky-3", "sky-4", "sky-5"]);
        assert!(!plan.asks() && plan.warnings.is_empty());
        assert!(plan.shares.iter().all(|share| (share.after.unwrap() - 0.2).abs() < 1e-9));
        assert_eq!(plan.steps[4].node().port, 4325);
    }

    #[test]
    fn the_second_plan_is_empty() {
        let plan = planned("nodes: 5", &applied("nodes: 5", &[]));
        assert!(plan.is_empty(), "{plan:?}");
        let list = "nodes: [{name: red, id: ff}, {name: blue, port: 9000}, {zone: b}]";
        assert!(planned(list, &applied(list, &[])).is_empty());
    }

    #[test]
    fn growing_splits_the_widest_arcs_and_moves_no_one() {
        let three = applied("nodes: 3", &[]);
        let plan = planned("nodes: 6", &three);
        assert_eq!(names(&plan), ["sky-4", "sky-5", "sky-6"]);
        assert!(!plan.asks());
        assert!(plan.shares.iter().all(|share| (share.after.unwrap() - 1.0 / 6.0).abs() < 1e-9));
        let six = applied("nodes: 6", &three);
        assert!(three.iter().all(|old| six.iter().any(|new| new.node == old.node)));
    }

    #[test]
    fn a_ring_made_in_pieces_is_balanced() {
        let all = applied("nodes: 3", &[]);
        for missing in 0..3 {
            let mut nodes = all.clone();
            nodes.remove(missing);
            let mut again = applied("nodes: 3", &nodes);
            again.sort_by(|a, b| a.node.name.cmp(&b.node.name));
            assert!(again.iter().zip(&all).all(|(a, b)| a.node.id == b.node.id), "{again:?}");
        }
        let mut nodes = all.clone();
        nodes[1].state = NodeState::Missing;
        let plan = planned("nodes: 3", &nodes);
        assert!(matches!(&plan.steps[..], [Step::Create(node)] if node.id == all[1].node.id));
        assert_eq!(plan.shares[1].before, None);
    }

    #[test]
    fn shrinking_removes_the_highest_numbers_and_asks() {
        let plan = planned("nodes: 3", &applied("nodes: 5", &[]));
        assert_eq!(names(&plan), ["sky-4", "sky-5"]);
        assert!(plan.steps.iter().all(|step| matches!(step, Step::Remove(_))) && plan.asks());
    }

    #[test]
    fn a_gap_is_filled_and_ports_are_not_taken_twice() {
        let mut nodes = applied("nodes: 4", &[]);
        nodes.remove(1);
        let plan = planned("nodes: 4", &nodes);
        assert_eq!(names(&plan), ["sky-2"]);
        assert_eq!(plan.steps[0].node().port, 4322);
        assert!(planned("nodes: 3", &nodes).is_empty());
    }

    #[test]
    fn what_is_down_is_started_and_what_is_frozen_goes_on() {
        let mut nodes = applied("nodes: 3", &[]);
        nodes[0].state = NodeState::Down;
        nodes[1].state = NodeState::Paused;
        let plan = planned("nodes: 3", &nodes);
        assert!(matches!(&plan.steps[..], [Step::Start(_), Step::Unpause(_)]), "{plan:?}");
        assert!(!plan.asks());
        assert!(plan.warnings[0].contains("sky-1 is down"));
    }

    #[test]
    fn who_may_have_what_others_lack_runs_before_it_is_removed() {
        let does = |text: &str, observed: &[Sighting]| -> Vec<String> {
            let plan = planned(text, observed).with_handovers(observed);
            let words = plan.steps.iter().map(|step| {
                let word = format!("{step:?}");
                format!("{} {}", word.split('(').next().unwrap(), step.node().name)
            });
            words.collect()
        };
        let mut five = applied("nodes: 5", &[]);
        for seen in &mut five {
            (seen.state, seen.runs, seen.handle) = (NodeState::Down, false, None);
        }
        let all: Vec<String> = (1..=5).map(|i| format!("Start sky-{i}")).collect();
        let removals = ["Remove sky-4", "Remove sky-5"].map(str::to_owned);
        assert_eq!(does("nodes: 3", &five), [&all[..], &removals].concat());
        // The only one, with another name.
        let renamed = "nodes: [{name: green}]";
        let mut one = five[..1].to_vec();
        assert_eq!(does(renamed, &one), ["Create green", "Start sky-1", "Remove sky-1"]);
        one[0].state = NodeState::Paused;
        assert_eq!(does(renamed, &one), ["Create green", "Unpause sky-1", "Remove sky-1"]);
        // It runs already.
        (one[0].state, one[0].runs) = (NodeState::Down, true);
        assert_eq!(does(renamed, &one), ["Create green", "Remove sky-1"]);
        // Others tell who has the data.
        (five[0].state, five[0].runs) = (NodeState::Up, true);
        let keepers: Vec<&NodeSpec> = five[..4].iter().map(|seen| &seen.node).collect();
        let view = report(&five[0].node, Some(vec![circle(&keepers)])).view;
        five[0].view = Some(view);
        let starts = ["Start sky-2", "Start sky-3", "Start sky-4"].map(str::to_owned);
        assert_eq!(does("nodes: 3", &five), [&starts[..], &removals].concat());
    }

    #[test]
    fn an_existing_node_keeps_its_position_and_port() {
        let nodes = applied("nodes: 3", &[]);
        let moved = inventory("nodes: [{name: sky-1, id: ff, port: 80}, {}, {}]");
        let error = plan(&moved, ProviderKind::Process, "", &nodes).unwrap_err();
        assert_eq!(error.problems.len(), 2, "{error}");
    }

    #[test]
    fn few_nodes_and_few_ports_are_said() {
        assert!(planned("nodes: 2", &[]).warnings[0].contains("2 of 3 nodes"));
        let late = inventory("{nodes: 3, agent: {port: 65534}}");
        assert!(plan(&late, ProviderKind::Process, "", &[]).is_err());
    }
}
