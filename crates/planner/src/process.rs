//! The container's program: its arguments, its working directory and its rights.
//!
//! The request's command, working directory and rights come before the image's. The user is decided beside it (`user`),
//! because only the container's own files can tell what a name means.

use std::path::Path;

use oci_spec::runtime::{self as oci, LinuxCapabilities};
use wharf_isolation::{Limit, Process, Traits};
use wharf_sys::capabilities::Capabilities;
use wharf_types::ProfileName;

use crate::capabilities::{self, bits_of, set_of};
use crate::description::Extra;
use crate::plan::container_path;
use crate::request::{HostFacts, Request, Switch};
use crate::{Refusal, apparmor, arguments, environment, seccomp, selinux, user};

/// The process of the spec, for a user and an environment.
pub(crate) fn describe(
    request: &Request<'_>,
    facts: &HostFacts,
    user: oci::User,
    environment: Vec<String>,
) -> Result<oci::Process, Refusal> {
    let security = request.security();
    let args = command(request);
    if args.is_empty() {
        return Err(Refusal::field("command", "neither the request nor the image names a program"));
    }
    let score = i32::try_from(request.resources().oom_score_adj)
        .map_err(|_range| Refusal::field("oom_score_adj", "it is out of range"))?;
    let cwd = container_path("working_dir", Path::new(working_directory(request)))?;
    let profile = apparmor::profile(security, facts.modules, request.unasked_apparmor)?;
    let label = selinux::labels_of(request)?.and_then(|labels| labels.process);
    let mut process = oci::Process::default();
    process
        .set_terminal(Some(request.container.tty))
        .set_user(user)
        .set_args(Some(args))
        .set_env(Some(environment))
        .set_cwd(cwd.as_str().into())
        .set_capabilities(Some(capabilities_of_spec(&capabilities(request, facts)?)))
        .set_no_new_privileges(Some(security.no_new_privs))
        .set_apparmor_profile(profile.map(|profile| profile.to_string()))
        .set_selinux_label(label.map(|label| label.to_string()))
        .set_rlimits(Some(request.defaults.limits.clone()).filter(|limits| !limits.is_empty()))
        // Without a request it is not the daemon's score, which protects the daemon.
        .set_oom_score_adj(Some(score));
    Ok(process)
}

/// The program and its arguments: a request's command replaces the image's entrypoint and arguments.
fn command(request: &Request<'_>) -> Vec<String> {
    let (command, args) = (&request.container.command, &request.container.args);
    let images = |list: &'_ Option<Vec<String>>| list.clone().unwrap_or_default();
    let (mut program, arguments) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command.clone(), args.clone()),
        (true, false) => (images(request.image.entrypoint()), args.clone()),
        (true, true) => (images(request.image.entrypoint()), images(request.image.cmd())),
    };
    program.extend(arguments);
    program
}

fn working_directory<'a>(request: &Request<'a>) -> &'a str {
    let images = request.image.working_dir().as_deref().unwrap_or_default();
    let asked = [request.container.working_dir.as_str(), images];
    asked.into_iter().find(|directory| !directory.is_empty()).unwrap_or("/")
}

/// The capabilities the container gets.
pub(crate) fn capabilities(request: &Request<'_>, facts: &HostFacts) -> Result<Capabilities, Refusal> {
    let security = request.security();
    if security.privileged {
        let all = facts.bounding;
        return Ok(Capabilities { bounding: all, effective: all, permitted: all, ..Capabilities::default() });
    }
    let parse =
        |names: &[String]| capabilities::parse(names).map_err(|error| Refusal::field("capabilities", error));
    let asked = security.capabilities.clone().unwrap_or_default();
    let (add, drop) = (parse(&asked.add_capabilities)?, parse(&asked.drop_capabilities)?);
    let ambient = parse(&asked.add_ambient_capabilities)?.bits() & facts.bounding;
    let nodes = request.defaults.capabilities;
    let set = (capabilities::changed(nodes, add, drop) | ambient) & facts.bounding;
    let inheritable = if request.defaults.inheritable == Switch::On { set } else { ambient };
    Ok(Capabilities { bounding: set, effective: set, permitted: set, inheritable, ambient })
}

fn capabilities_of_spec(sets: &Capabilities) -> LinuxCapabilities {
    let mut spec = LinuxCapabilities::default();
    spec.set_bounding(Some(set_of(sets.bounding)))
        .set_effective(Some(set_of(sets.effective)))
        .set_permitted(Some(set_of(sets.permitted)))
        .set_inheritable(Some(set_of(sets.inheritable)))
        .set_ambient(Some(set_of(sets.ambient)));
    spec
}

/// The process of the plan.
pub(crate) fn plan(
    process: &oci::Process,
    extra: &Extra,
    traits: Traits,
    filter: Option<&seccomp::Program>,
) -> Result<Process, Refusal> {
    let args = process.args().iter().flatten().map(|arg| arg.clone().into_bytes()).collect::<Vec<_>>();
    if args.is_empty() {
        return Err(Refusal::spec("process.args", "it is empty"));
    }
    let env = environment::plan(process.env().as_deref().unwrap_or_default(), &extra.binary_environment);
    arguments::check(&args, &env)?;
    Ok(Process {
        args,
        env,
        cwd: container_path("working_dir", process.cwd())?,
        user: user::plan(process.user(), &extra.names)?,
        capabilities: process.capabilities().as_ref().map(capabilities_of_plan).unwrap_or_default(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        limits: process.rlimits().iter().flatten().map(limit).collect(),
        oom_score_adj: process.oom_score_adj(),
        traits,
        apparmor: process.apparmor_profile().as_deref().map(profile_of_plan).transpose()?,
        selinux: selinux::of_spec("process.selinuxLabel", process.selinux_label().as_ref())?,
        seccomp: filter.map(seccomp::Program::to_bytes).unwrap_or_default(),
        seccomp_flags: filter.map_or(0, |program| program.flags),
    })
}

fn profile_of_plan(name: &str) -> Result<ProfileName, Refusal> {
    ProfileName::new(name).map_err(|error| Refusal::spec("process.apparmorProfile", error))
}

fn capabilities_of_plan(sets: &LinuxCapabilities) -> Capabilities {
    Capabilities {
        bounding: bits_of(sets.bounding()),
        effective: bits_of(sets.effective()),
        permitted: bits_of(sets.permitted()),
        inheritable: bits_of(sets.inheritable()),
        ambient: bits_of(sets.ambient()),
    }
}

/// The kernel's `RLIMIT_*` numbers, in the order of the spec's list: getrlimit(2).
pub(crate) fn limit(limit: &oci::PosixRlimit) -> Limit {
    use oci::PosixRlimitType as Type;
    let resource = match limit.typ() {
        Type::RlimitCpu => 0,
        Type::RlimitFsize => 1,
        Type::RlimitData => 2,
        Type::RlimitStack => 3,
        Type::RlimitCore => 4,
        Type::RlimitRss => 5,
        Type::RlimitNproc => 6,
        Type::RlimitNofile => 7,
        Type::RlimitMemlock => 8,
        Type::RlimitAs => 9,
        Type::RlimitLocks => 10,
        Type::RlimitSigpending => 11,
        Type::RlimitMsgqueue => 12,
        Type::RlimitNice => 13,
        Type::RlimitRtprio => 14,
        Type::RlimitRttime => 15,
    };
    Limit { resource, soft: limit.soft(), hard: limit.hard() }
}
