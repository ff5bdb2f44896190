//! Hooks of the node: files that say which containers get a hook, in the format of oci-hooks(5), version 1.0.0, which
//! other runtimes read, too. A file's content is parsed here; finding and reading the files is the caller's business.

use std::collections::BTreeMap;

use oci_spec::runtime::{self as oci, Spec};
use regex_lite::Regex;
use serde::Deserialize;
use wharf_cri_api::v1::Mount;

use super::{Point, add, plan};
use crate::Request;

/// The one version of the format.
const VERSION: &str = "1.0.0";

/// One file: a hook, and the containers that get it.
#[derive(Debug, Clone)]
pub struct Configured {
    hook: oci::Hook,
    when: Condition,
    points: Vec<Point>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    hook: HookOfFile,
    when: When,
    stages: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HookOfFile {
    path: String,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct When {
    always: Option<bool>,
    annotations: Option<BTreeMap<String, String>>,
    commands: Option<Vec<String>>,
    has_bind_mounts: Option<bool>,
}

/// When a container gets a hook: if all its conditions hold, and there is one.
#[derive(Debug, Clone)]
struct Condition {
    always: Option<bool>,
    /// For each pair, some annotation has a key and a value that match.
    annotations: Vec<(Regex, Regex)>,
    /// One of them matches the program.
    commands: Vec<Regex>,
    has_bind_mounts: Option<bool>,
}

impl Configured {
    /// Parses a file.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if file.version != VERSION {
            return Err(format!("version {:?} is not {VERSION}", file.version));
        }
        let point = |name: &String| {
            Point::of_name(name).ok_or_else(|| format!("the stage {name:?} is not one of {}", Point::names()))
        };
        let points = file.stages.iter().map(point).collect::<Result<Vec<_>, _>>()?;
        let Some(&first) = points.first() else { return Err("it has no stages".to_owned()) };
        let HookOfFile { path, args, env, timeout } = file.hook;
        let mut hook = oci::Hook::default();
        hook.set_path(path.into()).set_args(args).set_env(env).set_timeout(timeout);
        plan(first, &hook).map_err(|refusal| refusal.problem())?;
        Ok(Self { hook, when: Condition::parse(&file.when)?, points })
    }

    /// Adds the hook to the spec of a request's container, if that is one that gets it.
    pub fn apply(&self, spec: &mut Spec, request: &Request<'_>) {
        let program = spec.process().as_ref().and_then(|process| process.args().as_ref()?.first().cloned());
        if self.when.holds(program.as_deref(), request) {
            self.points.iter().for_each(|&point| add(spec, point, self.hook.clone()));
        }
    }
}

impl Condition {
    fn parse(when: &When) -> Result<Self, String> {
        let regex =
            |text: &String| Regex::new(text).map_err(|error| format!("the pattern {text:?}: {error}"));
        let pair = |(key, value): (&String, &String)| Ok::<_, String>((regex(key)?, regex(value)?));
        let annotations = when.annotations.iter().flatten().map(pair).collect::<Result<Vec<_>, _>>()?;
        let commands = when.commands.iter().flatten().map(regex).collect::<Result<Vec<_>, _>>()?;
        let (always, has_bind_mounts) = (when.always, when.has_bind_mounts);
        if always.is_none() && has_bind_mounts.is_none() && annotations.is_empty() && commands.is_empty() {
            return Err("its condition is empty: set `always`".to_owned());
        }
        Ok(Self { always, annotations, commands, has_bind_mounts })
    }

    /// The annotations are the container's and its pod's.
    fn holds(&self, program: Option<&str>, request: &Request<'_>) -> bool {
        let annotations = || request.container.annotations.iter().chain(&request.pod.annotations);
        let has = |(key, value): &(Regex, Regex)| {
            annotations().any(|(name, text)| key.is_match(name) && value.is_match(text))
        };
        let is_command = |program| self.commands.iter().any(|command| command.is_match(program));
        let is_bind = |mount: &Mount| mount.image.is_none();
        let has_binds = || request.container.mounts.iter().any(is_bind);
        self.always != Some(false)
            && self.has_bind_mounts.is_none_or(|wanted| wanted && has_binds())
            && self.annotations.iter().all(has)
            && (self.commands.is_empty() || program.is_some_and(is_command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Asked;

    fn file(hook: &str, when: &str, stages: &str) -> String {
        format!(r#"{{"version": "1.0.0", "hook": {hook}, "when": {when}, "stages": {stages}}}"#)
    }

    fn gets(when: &str, asked: &Asked) -> bool {
        let mut spec = crate::describe(&asked.request(), &asked.facts, &asked.places).unwrap().spec;
        let file = file(r#"{"path": "/bin/hook"}"#, when, r#"["prestart", "poststop"]"#);
        Configured::parse(file.as_bytes()).unwrap().apply(&mut spec, &asked.request());
        spec.hooks().is_some()
    }

    #[test]
    fn a_container_gets_a_hook_if_all_that_is_said_holds() {
        let plain = Asked::default();
        let mut bound = Asked::default();
        bound.container.annotations = [("example.org/hook".to_owned(), "yes".to_owned())].into();
        bound.pod.annotations = [("of-the-pod".to_owned(), "too".to_owned())].into();
        let is_bound = |asked: &mut Asked| {
            let case = crate::tests::requests::CASES.iter().find(|case| case.name == "a directory").unwrap();
            (case.change)(asked);
        };
        is_bound(&mut bound);
        let rows = [
            (r#"{"always": true}"#, true, true),
            (r#"{"always": false}"#, false, false),
            (r#"{"hasBindMounts": true}"#, false, true),
            (r#"{"hasBindMounts": false}"#, false, false),
            (r#"{"annotations": {"^example\\.org/.*$": "^yes$"}}"#, false, true),
            (r#"{"annotations": {"^example\\.org/.*$": "^no$"}}"#, false, false),
            (r#"{"annotations": {"^example\\.org/": "", "^of-the-pod$": "^too$"}}"#, false, true),
            (r#"{"commands": ["^/bin/se.*er$"]}"#, true, true),
            (r#"{"commands": ["/usr", "server"]}"#, true, true),
            (r#"{"commands": ["^server"]}"#, false, false),
            (r#"{"commands": ["server"], "hasBindMounts": true}"#, false, true),
            (r#"{"always": true, "annotations": {"none": ""}}"#, false, false),
        ];
        for (when, of_plain, of_bound) in rows {
            assert_eq!((gets(when, &plain), gets(when, &bound)), (of_plain, of_bound), "{when}");
        }
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused() {
        let (hook, always, stages) = (r#"{"path": "/x"}"#, r#"{"always": true}"#, r#"["poststop"]"#);
        let rows = [
            (file(hook, always, stages).replace("1.0.0", "0.1.0"), "0.1.0"),
            (file(r#"{"path": "x"}"#, always, stages), "not absolute"),
            (file(r#"{"path": "/x", "timeout": 0}"#, always, stages), "timeout"),
            (file(r#"{"path": "/x", "dir": "/"}"#, always, stages), "dir"),
            (file(hook, always, "[]"), "no stages"),
            (file(hook, always, r#"["never"]"#), "never"),
            (file(hook, r#"{"allways": true}"#, stages), "allways"),
            (file(hook, "{}", stages), "condition is empty"),
            (file(hook, r#"{"commands": ["("]}"#, stages), "pattern"),
            (String::new(), "EOF"),
        ];
        for (text, words) in rows {
            let fault = Configured::parse(text.as_bytes()).unwrap_err();
            assert!(fault.contains(words), "{text}: {fault}");
        }
    }
}
