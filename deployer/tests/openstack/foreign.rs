//! Things of somebody else that look like ours. A ring must neither use nor touch them.

use serde_json::{Value, json};

use crate::lab::Cloud;

/// What was made, newest last: (service, path). Removed when this is dropped.
pub(crate) struct Foreign {
    user: Cloud,
    /// Another tenant.
    other: Cloud,
    made: Vec<(bool, &'static str, String)>,
}

impl Foreign {
    /// Makes one of everything, beside a ring that is to be made.
    pub(crate) async fn make(user: Cloud, other: Cloud, ring: &str) -> Self {
        let mut foreign = Self { user, other, made: Vec::new() };
        let shared = format!("sky-{ring}");
        let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();

        // In our own project, by the very names, but without the mark.
        let network = foreign.network("networks", "network", json!({"name": shared})).await;
        let subnet = json!({
            "name": shared, "network_id": network, "ip_version": 4, "cidr": "10.199.0.0/24",
            "enable_dhcp": false, "description": format!("my sky.ring={ring}"),
        });
        foreign.network("subnets", "subnet", subnet).await;
        let port = json!({
            "name": format!("{ring}-1"), "network_id": network,
            "description": format!("sky.ring={ring}2 sky.node={ring}-1 sky.id=1 sky.port=4321"),
        });
        foreign.network("ports", "port", port).await;
        foreign.network("routers", "router", json!({"name": shared})).await;
        foreign.network("security-groups", "security_group", json!({"name": shared})).await;
        // A ring whose name begins with ours.
        let public = foreign.user.list("network", "networks?name=public", "networks").await;
        let floating = json!({
            "floating_network_id": public[0]["id"], "description": format!("sky.ring={ring}2"),
        });
        foreign.network("floatingips", "floatingip", floating).await;
        let group = json!({"name": format!("sky.ring={ring}2"), "policy": "soft-anti-affinity"});
        let group = foreign.user.make("compute", "os-server-groups", "server_group", group).await;
        let path = format!("os-server-groups/{}", text(&group, "id"));
        foreign.made.push((false, "compute", path));
        let key =
            json!({"name": format!("my-{shared}"), "public_key": KEY.to_owned() + ring + "2"});
        foreign.user.make("compute", "os-keypairs", "keypair", key).await;
        foreign.made.push((false, "compute", format!("os-keypairs/my-{shared}")));
        for (name, description) in [
            (format!("{ring}-1"), String::new()),
            (format!("my-{ring}-1"), format!("x sky.ring={ring} sky.node={ring}-1")),
        ] {
            foreign.server(&name, &description).await;
        }

        // Of another tenant, with the mark and all.
        let group = json!({"name": shared, "description": format!("sky.ring={ring}")});
        let path = "security-groups";
        let group = foreign.other.make("network", path, "security_group", group).await;
        foreign.made.push((true, "network", format!("{path}/{}", text(&group, "id"))));
        foreign
    }

    async fn network(&mut self, path: &'static str, key: &str, body: Value) -> String {
        let made = self.user.make("network", path, key, body).await;
        let id = made["id"].as_str().unwrap().to_owned();
        self.made.push((false, "network", format!("{path}/{id}")));
        id
    }

    async fn server(&mut self, name: &str, description: &str) {
        let one = async |service, path: &str, key: &str| -> String {
            let found = self.user.list(service, path, key).await;
            found.first().unwrap()["id"].as_str().unwrap().to_owned()
        };
        let flavors = self.user.list("compute", "flavors", "flavors").await;
        let flavor = flavors.iter().find(|flavor| flavor["name"] == "lab.tiny").unwrap();
        let body = json!({
            "name": name, "description": description, "networks": "none",
            "flavorRef": flavor["id"],
            "imageRef": one("image", "images?name=lab-blank", "images").await,
        });
        let made = self.user.make("compute", "servers", "server", body).await;
        let path = format!("servers/{}", made["id"].as_str().unwrap());
        self.made.push((false, "compute", path.clone()));
        loop {
            let server = self.user.get("compute", &path).await;
            match server["server"]["status"].as_str().unwrap() {
                "ACTIVE" => return,
                "BUILD" => tokio::time::sleep(std::time::Duration::from_millis(300)).await,
                other => panic!("the server {name} is {other}"),
            }
        }
    }

    /// All of it, as it is now.
    pub(crate) async fn look(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (is_other, service, path) in &self.made {
            let cloud = if *is_other { &self.other } else { &self.user };
            all.push(cloud.get(service, path).await);
        }
        all
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        crate::run(async {
            for (is_other, service, path) in self.made.iter().rev() {
                let cloud = if *is_other { &self.other } else { &self.user };
                cloud.remove(service, path).await;
            }
        });
    }
}

/// A key that nobody has the other half of; the comment follows.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl sky.ring=";
