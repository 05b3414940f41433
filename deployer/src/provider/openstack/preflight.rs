//! What comes with a plan: the resources that will be made, the quotas they take, and what does not
//! fit. Asks only; only what the plan makes counts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::api::{Api, Fault, Service};
use super::marks::Marks;
use super::owned::Owned;
use super::resolve::{Resolved, room};
use crate::error::{Error, Problem, Result};
use crate::inventory::{AntiAffinity, FloatingIps, Openstack};
use crate::node::NodeSpec;
use crate::outlook::{Outlook, Quota, Resource};

/// The quota of servers in one group.
const GROUP_MEMBERS: &str = "server group members";

/// What is made, in the order it is made in, by the names of the quotas it takes.
#[derive(Debug, Default)]
struct Bill {
    resources: Vec<Resource>,
    needs: BTreeMap<&'static str, u64>,
}

impl Bill {
    fn add(&mut self, kind: &str, name: &str, detail: impl Into<String>) {
        let (kind, name, detail) = (kind.to_owned(), name.to_owned(), detail.into());
        self.resources.push(Resource { kind, name, detail });
    }

    fn take(&mut self, quota: &'static str, number: u64) {
        *self.needs.entry(quota).or_default() += number;
    }
}

/// What making `new` nodes comes with.
pub(super) async fn outlook(
    api: &Api,
    settings: &Openstack,
    marks: &Marks,
    resolved: &Resolved,
    owned: &Owned,
    new: &[NodeSpec],
) -> Result<Outlook> {
    if new.is_empty() {
        return Ok(Outlook::default());
    }
    let mut problems = fit(settings, resolved, new);
    if settings.floating_ips != FloatingIps::None {
        problems.extend(super::shared::way_out(api, resolved).await?);
    }
    let bill = bill(settings, marks, resolved, owned, new);
    let mut quotas = quotas(api, &bill.needs).await?;
    // Nova tells how many a group may have, and not how many ours has.
    let members = owned.server_groups.first().map_or(0, |group| group.members.len() as u64);
    for quota in quotas.iter_mut().filter(|quota| quota.what == GROUP_MEMBERS) {
        quota.used = members;
    }
    for quota in quotas.iter().filter(|quota| !quota.suffices()) {
        let limit = quota.limit.unwrap_or_default();
        let mut problem = Problem::new(format!(
            "the quota of {} is too small: {} needed, {} of {limit} used",
            quota.what, quota.need, quota.used
        ));
        problem.hint = Some(if quota.what == GROUP_MEMBERS {
            "ask for a larger quota, or set `openstack.anti_affinity: none`".to_owned()
        } else {
            "ask for a larger quota, or plan fewer or smaller nodes".to_owned()
        });
        problems.push(problem);
    }
    if let Some(error) = Error::of(problems) {
        return Err(error);
    }
    let mut warnings = Vec::new();
    if settings.floating_ips != FloatingIps::None
        && settings.agent_image.is_none()
        && settings.ssh_from.iter().any(|from| from == "0.0.0.0/0" || from == "::/0")
        && resolved.security_group.is_none()
    {
        warnings.push(
            "SSH is open to everyone (with a key): `openstack.ssh_from` narrows it down".to_owned(),
        );
    }
    Ok(Outlook { resources: bill.resources, quotas, warnings })
}

/// What cannot work whatever the quotas are.
fn fit(settings: &Openstack, resolved: &Resolved, new: &[NodeSpec]) -> Vec<Problem> {
    let (image, flavor) = (&resolved.image, &resolved.flavor);
    let name = image.name.as_deref().unwrap_or(&image.id);
    let mut problems = Vec::new();
    let disk = settings.root_volume_gb.map_or(flavor.disk, u64::from);
    // A flavor without a disk lets the image decide, and root volumes have their own size.
    if disk < image.min_disk && (disk > 0 || settings.root_volume_gb.is_some()) {
        problems.push(Problem {
            hint: Some("choose a larger flavor, or set `openstack.root_volume_gb`".to_owned()),
            ..Problem::new(format!(
                "the image {name} needs a disk of {} GiB, and the servers have {disk} GiB",
                image.min_disk
            ))
        });
    }
    if flavor.ram < image.min_ram {
        problems.push(Problem {
            hint: Some("choose a larger flavor".to_owned()),
            ..Problem::new(format!(
                "the image {name} needs {} MiB of memory, and the flavor {} has {} MiB",
                image.min_ram, flavor.name, flavor.ram
            ))
        });
    }
    let cidr = resolved.subnet.as_ref().map_or(settings.cidr.as_str(), |subnet| &subnet.cidr);
    if room(cidr).is_some_and(|room| room < new.len() as u64) {
        problems.push(Problem {
            hint: Some("take a larger network".to_owned()),
            ..Problem::new(format!("{cidr} has no room for {} servers", new.len()))
        });
    }
    let needs_way_out = settings.floating_ips != FloatingIps::None;
    if let (true, Some(router), Some(external)) =
        (needs_way_out, &resolved.router, &resolved.external)
        && router.external_gateway_info["network_id"].as_str() != Some(&external.id)
    {
        problems.push(Problem {
            hint: Some("set its gateway, or name another router".to_owned()),
            ..Problem::new(format!(
                "the router {} has no gateway to the external network {}",
                router.name, external.name
            ))
        });
    }
    problems
}

fn bill(
    settings: &Openstack,
    marks: &Marks,
    resolved: &Resolved,
    owned: &Owned,
    new: &[NodeSpec],
) -> Bill {
    let mut bill = Bill::default();
    let name = marks.shared_name();
    let nodes = new.len() as u64;
    if resolved.network.is_none() {
        if owned.networks.is_empty() {
            bill.add("network", &name, "");
            bill.take("networks", 1);
        }
        if owned.subnets.is_empty() {
            bill.add("subnet", &name, &settings.cidr);
            bill.take("subnets", 1);
            // The cloud's own, for DHCP.
            bill.take("ports", 1);
        }
        if resolved.router.is_none() && resolved.external.is_some() && owned.routers.is_empty() {
            let external = resolved.external.as_ref().map_or("", |external| &external.name);
            bill.add("router", &name, format!("to {external}"));
            bill.take("routers", 1);
            bill.take("ports", 1);
        }
    }
    if resolved.security_group.is_none() && owned.security_groups.is_empty() {
        let ports = new.iter().map(|node| node.port).collect();
        let rules = super::shared::rules(settings, &ports, &name);
        bill.add("security group", &name, "");
        bill.take("security groups", 1);
        // Neutron makes two itself.
        bill.take("security group rules", rules.len() as u64 + 2);
    }
    if settings.anti_affinity != AntiAffinity::None {
        if owned.server_groups.is_empty() {
            let how = if settings.anti_affinity == AntiAffinity::Hard { "hard" } else { "soft" };
            bill.add("server group", &marks.tag(), format!("{how} anti-affinity"));
            bill.take("server groups", 1);
        }
        bill.take(GROUP_MEMBERS, nodes);
    }
    if resolved.keypair.is_none() && owned.keypairs.is_empty() {
        bill.add("key pair", &name, "");
        bill.take("key pairs", 1);
    }
    for node in new.iter().filter(|node| owned.port(marks, &node.name).is_none()) {
        bill.add("port", &node.name, "");
        bill.take("ports", 1);
    }
    for node in new {
        if let Some(size) = settings.data_volume_gb {
            bill.add("volume", &node.name, format!("{size} GiB of data"));
            bill.take("volumes", 1);
            bill.take("volume gigabytes", size.into());
        }
        if let Some(size) = settings.root_volume_gb {
            bill.take("volumes", 1);
            bill.take("volume gigabytes", size.into());
        }
        let zone = node.zone.as_ref().map_or_else(String::new, |zone| format!(" in {zone}"));
        let image = resolved.image.name.as_deref().unwrap_or(&resolved.image.id);
        bill.add("server", &node.name, format!("{} of {image}{zone}", resolved.flavor.name));
    }
    bill.take("instances", nodes);
    bill.take("cores", nodes * resolved.flavor.vcpus);
    bill.take("RAM (MiB)", nodes * resolved.flavor.ram);
    let wanted = match settings.floating_ips {
        FloatingIps::None => 0,
        FloatingIps::One => 1_u64.saturating_sub(owned.floating_ips.len() as u64),
        FloatingIps::All => nodes,
    };
    for node in new.iter().take(usize::try_from(wanted).unwrap_or(usize::MAX)) {
        let external = resolved.external.as_ref().map_or("", |external| &external.name);
        bill.add("floating IP", &node.name, format!("from {external}"));
    }
    if wanted > 0 {
        bill.take("floating IPs", wanted);
    }
    bill
}

/// Where Nova's limits are: (our name, most, used).
const COMPUTE: &[(&str, &str, &str)] = &[
    ("instances", "maxTotalInstances", "totalInstancesUsed"),
    ("cores", "maxTotalCores", "totalCoresUsed"),
    ("RAM (MiB)", "maxTotalRAMSize", "totalRAMUsed"),
    ("server groups", "maxServerGroups", "totalServerGroupsUsed"),
    (GROUP_MEMBERS, "maxServerGroupMembers", ""),
    ("key pairs", "maxTotalKeypairs", ""),
];

/// Where Neutron's are.
const NETWORK: &[(&str, &str)] = &[
    ("networks", "network"),
    ("subnets", "subnet"),
    ("routers", "router"),
    ("ports", "port"),
    ("security groups", "security_group"),
    ("security group rules", "security_group_rule"),
    ("floating IPs", "floatingip"),
];

/// Where Cinder's are.
const VOLUME: &[(&str, &str, &str)] = &[
    ("volumes", "maxTotalVolumes", "totalVolumesUsed"),
    ("volume gigabytes", "maxTotalVolumeGigabytes", "totalGigabytesUsed"),
];

/// The quotas that something is needed of, with what is used and the limit.
async fn quotas(api: &Api, needs: &BTreeMap<&'static str, u64>) -> Result<Vec<Quota>, Error> {
    let details = format!("quotas/{}/details.json", api.project());
    let (compute, network) = futures_util::join!(
        api.get(Service::Compute, "limits"),
        api.get(Service::Network, &details),
    );
    let compute = compute?["limits"]["absolute"].take();
    // Some clouds hide the details: then the servers' answers have to do.
    let network = match network {
        Ok(mut answer) => answer["quota"].take(),
        Err(fault) if fault.is(404) || fault.is(403) => Value::Null,
        Err(fault) => return Err(fault.into()),
    };
    let volume =
        if needs.contains_key("volumes") { volume_limits(api).await? } else { Value::Null };
    let mut quotas = Vec::new();
    let mut add = |what: &str, need: Option<&u64>, used: &Value, most: &Value| {
        if let (Some(need), Some(most)) = (need, most.as_i64()) {
            let used = used.as_u64().unwrap_or_default();
            // -1 stands for no limit.
            let limit = u64::try_from(most).ok();
            quotas.push(Quota { what: what.to_owned(), need: *need, used, limit });
        }
    };
    for (what, most, used) in COMPUTE {
        add(what, needs.get(what), &compute[*used], &compute[*most]);
    }
    for (what, key) in NETWORK {
        add(what, needs.get(what), &network[*key]["used"], &network[*key]["limit"]);
    }
    for (what, most, used) in VOLUME {
        add(what, needs.get(what), &volume[*used], &volume[*most]);
    }
    Ok(quotas)
}

async fn volume_limits(api: &Api) -> Result<Value, Error> {
    if !api.has(Service::Volume).await {
        return Err(Error::new("the cloud has no volume service").hint(
            "take `openstack.root_volume_gb` and `openstack.data_volume_gb` out of the inventory",
        ));
    }
    let answer: Result<Value, Fault> = api.get(Service::Volume, "limits").await;
    Ok(answer?["limits"]["absolute"].take())
}
