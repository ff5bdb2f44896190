//! What is accepted as a hook, and what is kept of it.

use super::*;
use crate::tests::Asked;
use crate::{Filters, describe};

/// A change of a hook.
type Change = fn(&mut oci::Hook);

fn hook(path: &str) -> oci::Hook {
    let mut hook = oci::Hook::default();
    hook.set_path(path.into());
    hook
}

fn description(change: impl FnOnce(&mut Asked), hooks: Vec<(Point, oci::Hook)>) -> crate::Description {
    let mut asked = Asked::default();
    change(&mut asked);
    let mut description = describe(&asked.request(), &asked.facts, &asked.places).unwrap();
    hooks.into_iter().for_each(|(point, hook)| add(&mut description.spec, point, hook));
    description
}

fn planned(hooks: Vec<(Point, oci::Hook)>) -> Result<(), String> {
    let planned = crate::plan(&description(|_plainest| {}, hooks), &Filters::default());
    planned.map(drop).map_err(|refusal| refusal.to_string())
}

#[test]
fn hooks_are_kept_in_order_with_what_they_are_told() {
    let mut first = hook("/bin/first");
    first
        .set_args(Some(vec!["one".to_owned(), "two".to_owned()]))
        .set_env(Some(vec!["A=b=c".to_owned()]))
        .set_timeout(Some(600));
    let hooks = vec![
        (Point::Poststop, first),
        (Point::Poststop, hook("/bin/second")),
        (Point::CreateRuntime, hook("/bin/other")),
    ];
    let description = description(|_plainest| {}, hooks);
    crate::plan(&description, &Filters::default()).unwrap();
    let text = Kept::text_of(&description.spec).unwrap();
    let kept = Kept::read(&text).unwrap().unwrap();
    let at = kept.at(Point::Poststop).unwrap();
    assert_eq!(at[0].arguments, ["one", "two"]);
    assert_eq!(at[0].environment, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!((at[0].patience, at[1].patience), (Duration::from_mins(10), PATIENCE));
    assert_eq!((at[1].program.as_str(), &at[1].arguments), ("/bin/second", &vec!["/bin/second".to_owned()]));
    assert!(kept.at(Point::Poststart).unwrap().is_empty());
    let id = ContainerId::from_random([0xbb; 32]);
    let state = |point, pid| -> serde_json::Value {
        serde_json::from_slice(&kept.state(point, &State { id: &id, pid, bundle: "/b" })).unwrap()
    };
    let state_now = state(Point::CreateRuntime, 7);
    assert_eq!((state_now["pid"].as_i64(), state_now["status"].as_str()), (Some(7), Some("creating")));
    assert_eq!((state_now["id"].as_str(), state_now["bundle"].as_str()), (Some(id.as_str()), Some("/b")));
    assert_eq!(state_now["ociVersion"], "1.2.1");
    assert_eq!(state_now["annotations"]["io.kubernetes.cri.container-type"], "container");
    let state_last = state(Point::Poststop, 0);
    assert_eq!((state_last.get("pid"), state_last["status"].as_str()), (None, Some("stopped")));
}

#[test]
fn most_containers_have_none_and_keep_nothing() {
    let text = Kept::text_of(&description(|_plainest| {}, vec![]).spec).unwrap();
    assert_eq!((text.as_str(), Kept::read(&text).unwrap()), ("", None));
    assert!(Kept::read("{").is_err());
}

#[test]
fn a_hook_that_cannot_be_executed_is_refused_by_its_path_and_point() {
    let changed = |change: Change| {
        let mut hook = hook("/bin/hook");
        change(&mut hook);
        planned(vec![(Point::Poststart, hook)]).unwrap_err()
    };
    let rows: [(Change, &str); 7] = [
        (|hook| *hook.path_mut() = "bin/hook".into(), "not absolute"),
        (|hook| *hook.timeout_mut() = Some(0), "timeout of 0 s is not between 1 and 600"),
        (|hook| *hook.timeout_mut() = Some(-1), "timeout"),
        (|hook| *hook.timeout_mut() = Some(601), "timeout"),
        (|hook| *hook.env_mut() = Some(vec!["A".to_owned()]), "NAME=value"),
        (|hook| *hook.env_mut() = Some(vec!["=b".to_owned()]), "NAME=value"),
        (|hook| *hook.args_mut() = Some(vec!["a\0".to_owned()]), "NUL"),
    ];
    for (change, words) in rows {
        let refused = changed(change);
        assert!(refused.contains("bin/hook at poststart: ") && refused.contains(words), "{refused}");
    }
    let many = vec![(Point::Prestart, hook("/bin/hook")); HOOKS_MAX + 1];
    assert!(planned(many.clone()).unwrap_err().contains("at most"));
    planned(many[1..].to_vec()).unwrap();
}

#[test]
fn what_would_not_be_as_the_spec_says_is_refused() {
    let refused = planned(vec![(Point::StartContainer, hook("/bin/hook"))]).unwrap_err();
    assert!(refused.contains("use createContainer"), "{refused}");
    let in_namespace = |asked: &mut Asked| {
        let case = crate::tests::requests::CASES.iter().find(|case| case.topic == "users").unwrap();
        (case.change)(asked);
    };
    let description = description(in_namespace, vec![(Point::CreateContainer, hook("/bin/hook"))]);
    let refused = crate::plan(&description, &Filters::default()).unwrap_err();
    assert!(refused.to_string().contains("user namespace"), "{refused}");
}

#[test]
fn names_are_those_of_the_runtime_spec() {
    for point in Point::ALL {
        assert_eq!(Point::of_name(point.name()), Some(point));
    }
    assert_eq!(Point::of_name("start"), None);
}
