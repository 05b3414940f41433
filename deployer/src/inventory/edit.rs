//! Changes of an inventory's text in place: what people wrote around the values stays.

use super::ProviderChoice;

/// The inventory with every key, its default and an explanation.
pub(super) const SHIPPED: &str = include_str!("../../../inventory.yaml");

/// What a new inventory has instead of the values of the shipped one.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Wishes {
    /// How many nodes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=super::keys::MOST_NODES))]
    pub nodes: Option<u64>,
    /// Where the nodes live
    #[arg(long)]
    pub provider: Option<ProviderChoice>,
    /// The name of the ring
    #[arg(long, value_parser = ring_name)]
    pub name: Option<String>,
}

fn ring_name(text: &str) -> Result<String, String> {
    super::keys::name(text).map_or_else(|| Ok(text.to_owned()), Err)
}

impl Wishes {
    /// The shipped inventory with these values; none if it does not have their keys.
    pub fn inventory(&self) -> Option<String> {
        let mut text = SHIPPED.to_owned();
        if let Some(name) = &self.name {
            // Some names, such as `null`, need quotes.
            let name = serde_yaml::to_string(name).ok()?;
            text = with_value(&text, &["ring", "name"], name.trim_end())?;
        }
        if let Some(provider) = self.provider {
            text = {
                let word = serde_yaml::to_string(&provider).ok()?;
                with_value(&text, &["provider"], word.trim_end())?
            };
            if provider == ProviderChoice::Openstack {
                for (key, _) in super::keys::SERVERS_NEED {
                    text = text.replacen(&format!("# {key}: "), &format!("{key}: "), 1);
                }
            }
        }
        if let Some(nodes) = self.nodes {
            text = with_value(&text, &["nodes"], &nodes.to_string())?;
        }
        Some(text)
    }
}

/// The text with another value at a path of keys; none if there is no plain value.
pub(super) fn with_value(text: &str, path: &[&str], value: &str) -> Option<String> {
    let root = marked_yaml::parse_yaml(0, text).ok()?;
    let (last, sections) = path.split_last()?;
    let map = sections.iter().try_fold(root.as_mapping()?, |map, key| map.get_mapping(key))?;
    let scalar = map.get_scalar(last)?;
    let start = scalar.span().start()?.character();
    let start = text.char_indices().nth(start)?.0;
    let rest = text[start..].strip_prefix(scalar.as_str())?;
    Some(format!("{}{value}{rest}", &text[..start]))
}
