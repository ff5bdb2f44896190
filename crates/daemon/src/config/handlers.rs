//! The setting `handlers`: a list of names for the built-in runtime, or a section `[handlers.NAME]` for each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use wharf_planner::defaults::PrivilegedDevices;
use wharf_pods::HandlerConfig;
use wharf_types::HostPath;

/// The runtime handlers, in addition to the default one.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Handlers {
    /// Names that all stand for the built-in runtime.
    Names(Vec<String>),
    /// A section for each.
    Sections(BTreeMap<String, Handler>),
}

/// One handler.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Handler {
    /// The program of another runtime; empty for the built-in one.
    pub(crate) path: PathBuf,
    /// What comes before each of its commands.
    pub(crate) options: Vec<String>,
    /// The annotations of pods and containers that it is told; `*` at the end stands for anything.
    pub(crate) annotations: Vec<String>,
    /// What its privileged containers have of the machine's devices; without it, what others have.
    pub(crate) privileged_devices: Option<PrivilegedDevices>,
}

impl Default for Handlers {
    fn default() -> Self {
        Self::Names(vec!["wharf".into()])
    }
}

impl<'de> Deserialize<'de> for Handlers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Handlers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names, or sections [handlers.NAME]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, names: A) -> Result<Handlers, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(names)).map(Handlers::Names)
            }

            fn visit_map<A: MapAccess<'de>>(self, sections: A) -> Result<Handlers, A::Error> {
                Deserialize::deserialize(MapAccessDeserializer::new(sections)).map(Handlers::Sections)
            }
        }
        from.deserialize_any(Either)
    }
}

impl Handlers {
    /// Each by its name. Those with a section come beside the name that the built-in runtime has anyway.
    pub(super) fn configs(&self) -> anyhow::Result<BTreeMap<String, HandlerConfig>> {
        let mut configs = BTreeMap::new();
        let mut add = |name: &String, handler: &Handler| {
            ensure!(
                !name.is_empty(),
                "handlers: remove the empty name: the default handler has no name and is always present"
            );
            let config = handler.config().with_context(|| format!("handlers.{name}"))?;
            ensure!(configs.insert(name.clone(), config).is_none(), "handlers: {name:?} is listed twice");
            Ok(())
        };
        match self {
            Self::Names(names) => names.iter().try_for_each(|name| add(name, &Handler::default()))?,
            Self::Sections(sections) => sections.iter().try_for_each(|(name, handler)| add(name, handler))?,
        }
        if let (Self::Sections(sections), Self::Names(own)) = (self, Self::default()) {
            let missing = own.iter().filter(|name| !sections.contains_key(*name));
            missing.into_iter().try_for_each(|name| add(name, &Handler::default()))?;
        }
        Ok(configs)
    }
}

impl Handler {
    fn config(&self) -> anyhow::Result<HandlerConfig> {
        let Self { path, options, annotations, privileged_devices } = self.clone();
        let program = match path.to_str().context("path: it is not UTF-8")? {
            "" => None,
            path => Some(HostPath::new(path).context("path")?),
        };
        if program.is_none() {
            ensure!(options.is_empty(), "options: they are another runtime's, and path is empty");
            ensure!(annotations.is_empty(), "annotations: they are for another runtime, and path is empty");
        }
        Ok(HandlerConfig { program, options, annotations, privileged_devices })
    }
}
