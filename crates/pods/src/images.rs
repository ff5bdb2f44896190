//! What a container needs of its image. What the image says of itself is hostile: it is bounded here.

use wharf_images::{Hold, ImageConfig, Store};
use wharf_types::HostPath;

use crate::error::{Error, Stage};

/// An image as a container uses it.
#[derive(Debug)]
pub(crate) struct ImageView {
    pub(crate) id: String,
    /// By digest where there is one.
    pub(crate) reference: String,
    /// Topmost first.
    pub(crate) layers: Vec<HostPath>,
    config: ImageConfig,
    /// Keeps the layers while the container has them mounted.
    pub(crate) hold: Hold,
}

impl ImageView {
    /// Finds the image that a request names.
    pub(crate) fn find(store: &Store, name: &str) -> Result<Self, Error> {
        let image = store.find(name).ok_or_else(|| Error::NotFound { what: "image", id: name.to_owned() })?;
        let layers = image.layers().iter().map(|layer| HostPath::new(&layer.to_string_lossy()));
        let layers = layers.collect::<Result<_, _>>().stage("naming the image's layers")?;
        let hold =
            store.hold(image.id()).ok_or_else(|| Error::NotFound { what: "image", id: name.to_owned() })?;
        let id = image.id().to_string();
        let reference = image.repo_digests().first().cloned().unwrap_or_else(|| id.clone());
        // The store has bounded each field when it took the image in.
        let config = image.config().admit(Clone::clone);
        Ok(Self { id, reference, layers, config, hold })
    }

    /// The program and its arguments: a request's command replaces the image's entrypoint and its arguments.
    pub(crate) fn command(&self, command: &[String], args: &[String]) -> Vec<String> {
        let (entrypoint, defaults) = if command.is_empty() {
            (&self.config.entrypoint[..], if args.is_empty() { &self.config.cmd[..] } else { args })
        } else {
            (command, args)
        };
        entrypoint.iter().chain(defaults).cloned().collect()
    }

    /// Names and values.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        variables(&self.config.env)
    }

    pub(crate) fn working_dir(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }

    /// User and group, either may be empty.
    pub(crate) fn user(&self) -> (String, String) {
        let (user, group) = self.config.user.split_once(':').unwrap_or((&self.config.user, ""));
        (user.to_owned(), group.to_owned())
    }

    /// Paths that are to be volumes.
    pub(crate) fn volumes(&self) -> &[String] {
        &self.config.volumes
    }

    pub(crate) fn stop_signal(&self) -> &str {
        &self.config.stop_signal
    }
}

/// What has no name or no value is no variable: left out, as elsewhere, and not made one with an empty value.
fn variables(texts: &[String]) -> impl Iterator<Item = (&str, &str)> {
    texts.iter().filter_map(|text| text.split_once('=')).filter(|(name, _value)| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_a_value() {
        let texts = ["A=b=c", "EMPTY=", "NOTHING", "=value", ""].map(str::to_owned);
        assert_eq!(variables(&texts).collect::<Vec<_>>(), [("A", "b=c"), ("EMPTY", "")]);
    }
}
