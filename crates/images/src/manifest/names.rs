//! The names that the index of an archive gives its images, as annotations.

use serde_json::Value;

/// The whole name of an image, as containerd, Docker and BuildKit write it.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// A tag or a whole name, whichever the tool takes the specification to mean.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The name in an entry's annotations. A tag says nothing about the repository, so it is no name.
pub(super) fn of(annotations: Option<Value>) -> Option<String> {
    let annotations = annotations?;
    let text = |key: &str| annotations[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    text(IMAGE_NAME).or_else(|| text(REF_NAME).filter(|text| text.contains(['/', ':'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_whole_or_none() {
        let name = |key: &str, value: Value| of(Some(serde_json::json!({ key: value })));
        assert_eq!(
            name(IMAGE_NAME, "docker.io/library/a:1".into()).as_deref(),
            Some("docker.io/library/a:1")
        );
        assert_eq!(name(REF_NAME, "a:1".into()).as_deref(), Some("a:1"));
        assert_eq!(name(REF_NAME, "b.c/a".into()).as_deref(), Some("b.c/a"));
        assert_eq!(name(REF_NAME, "latest".into()), None);
        assert_eq!(name(IMAGE_NAME, 7.into()), None);
        assert_eq!((of(None), of(Some(Value::from("x")))), (None, None));
        let both = serde_json::json!({ REF_NAME: "b:2", IMAGE_NAME: "a:1" });
        assert_eq!(of(Some(both)).as_deref(), Some("a:1"));
    }
}
