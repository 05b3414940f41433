//! What there is to know of a cloud before anything is made there.

use super::Servers;
use super::api::Service;
use crate::error::{Error, Result};
use crate::provider::Fact;

impl Servers {
    /// How the login, the catalog and what the inventory names are.
    pub(super) async fn facts(&self) -> Vec<Fact> {
        let api = match self.api().await {
            Ok(api) => api,
            Err(error) => return vec![("cloud", Err(error))],
        };
        let login = format!("{}, in project {}", api.source(), api.project());
        vec![
            ("cloud", Ok(login)),
            ("catalog", self.services().await),
            ("names", self.names().await),
        ]
    }

    async fn services(&self) -> Result<String> {
        let api = self.api().await?;
        let settings = &self.site.openstack;
        let volumes = settings.root_volume_gb.or(settings.data_volume_gb).is_some();
        let mut there = Vec::new();
        let mut missing = Vec::new();
        for service in [Service::Compute, Service::Network, Service::Image, Service::Volume] {
            if api.has(service).await {
                there.push(service.kind());
            } else if service != Service::Volume || volumes {
                missing.push(service.kind());
            }
        }
        if missing.is_empty() {
            return Ok(there.join(", "));
        }
        Err(Error::new(format!("the catalog has no service {}", missing.join(", ")))
            .hint("check `region_name` and `interface` in clouds.yaml, and your roles"))
    }

    /// What the inventory names, with ids.
    async fn names(&self) -> Result<String> {
        let resolved = self.resolved().await?;
        let image = resolved.image.name.as_ref().unwrap_or(&resolved.image.id);
        let mut names = vec![
            format!("image {image} ({})", resolved.image.id),
            format!("flavor {}", resolved.flavor.name),
        ];
        let made = |name: Option<&String>| name.map_or("made by apply", String::as_str).to_owned();
        let network = resolved.network.as_ref().map(|network| &network.name);
        names.push(format!("network {}", made(network)));
        names.push(format!("key pair {}", made(resolved.keypair.as_ref())));
        Ok(names.join(", "))
    }
}
