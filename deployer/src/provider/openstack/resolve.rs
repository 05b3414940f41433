//! What the inventory names, by id: image, flavor, network and so on. A name that fits nothing or
//! several things is an error that lists the candidates; all problems are reported together.

use std::net::Ipv4Addr;

use serde::Deserialize;
use serde_json::Value;

use super::api::{Api, Fault, Service};
use super::owned::{self, Network, Router, SecurityGroup, Subnet};
use crate::error::{Error, Problem, Result};
use crate::inventory::{FloatingIps, Openstack};

/// What the inventory names.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) image: Image,
    pub(super) flavor: Flavor,
    /// The network to use; none: it is made.
    pub(super) network: Option<Network>,
    /// The subnet of that network.
    pub(super) subnet: Option<Subnet>,
    /// The router to use; none: it is made.
    pub(super) router: Option<Router>,
    /// Where floating IPs and the way out come from; none if the cloud has no such network.
    pub(super) external: Option<Network>,
    pub(super) security_group: Option<SecurityGroup>,
    pub(super) keypair: Option<String>,
}

/// An image of servers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    pub(super) id: String,
    pub(super) name: Option<String>,
    /// GiB.
    pub(super) min_disk: u64,
    /// MiB.
    pub(super) min_ram: u64,
    pub(super) status: String,
    pub(super) created_at: String,
}

/// A flavor.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Flavor {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) vcpus: u64,
    /// MiB.
    pub(super) ram: u64,
    /// GiB.
    pub(super) disk: u64,
}

/// A candidate for a name: its id, its name, and what else tells it apart.
type Candidate<T> = (String, String, String, T);

/// Finds everything the inventory names.
pub(super) async fn resolve(api: &Api, settings: &Openstack) -> Result<Resolved> {
    let (images, flavors, networks, subnets, routers, groups, keypairs, zones) = futures_util::try_join!(
        images(api, settings.image.as_deref().unwrap_or_default()),
        api.list(Service::Compute, "flavors/detail", "flavors"),
        api.list(Service::Network, "networks", "networks"),
        api.list(Service::Network, "subnets", "subnets"),
        owned::ours(api, "routers", "routers"),
        owned::ours(api, "security-groups", "security_groups"),
        api.list(Service::Compute, "os-keypairs", "keypairs"),
        api.list(Service::Compute, "os-availability-zone", "availabilityZoneInfo"),
    )?;
    let mut problems = Vec::new();
    let missing = |key: &str| Problem::new(format!("`openstack.{key}` is missing"));

    let candidates = owned::items::<Image>(images).into_iter().map(|image| {
        let made = image.created_at.get(..10).unwrap_or_default().to_owned();
        (image.id.clone(), image.name.clone().unwrap_or_default(), made, image)
    });
    let image = match &settings.image {
        Some(name) => pick("image", name, candidates.collect(), &mut problems),
        None => none(&mut problems, missing("image")),
    };
    if let Some(image) = image.as_ref().filter(|image| image.status != "active") {
        let name = image.name.as_deref().unwrap_or_default();
        problems.push(Problem::new(format!("the image {name} is {}, not active", image.status)));
    }
    let candidates = owned::items::<Flavor>(flavors).into_iter().map(|flavor| {
        let size = format!("{} vCPUs, {} MiB, {} GiB", flavor.vcpus, flavor.ram, flavor.disk);
        (flavor.id.clone(), flavor.name.clone(), size, flavor)
    });
    let flavor = match &settings.flavor {
        Some(name) => pick("flavor", name, candidates.collect(), &mut problems),
        None => none(&mut problems, missing("flavor")),
    };

    let is_external = |value: &&Value| value["router:external"].as_bool() == Some(true);
    let externals: Vec<Value> = networks.iter().filter(is_external).cloned().collect();
    let externals: Vec<Network> = owned::items(externals);
    let network = settings.network.as_ref().and_then(|name| {
        let candidates = owned::items::<Network>(networks).into_iter();
        let candidates = candidates.map(|n| (n.id.clone(), n.name.clone(), String::new(), n));
        pick("network", name, candidates.collect(), &mut problems)
    });
    let subnet = network.as_ref().and_then(|network| {
        let of_it = owned::items::<Subnet>(subnets).into_iter();
        let of_it: Vec<Subnet> = of_it.filter(|s| s.network_id == network.id).collect();
        only_subnet(network, of_it, settings.subnet.as_deref(), &mut problems)
    });
    let router = settings.router.as_ref().and_then(|name| {
        let candidates = owned::items::<Router>(routers).into_iter();
        let candidates = candidates.map(|r| (r.id.clone(), r.name.clone(), String::new(), r));
        pick("router", name, candidates.collect(), &mut problems)
    });
    let external = external(externals, settings, &mut problems);
    let security_group = settings.security_group.as_ref().and_then(|name| {
        let candidates = owned::items::<SecurityGroup>(groups).into_iter();
        let candidates = candidates.map(|g| (g.id.clone(), g.name.clone(), String::new(), g));
        pick("security group", name, candidates.collect(), &mut problems)
    });
    let keypair = settings.keypair.as_ref().and_then(|name| {
        let names = keypairs.iter().filter_map(|item| item["keypair"]["name"].as_str());
        let candidates = names.map(|n| (n.to_owned(), n.to_owned(), String::new(), n.to_owned()));
        pick("key pair", name, candidates.collect(), &mut problems)
    });
    known_zones(&zones, &settings.availability_zones, &mut problems);

    match (image, flavor, Error::of(problems)) {
        (Some(image), Some(flavor), None) => Ok(Resolved {
            image,
            flavor,
            network,
            subnet,
            router,
            external,
            security_group,
            keypair,
        }),
        (_, _, Some(error)) => Err(error),
        _ => Err(Error::new("image or flavor cannot be found")),
    }
}

fn none<T>(problems: &mut Vec<Problem>, problem: Problem) -> Option<T> {
    problems.push(problem);
    None
}

/// Glance filters names exactly; an id is asked for by itself.
async fn images(api: &Api, wanted: &str) -> Result<Vec<Value>, Fault> {
    let looks_like_id = wanted.len() == 36 && wanted.bytes().filter(|b| *b == b'-').count() == 4;
    if looks_like_id {
        match api.get(Service::Image, &format!("images/{wanted}")).await {
            Ok(image) => return Ok(vec![image]),
            Err(fault) if fault.is(404) => {}
            Err(fault) => return Err(fault),
        }
    }
    api.list(Service::Image, "images?limit=200", "images").await
}

/// The one candidate with this id, or else this exact name.
fn pick<T>(
    kind: &str,
    wanted: &str,
    candidates: Vec<Candidate<T>>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut names: Vec<String> = candidates.iter().map(|(_, name, ..)| name.clone()).collect();
    let mut fitting = Vec::new();
    for candidate in candidates {
        if candidate.0 == wanted {
            return Some(candidate.3);
        }
        if candidate.1 == wanted {
            fitting.push(candidate);
        }
    }
    if fitting.len() == 1 {
        return fitting.pop().map(|candidate| candidate.3);
    }
    let mut problem = if fitting.is_empty() {
        Problem::new(format!("there is no {kind} {wanted}"))
    } else {
        let number = fitting.len();
        Problem::new(format!("{number} things are called {wanted}, and one {kind} is needed"))
    };
    if fitting.is_empty() {
        names.sort();
        names.dedup();
        names.truncate(20);
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        problem.hint = Some(format!("those you can use: {known}"));
    } else {
        let of = |(id, _, more, _): &Candidate<T>| format!("{id} {more}").trim_end().to_owned();
        problem.causes = fitting.iter().map(of).collect();
        problem.hint = Some("write the id of the one you mean instead of the name".to_owned());
    }
    problems.push(problem);
    None
}

/// The subnet that is named, or the only one; IPv4, because that is what every guest has.
fn only_subnet(
    network: &Network,
    subnets: Vec<Subnet>,
    wanted: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Option<Subnet> {
    let candidate = |s: Subnet| (s.id.clone(), s.name.clone(), s.cidr.clone(), s);
    if let Some(wanted) = wanted {
        return pick("subnet", wanted, subnets.into_iter().map(candidate).collect(), problems);
    }
    let mut subnets: Vec<Subnet> = subnets.into_iter().filter(|s| s.ip_version == 4).collect();
    if subnets.len() == 1 {
        return subnets.pop();
    }
    let name = &network.name;
    let mut problem =
        Problem::new(format!("the network {name} has {} IPv4 subnets", subnets.len()));
    problem.causes = subnets.iter().map(|s| format!("{} {} {}", s.id, s.name, s.cidr)).collect();
    problem.hint = Some("name one of them at `openstack.subnet`".to_owned());
    problems.push(problem);
    None
}

/// The external network that is named, or the only one. Without any, a ring can live as long as it
/// needs no floating IP.
fn external(
    mut externals: Vec<Network>,
    settings: &Openstack,
    problems: &mut Vec<Problem>,
) -> Option<Network> {
    let candidate = |n: Network| (n.id.clone(), n.name.clone(), String::new(), n);
    if let Some(name) = &settings.external_network {
        let candidates = externals.into_iter().map(candidate).collect();
        return pick("external network", name, candidates, problems);
    }
    let needed = settings.floating_ips != FloatingIps::None;
    match externals.len() {
        1 => externals.pop(),
        0 if needed => {
            let mut problem = Problem::new("the cloud has no external network for floating IPs");
            problem.hint = Some(
                "set `openstack.floating_ips: none` if this machine reaches the servers' own \
                 addresses"
                    .to_owned(),
            );
            problems.push(problem);
            None
        }
        0 => None,
        // Neither floating IPs nor a router of ours: nothing needs to be chosen.
        _ if !needed && (settings.network.is_some() || settings.router.is_some()) => None,
        number => {
            let mut problem = Problem::new(format!("the cloud has {number} external networks"));
            problem.causes = externals.iter().map(|n| format!("{} {}", n.id, n.name)).collect();
            problem.hint = Some("name one of them at `openstack.external_network`".to_owned());
            problems.push(problem);
            None
        }
    }
}

/// Every zone of the inventory must be one that servers can be put in.
fn known_zones(zones: &[Value], wanted: &[String], problems: &mut Vec<Problem>) {
    let open = |zone: &&Value| zone["zoneState"]["available"].as_bool() != Some(false);
    let known: Vec<&str> =
        zones.iter().filter(open).filter_map(|zone| zone["zoneName"].as_str()).collect();
    for zone in wanted.iter().filter(|zone| !known.contains(&zone.as_str())) {
        let mut problem = Problem::new(format!("there is no availability zone {zone}"));
        problem.hint = Some(format!("those there are: {}", known.join(", ")));
        problems.push(problem);
    }
}

/// How many addresses a network has for ports: without those of the network, of the gateway and of
/// DHCP, and without broadcast.
pub(super) fn room(cidr: &str) -> Option<u64> {
    let (first, length) = cidr.split_once('/')?;
    first.parse::<Ipv4Addr>().ok()?;
    let length: u32 = length.parse().ok()?;
    Some(1_u64.checked_shl(32_u32.checked_sub(length)?)?.saturating_sub(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(wanted: &str) -> (Option<u8>, Vec<Problem>) {
        let candidate =
            |id: &str, name: &str, n| (id.to_owned(), name.to_owned(), "x".to_owned(), n);
        let candidates = vec![
            candidate("1", "debian", 1),
            candidate("2", "twins", 2),
            candidate("3", "twins", 3),
            candidate("4", "2", 4),
        ];
        let mut problems = Vec::new();
        (pick("image", wanted, candidates, &mut problems), problems)
    }

    #[test]
    fn names_are_exact_and_ambiguity_lists_the_candidates() {
        assert_eq!(picked("debian").0, Some(1));
        assert_eq!(picked("2").0, Some(2), "an id counts before a name");
        let (none, problems) = picked("twins");
        assert_eq!((none, problems[0].causes.len()), (None, 2), "{problems:?}");
        let (none, problems) = picked("deb");
        assert_eq!(none, None);
        assert!(problems[0].hint.as_ref().unwrap().contains("debian"), "{problems:?}");
    }

    #[test]
    fn networks_have_room() {
        assert_eq!(room("10.0.0.0/24"), Some(252));
        assert_eq!(room("10.0.0.0/28"), Some(12));
        assert_eq!(room("10.0.0.0"), None);
    }
}
