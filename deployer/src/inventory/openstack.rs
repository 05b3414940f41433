//! The `openstack` section of an inventory: which cloud, what the servers are made of, what is used
//! and what is made.

use serde::{Deserialize, Deserializer, Serialize};

use super::keys::canonical_network;

/// Settings of the OpenStack provider. Whatever is named is used and never changed or deleted; what
/// is not named is made, belongs to the ring, and goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Openstack {
    /// The entry of clouds.yaml; `OS_CLOUD`, then the other `OS_` variables, if not given.
    pub cloud: Option<String>,
    /// The image of the servers, by id or exact name.
    pub image: Option<String>,
    /// The flavor of the servers, by id or exact name.
    pub flavor: Option<String>,
    /// The network, by id or exact name; made if not given.
    pub network: Option<String>,
    /// The subnet of that network, needed where it has several.
    pub subnet: Option<String>,
    /// The addresses of a network that is made.
    #[serde(deserialize_with = "network")]
    pub cidr: String,
    /// The name servers of a network that is made.
    pub dns: Vec<String>,
    /// The router of a network that is made; made if not given.
    pub router: Option<String>,
    /// The network that floating IPs come from; needed where there are several.
    pub external_network: Option<String>,
    /// Which servers get a floating IP.
    pub floating_ips: FloatingIps,
    /// The security group of the servers; made if not given.
    pub security_group: Option<String>,
    /// Networks (CIDR) whose clients may use the agents; the servers themselves always may.
    #[serde(deserialize_with = "networks")]
    pub allow_from: Vec<String>,
    /// Networks (CIDR) that may use SSH.
    #[serde(deserialize_with = "networks")]
    pub ssh_from: Vec<String>,
    /// The key pair of the servers; made if not given.
    pub keypair: Option<String>,
    /// The private key that belongs to the key pair; ssh finds one by itself if not given.
    pub ssh_key: Option<String>,
    /// The user that ssh logs in as.
    pub ssh_user: String,
    /// How hard the scheduler must try to keep servers on different hypervisors.
    pub anti_affinity: AntiAffinity,
    /// Availability zones for the servers, alternating along the ring; that of the cloud if empty.
    pub availability_zones: Vec<String>,
    /// The size of a root volume in GiB; servers boot from the disk of their flavor if not given.
    pub root_volume_gb: Option<u32>,
    /// The size of a volume for the data of each agent in GiB; it lies on the root disk if not given.
    pub data_volume_gb: Option<u32>,
    /// The type of the volumes; that of the cloud if not given.
    pub volume_type: Option<String>,
    /// Whether servers get their configuration on a drive rather than over the network.
    pub config_drive: bool,
    /// An image of the agent in a registry that servers pull from; sent by this program if not given.
    pub agent_image: Option<String>,
}

impl Default for Openstack {
    fn default() -> Self {
        Self {
            cloud: None,
            image: None,
            flavor: None,
            network: None,
            subnet: None,
            cidr: "10.64.0.0/24".to_owned(),
            dns: Vec::new(),
            router: None,
            external_network: None,
            floating_ips: FloatingIps::default(),
            security_group: None,
            allow_from: Vec::new(),
            ssh_from: vec!["0.0.0.0/0".to_owned()],
            keypair: None,
            ssh_key: None,
            ssh_user: "debian".to_owned(),
            anti_affinity: AntiAffinity::default(),
            availability_zones: Vec::new(),
            root_volume_gb: None,
            data_volume_gb: None,
            volume_type: None,
            config_drive: true,
            agent_image: None,
        }
    }
}

impl Openstack {
    /// A network (CIDR) in the one form that all are compared in.
    pub(crate) fn network(text: &str) -> String {
        // The checker refuses what is no network, and what a cloud says stays as it is.
        canonical_network(text).unwrap_or_else(|| text.to_owned())
    }
}

fn network<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| Openstack::network(&text))
}

fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    Ok(texts.iter().map(|text| Openstack::network(text)).collect())
}

/// Which servers get a floating IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatingIps {
    /// None: this machine reaches the servers' own addresses.
    None,
    /// One server, through which this machine reaches the others.
    #[default]
    One,
    /// Each.
    All,
}

/// How hard the scheduler must try to keep servers on different hypervisors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AntiAffinity {
    /// As well as it can.
    #[default]
    Soft,
    /// A server that cannot be kept apart is not made.
    Hard,
    /// Not at all.
    None,
}
