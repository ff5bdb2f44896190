//! `wharf images`, `wharf tag` and `wharf rmi`.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use wharf_cri_api::admin::{TagRequest, UntagRequest};
use wharf_cri_api::v1::{Image, ImageSpec, ListImagesRequest, RemoveImageRequest};
use wharf_types::Reference;

use crate::args::ImageName;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::Listing;
use crate::output::{Output, Row};
use crate::remove::Force;
use crate::stop::each;
use crate::units;

/// A row of `wharf images`: one name of an image.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageRow {
    image: String,
    tag: String,
    id: String,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    digests: Vec<String>,
}

impl Row for ImageRow {
    const HEADINGS: &'static [&'static str] = &["IMAGE", "TAG", "ID", "SIZE"];

    fn cells(&self) -> Vec<String> {
        let (image, tag) = (self.image.clone(), self.tag.clone());
        vec![image, tag, units::short(&self.id).to_owned(), units::size(self.size_bytes)]
    }
}

const NONE: &str = "<none>";

async fn all(daemon: &mut Daemon) -> Result<Vec<Image>, Error> {
    let answer = daemon.images.list_images(ListImagesRequest::default()).await;
    Ok(answer.map_err(Error::call("listing the images"))?.into_inner().images)
}

pub(crate) async fn list(daemon: &mut Daemon, output: Output) -> Result<(), Error> {
    let mut rows: Vec<_> = all(daemon).await?.iter().flat_map(rows).collect();
    rows.sort_by(|one, other| (&one.image, &one.tag).cmp(&(&other.image, &other.tag)));
    output.rows(&rows)
}

/// A row for each tag of an image, or a single one if it has only digests or no name at all.
fn rows(image: &Image) -> Vec<ImageRow> {
    let row = |name: &str, tag: &str| ImageRow {
        image: name.to_owned(),
        tag: tag.to_owned(),
        id: image.id.clone(),
        size_bytes: image.size,
        digests: image.repo_digests.clone(),
    };
    if image.repo_tags.is_empty() {
        let name = image.repo_digests.first().and_then(|digest| digest.split_once('@'));
        return vec![row(name.map_or(NONE, |(name, _digest)| name), NONE)];
    }
    // The last colon: an earlier one belongs to the registry's port.
    let split = |name: &String| {
        let (name, tag) = name.rsplit_once(':').unwrap_or((name, NONE));
        row(name, tag)
    };
    image.repo_tags.iter().map(split).collect()
}

pub(crate) async fn remove(
    daemon: &mut Daemon,
    output: Output,
    names: &[String],
    force: Force,
) -> Result<(), Error> {
    let (images, listing) = (all(daemon).await?, daemon.listing().await?);
    // One after another: which names an image still has depends on those before.
    let (whole, mut gone) = (wholly_named(&images, names), HashSet::new());
    let removes = async {
        let mut results = Vec::new();
        for name in names {
            let of_whole = whole.get(name.as_str()).copied();
            if of_whole.is_some_and(|id| gone.contains(id)) {
                results.push(Ok(()));
                continue;
            }
            let result = match of_whole {
                Some(id) => whole_image(daemon, &listing, (name, id), force).await,
                None => one(daemon, &images, &listing, name, force).await,
            };
            gone.extend(of_whole.filter(|_| result.is_ok()));
            results.push(result);
        }
        results
    };
    each(output, names, removes).await
}

/// What `wharf tag --json` prints.
#[derive(Debug, Serialize)]
struct Tagged {
    image: String,
    name: String,
}

pub(crate) async fn tag(
    daemon: &mut Daemon,
    output: Output,
    image: String,
    name: ImageName,
) -> Result<(), Error> {
    let ImageName(name) = name;
    let found = match daemon.image(&image).await? {
        Some(_) => image.clone(),
        None => by_beginning(&all(daemon).await?, &image)?,
    };
    let tagged = daemon.admin.tag(TagRequest { image: found, name: name.clone() }).await;
    tagged.map_err(Error::call(format!("tagging the image {image}")))?;
    let people = format!("{name}\n");
    output.result(&Tagged { image, name }, &people)
}

/// The tag by which an image with several is named. Only this name is then removed.
fn one_of_several(image: &Image, name: &str) -> Option<String> {
    let tag = name.parse::<Reference>().ok()?.tagged()?;
    (image.repo_tags.len() > 1 && image.repo_tags.contains(&tag)).then_some(tag)
}

/// The ids of the images of which every tag is among these names, by these names. They are removed whole: without room
/// on the disk, that works where a record with fewer names cannot be written.
fn wholly_named<'a>(images: &'a [Image], names: &'a [String]) -> HashMap<&'a str, &'a str> {
    let tags: Vec<(&str, String)> = names
        .iter()
        .filter_map(|name| Some((name.as_str(), name.parse::<Reference>().ok()?.tagged()?)))
        .collect();
    let is_named = |tag: &String| tags.iter().any(|(_, named)| named == tag);
    let whole =
        images.iter().filter(|image| image.repo_tags.len() > 1 && image.repo_tags.iter().all(is_named));
    let names_of = |image: &'a Image| {
        let own = tags.iter().filter(|(_, tag)| image.repo_tags.contains(tag));
        own.map(|(name, _)| (*name, image.id.as_str())).collect::<Vec<_>>()
    };
    whole.flat_map(names_of).collect()
}

/// Removes a name, or the image if that is its only one.
async fn one(
    daemon: &mut Daemon,
    images: &[Image],
    listing: &Listing,
    name: &str,
    force: Force,
) -> Result<(), Error> {
    let id = match daemon.image(name).await? {
        Some(found) => {
            if let Some(tag) = one_of_several(&found, name) {
                let removed = daemon.admin.untag(UntagRequest { name: tag }).await;
                return removed.map(drop).map_err(Error::call(format!("removing the name {name}")));
            }
            found.id
        }
        None => by_beginning(images, name)?,
    };
    whole_image(daemon, listing, (name, &id), force).await
}

/// The CRI removes an image silently even if it does not exist or is in use; a person wants to know.
async fn whole_image(
    daemon: &mut Daemon,
    listing: &Listing,
    (name, id): (&str, &str),
    force: Force,
) -> Result<(), Error> {
    let users = users(listing, id);
    if force == Force::No && !users.is_empty() {
        return Err(Error::ImageInUse { image: name.to_owned(), users });
    }
    let image = Some(ImageSpec { image: id.to_owned(), ..ImageSpec::default() });
    let removed = daemon.images.remove_image(RemoveImageRequest { image }).await;
    removed.map(drop).map_err(Error::call(format!("removing the image {name}")))
}

/// The containers that use an image.
fn users(listing: &Listing, id: &str) -> Vec<String> {
    listing
        .containers
        .iter()
        .filter(|container| container.image_id == id)
        .map(|container| listing.full_name(container))
        .collect()
}

/// The id with this prefix.
pub(crate) fn by_beginning(images: &[Image], name: &str) -> Result<String, Error> {
    let wanted = name.strip_prefix("sha256:").unwrap_or(name);
    let hex = |id: &'_ str| id.rsplit(':').next().unwrap_or_default().to_owned();
    let begins = |id: &str| !wanted.is_empty() && hex(id).starts_with(wanted);
    let found: Vec<_> = images.iter().filter(|image| begins(&image.id)).collect();
    match found.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => Err(Error::Unknown { what: "image", name: name.to_owned(), advice: "list them: wharf images" }),
        several => Err(Error::Ambiguous {
            name: name.to_owned(),
            candidates: several
                .iter()
                .map(|image| format!("{}  {}", units::short(&image.id), image.repo_tags.join(", ")))
                .collect(),
        }),
    }
}

/// The image that `inspect` was asked for.
pub(crate) async fn find(daemon: &mut Daemon, name: &str) -> Result<Option<Image>, Error> {
    if let Ok(Some(image)) = daemon.image(name).await {
        return Ok(Some(image));
    }
    let images = all(daemon).await?;
    match by_beginning(&images, name) {
        Ok(id) => Ok(images.into_iter().find(|image| image.id == id)),
        Err(Error::Unknown { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::Container;

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> Image {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Image { id: id.into(), repo_tags: own(tags), repo_digests: own(digests), size: 1, ..Image::default() }
    }

    fn names(image: &Image) -> Vec<String> {
        rows(image).iter().map(|row| format!("{} {}", row.image, row.tag)).collect()
    }

    #[test]
    fn each_tag_has_a_line() {
        let tagged = image("sha256:a", &["docker.io/library/a:1", "localhost:5000/b:2"], &["x@sha256:d"]);
        assert_eq!(names(&tagged), ["docker.io/library/a 1", "localhost:5000/b 2"]);
        assert_eq!(
            names(&image("sha256:a", &[], &["localhost:5000/b@sha256:d"])),
            ["localhost:5000/b <none>"]
        );
        assert_eq!(names(&image("sha256:a", &[], &[])), ["<none> <none>"]);
    }

    #[test]
    fn the_containers_of_an_image_are_known() {
        let of = |image: &str| Container { image_id: image.into(), id: "c".into(), ..Container::default() };
        let listing = Listing { pods: vec![], containers: vec![of("sha256:abc1"), of("sha256:abd2")] };
        assert_eq!((users(&listing, "sha256:abc1").len(), users(&listing, "sha256:x").len()), (1, 0));
    }

    #[test]
    fn a_tag_is_one_of_several_names() {
        let image = image("sha256:abc1", &["docker.io/library/a:1", "b.c/a:1"], &["b.c/a@sha256:d"]);
        assert_eq!(one_of_several(&image, "a:1").as_deref(), Some("docker.io/library/a:1"));
        assert_eq!(one_of_several(&image, "b.c/a:1").as_deref(), Some("b.c/a:1"));
        let digest = format!("b.c/a@sha256:{}", "d".repeat(64));
        for other in ["abc1", "a:2", "sha256:abc1", &digest] {
            assert_eq!(one_of_several(&image, other), None, "{other}");
        }
        let image = Image { repo_tags: vec!["b.c/a:1".into()], ..image };
        assert_eq!(one_of_several(&image, "b.c/a:1"), None, "it is the last one");
    }

    #[test]
    fn an_image_all_of_whose_tags_are_named_is_removed_whole() {
        let images = [
            image("sha256:a", &["docker.io/library/a:1", "b.c/a:1"], &[]),
            image("sha256:b", &["b.c/b:1", "b.c/b:2"], &[]),
            image("sha256:c", &["b.c/c:1"], &[]),
        ];
        let named = ["b.c/a:1", "b.c/b:1", "a:1", "b.c/c:1", "b.c/a:1", "abc"].map(str::to_owned);
        let whole = wholly_named(&images, &named);
        assert_eq!(whole, [("b.c/a:1", "sha256:a"), ("a:1", "sha256:a")].into());
        assert!(wholly_named(&images, &named[1..2]).is_empty());
    }

    #[test]
    fn an_id_may_be_shortened() {
        let images = [image("sha256:abc1", &["a:1"], &[]), image("sha256:abd2", &["b:1"], &[])];
        assert_eq!(by_beginning(&images, "abc").unwrap(), "sha256:abc1");
        assert_eq!(by_beginning(&images, "sha256:abd").unwrap(), "sha256:abd2");
        assert!(matches!(by_beginning(&images, "ab"), Err(Error::Ambiguous { .. })));
        assert!(matches!(by_beginning(&images, "x"), Err(Error::Unknown { .. })));
        for none in ["", "sha", "sha256:"] {
            assert!(matches!(by_beginning(&images, none), Err(Error::Unknown { .. })), "{none}");
        }
    }
}
