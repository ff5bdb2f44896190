//! The command line's grammar and its help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

mod groups;
mod values;

use crate::credentials::Creds;
use crate::error::Error;
pub(crate) use groups::command;
pub(crate) use values::{
    Bytes, Cpus, Env, ImageMount, ImageName, Name, Ports, Publish, Socket, User, UserName, Users, Volume,
};

/// Where wharfd listens unless it is configured otherwise.
pub(crate) const SOCKET: &str = "unix:///run/wharf/wharf.sock";

/// Run pods and containers on this machine, and inspect them.
#[derive(Debug, Parser)]
#[command(name = "wharf", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The socket of wharfd: a path or a unix:// address; also set by WHARF_SOCKET
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "WHARF_SOCKET",
        hide_env = true,
        default_value = SOCKET,
        help_heading = "Global options"
    )]
    pub(crate) socket: Socket,
    /// Print JSON instead of a table
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Reads the process's arguments; help, version and mistakes end the process.
    pub(crate) fn parse_or_exit() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The exit code for a failure of `wharf` itself, distinct from the exit codes of the programs that it ran.
    pub(crate) fn failure_code(&self) -> fn(&Error) -> ExitCode {
        match self.command {
            Command::Run(_) | Command::Exec(_) | Command::Attach(_) => {
                |error| ExitCode::from(error.signal_code().or(error.program_code()).unwrap_or(125))
            }
            _ => |error| error.signal_code().map_or(ExitCode::FAILURE, ExitCode::from),
        }
    }

    /// Refuses --json for a command that prints no JSON, rather than ignore it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let no = |command, advice| if self.json { Err(Error::NoJson { command, advice }) } else { Ok(()) };
        match &self.command {
            Command::Run(run) if !run.detach => no("run", ", or add --detach"),
            Command::Exec(_) => no("exec", ""),
            Command::Attach(_) => no("attach", ""),
            Command::Logs(_) => no("logs", ""),
            Command::Save(save) if save.output.is_none() => no("save", ", or add --output"),
            Command::Forward(_) => no("forward", ""),
            Command::Completion { .. } => no("completion", ""),
            Command::Man { .. } => no("man", ""),
            _ => Ok(()),
        }
    }

    fn grammar() -> clap::Command {
        Self::command()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a pod with one container from an image, and run it
    #[command(after_help = "\
Exits with the exit code of the container's program: 127 if the program is missing, 126 if it cannot be executed, 125 if wharf \
itself fails, and 128 plus the number of the signal if a signal cuts it off. With --interactive --tty, Control-P Control-Q \
detaches and leaves the program running.

On a cluster node, the kubelet stops what this starts within about a minute, because it takes it for a deleted pod.

Examples:
  wharf run --rm busybox echo hello
  wharf run --rm -it busybox sh
  wharf run -d --name web -p 8080:80 nginx
  wharf run --rm --pod web busybox wget -qO- http://127.0.0.1/
  wharf run -d --name db -v /srv/db:/var/lib/postgresql/data -e POSTGRES_PASSWORD=x --memory 512m postgres")]
    Run(Box<Run>),
    /// Run a command in a running container
    #[command(after_help = "\
NAME may be a pod: it stands for the pod's only container, or the container of the same name. Exits with the command's exit \
code: 127 if the command is missing, 126 if it cannot be executed, 125 if wharf itself fails. The command ends with the session.

Examples:
  wharf exec -it web sh
  wharf exec web cat /etc/hostname
  wharf exec web/nginx sh -c 'ls -l /proc/1/fd'")]
    Exec(Exec),
    /// Attach to the program of a running container
    #[command(after_help = "\
Control-P Control-Q detaches from a terminal; without a terminal, Control-C does. The container keeps running.

Example:
  wharf attach web")]
    Attach(Attach),
    /// Forward ports of this machine to a pod
    #[command(after_help = "\
Runs until Control-C.

Examples:
  wharf forward web 8080:80
  wharf forward db 5432")]
    Forward(Forward),
    /// Restart exited containers and stopped pods that `wharf run` created
    #[command(after_help = "\
A container cannot run twice: a new one with the same configuration replaces it, without the files that the old one wrote \
outside its volumes. A stopped pod is created anew with all its containers, and gets a new address.

Example:
  wharf start web")]
    Start(Start),
    /// Stop containers or pods without removing them
    #[command(after_help = "\
Example:
  wharf stop --time 2 web db")]
    Stop(Stop),
    /// Remove containers or pods, and the files they wrote
    #[command(after_help = "\
Examples:
  wharf rm web db
  wharf rm --force --all
  wharf rm --force --namespace kube-system --yes")]
    Rm(Rm),
    /// List containers
    Ps(Ps),
    /// List pods
    Pods,
    /// Show the output of a container
    #[command(after_help = "\
NAME may be a pod: it stands for the pod's only container, or the container of the same name. What the container wrote to \
standard error is written to standard error.

Examples:
  wharf logs -f web
  wharf logs --since 10m --timestamps web/nginx")]
    Logs(Logs),
    /// Show the resource usage of pods and containers
    Stats(Stats),
    /// Print everything about pods, containers or images, as JSON
    #[command(after_help = "\
Prints an object for one name, an array for several.

Example:
  wharf inspect web | jq .ips")]
    Inspect {
        /// Names, ids, or beginnings of ids
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Say why a pod or a container does not run, and how long each stage of making it took
    #[command(after_help = "\
Says how a container ended and what that means, who asked for it, which memory limit was reached, what the kernel's log and the \
end of the container's log have about it, and what to do. A restart of wharfd clears the times, and who asked for a stop.

Examples:
  wharf explain web
  wharf --json explain web/nginx | jq '.verdicts[].why'")]
    Explain {
        /// Name, id, or beginning of an id
        name: String,
    },
    /// Pull an image from its registry
    #[command(after_help = "\
Without --creds, wharf uses a login of docker or podman from $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json or \
~/.docker/config.json.

Examples:
  wharf pull nginx
  wharf pull 127.0.0.1:5000/library/nginx:latest
  wharf pull --creds me registry.example/app")]
    Pull(Pull),
    /// Ask about registries
    #[command(subcommand, arg_required_else_help = true)]
    Registry(Registry),
    /// Load the images of an archive
    #[command(after_help = "\
Reads an OCI image layout or an archive of the form of `docker save`, as docker, podman, ctr, skopeo, BuildKit and wharf write \
them, plain or compressed with gzip or zstd. For a multi-platform image, the variant for this machine is loaded. If anything in the \
archive is damaged, nothing is loaded.

Examples:
  wharf load -i images.tar
  docker save app:1 | wharf load")]
    Load(Load),
    /// Save images as an archive
    #[command(after_help = "\
The archive is an OCI image layout that `docker load`, `podman load`, `ctr images import` and skopeo read as well. wharf does not \
keep the archives of layers that were pulled, so it packs them anew: the image in the archive has the same files and the same \
configuration, but another id, always the same one. Artifacts cannot be saved.

Examples:
  wharf save -o images.tar nginx busybox:1.36
  wharf save app:1 | gzip > app.tar.gz")]
    Save(Save),
    /// Give an image a further name
    #[command(after_help = "\
If another image has this name, it loses it.

Example:
  wharf tag busybox registry.example/base:1")]
    Tag {
        /// A name, an id, or the beginning of an id
        image: String,
        /// The name; docker.io/library/ and :latest are filled in
        name: ImageName,
    },
    /// List images
    Images,
    /// Remove images
    #[command(after_help = "\
If an image has several tags, only the named tag is removed; by its id or digest, the image is removed with all its \
names.

Example:
  wharf rmi nginx:1.27")]
    Rmi {
        /// Names, ids, or beginnings of ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also remove images that containers use; the containers keep their files
        #[arg(short, long)]
        force: bool,
    },
    /// Show wharfd's version, state, network and storage
    Info,
    /// Check whether this machine can run containers, and say how to fix what does not work
    #[command(after_help = "\
The exit code is 1 if something keeps containers from running.

With --fix, the commands that the advice ends with are executed, as far as they can do no harm: they start a wharfd that is not \
running if its unit is enabled, continue supervisors and a wharfd that a signal has stopped, turn IPv4 forwarding on again, raise \
limits on wharfd's open files and tasks until it restarts or the machine does, make wharf-shim executable, and mount cgroups \
if that covers nothing and v1 has no controller. Nothing is removed and wharfd is not restarted: what needs that is \
left to you, with the reason. What is shown last, and the exit code, is what a new check finds.

Example:
  sudo wharf doctor --fix")]
    Doctor(Doctor),
    /// Print the completion script of a shell
    #[command(after_help = "\
Example:
  wharf completion bash > /etc/bash_completion.d/wharf")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages
    #[command(after_help = "\
Example:
  wharf man /usr/local/share/man/man1")]
    Man {
        /// The directory to write to; it is created if it is missing
        directory: PathBuf,
    },
}

/// Whose cgroups a container sees.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Whose {
    /// The container's
    Own,
    /// This machine's
    Host,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Run {
    /// The image; it is pulled if it is not on this machine
    pub(crate) image: String,
    /// The program and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
    /// The name of the pod and the container; derived from the image's name by default
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// Do not wait: print the container's id and return
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Connect standard input to the container; with --detach, keep it open for `wharf attach`
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Remove the pod and the container when the program exits
    #[arg(long, conflicts_with = "detach")]
    pub(crate) rm: bool,
    /// Add the container to a running pod, and so to its network
    #[arg(long, value_name = "POD", conflicts_with_all = ["publish", "hostname", "host_network", "userns"])]
    pub(crate) pod: Option<String>,
    /// The program to run instead of the image's entry point; the image's arguments are dropped too
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// An environment variable; without a value, it is taken from the environment of wharf
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<Env>,
    /// A file of environment variables, one per line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// The user to run the program as, by name or number
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<User>,
    /// The working directory of the program
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) workdir: Option<String>,
    /// A directory or file of this machine to mount in the container
    #[arg(short, long, value_name = "FROM:TO[:OPTION,...]", help_heading = "Mounts and network")]
    pub(crate) volume: Vec<Volume>,
    /// An image to mount in the container, read-only; it is pulled if it is not on this machine
    #[arg(
        long,
        value_name = "type=image,source=IMAGE,target=TO[,subpath=PATH]",
        help_heading = "Mounts and network"
    )]
    pub(crate) mount: Vec<ImageMount>,
    /// Publish a port or range of ports of the pod on this machine; without HOST, on free ports
    #[arg(short, long, value_name = "[[IP:]HOST:]POD[/udp]", help_heading = "Mounts and network")]
    pub(crate) publish: Vec<Publish>,
    /// The pod's hostname; its name by default
    #[arg(long, value_name = "NAME", help_heading = "Mounts and network")]
    pub(crate) hostname: Option<String>,
    /// Use this machine's network instead of a network of the pod's own
    #[arg(long, conflicts_with_all = ["publish", "hostname"], help_heading = "Mounts and network")]
    pub(crate) host_network: bool,
    /// The memory limit, such as 256m or 2g
    #[arg(long, value_name = "SIZE", help_heading = "Limits and privileges")]
    pub(crate) memory: Option<Bytes>,
    /// The CPU limit, such as 1.5
    #[arg(long, value_name = "NUMBER", help_heading = "Limits and privileges")]
    pub(crate) cpus: Option<Cpus>,
    /// Mount the container's root file system read-only
    #[arg(long, help_heading = "Limits and privileges")]
    pub(crate) read_only: bool,
    /// A capability to add to the default ones, such as NET_ADMIN; ALL adds every one
    #[arg(long, value_name = "NAME", help_heading = "Limits and privileges")]
    pub(crate) cap_add: Vec<String>,
    /// A capability to drop from the default ones; ALL drops every one
    #[arg(long, value_name = "NAME", help_heading = "Limits and privileges")]
    pub(crate) cap_drop: Vec<String>,
    /// Give the container full access to this machine
    #[arg(long, help_heading = "Limits and privileges")]
    pub(crate) privileged: bool,
    /// The cgroup namespace: the container's own, or this machine's
    #[arg(long, value_name = "WHOSE", help_heading = "Limits and privileges")]
    pub(crate) cgroupns: Option<Whose>,
    /// Let the container create cgroups below its own
    #[arg(long, help_heading = "Limits and privileges")]
    pub(crate) cgroup_write: bool,
    /// Give the pod a user namespace, in which root maps to this unprivileged host user ID
    #[arg(long, value_name = "ID[:COUNT]", num_args = 0..=1, require_equals = true, default_missing_value = "any")]
    #[arg(help_heading = "Limits and privileges")]
    pub(crate) userns: Option<Users>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Exec {
    /// The container: a name, POD/NAME, an id, or the beginning of one
    pub(crate) name: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<String>,
    /// Connect standard input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal; standard input must be one too
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Kill the command after this many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["interactive", "tty"])]
    pub(crate) timeout: Option<u32>,
}

/// What can be asked about registries.
#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Say which hosts would be asked for an image, in order, and which files say so
    #[command(after_help = "\
Nobody is asked. The files are those that [registry] in wharfd's configuration names: certs_dir, registries_conf and auth_files; \
changes take effect with the next pull. The credentials are the node's own; a kubelet's or those of --creds go before. The exit code is 1 if a pull would ask nobody.

Examples:
  wharf registry explain nginx
  wharf --json registry explain registry.example/app:1 | jq '.[].hosts[].url'")]
    Explain {
        /// The image's name
        image: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The container: a name, POD/NAME, an id, or the beginning of one
    pub(crate) name: String,
    /// Show the output only, and send no input
    #[arg(long)]
    pub(crate) no_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// The pod: a name, an id, or the beginning of one
    pub(crate) name: String,
    /// A port of the pod, or LOCAL:PORT; LOCAL 0 takes a free port
    #[arg(required = true, value_name = "PORT")]
    pub(crate) ports: Vec<Ports>,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The image to pull; docker.io/library/ and :latest are filled in
    pub(crate) image: String,
    /// The login for the registry; without PASSWORD, wharf asks for it or reads it from standard input
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub(crate) creds: Option<Creds>,
}

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The archive; standard input by default
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Print only the ids of the images
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Save {
    /// Names, ids, or beginnings of ids; an id stands for all names of its image
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// The file to write; standard output by default
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// How long programs may take to exit before they are killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u32,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Rm {
    /// Names, ids, or beginnings of ids
    #[arg(required_unless_present_any = ["all", "namespace"], value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Also remove what is running
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Every pod that `wharf run` created
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// Every pod of a namespace, whoever created it
    #[arg(long, conflicts_with_all = ["names", "all"])]
    pub(crate) namespace: Option<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Fix what can be fixed safely, say why the rest is left to you, and check again; needs root
    #[arg(long)]
    pub(crate) fix: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also list containers that are not running
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Logs {
    /// The container: a name, POD/NAME, an id, or the beginning of one
    pub(crate) name: String,
    /// Follow the log until the container exits
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show only this many lines from the end
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Show only lines after a time such as 2026-01-31T12:00:00Z, or no older than 90s, 10m, 2h or 1d
    #[arg(long, value_name = "TIME", value_parser = crate::time::since)]
    pub(crate) since: Option<i64>,
    /// Show when each line was written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Refresh every second until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
}
