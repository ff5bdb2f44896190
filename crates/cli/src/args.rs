//! The command line's grammar and its help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

mod groups;
mod values;

use crate::credentials::Creds;
use crate::error::Error;
pub(crate) use groups::command;
pub(crate) use values::{Bytes, Cpus, Env, Ports, Publish, Socket, User, UserName, Volume};

/// Run containers and pods on this machine, and look at those that run.
#[derive(Debug, Parser)]
#[command(name = "wharf", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Where wharfd listens: a path or a unix:// address; WHARF_SOCKET says so too
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "WHARF_SOCKET",
        hide_env = true,
        default_value = "unix:///run/wharf/wharf.sock",
        help_heading = "Everywhere"
    )]
    pub(crate) socket: Socket,
    /// Print JSON instead of a table
    #[arg(long, global = true, help_heading = "Everywhere")]
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

    /// What `wharf` ends with when itself it failed: told apart from the codes of the programs it ran.
    pub(crate) fn failure_code(&self) -> fn(&Error) -> ExitCode {
        match self.command {
            Command::Run(_) | Command::Exec(_) | Command::Attach(_) => {
                |error| ExitCode::from(error.program_code().unwrap_or(125))
            }
            _ => |_error| ExitCode::FAILURE,
        }
    }

    /// Refuses to leave out in silence what was asked for.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let no = |command, advice| if self.json { Err(Error::NoJson { command, advice }) } else { Ok(()) };
        match &self.command {
            Command::Run(run) if !run.detach => no("run", ", or add --detach"),
            Command::Exec(_) => no("exec", ""),
            Command::Attach(_) => no("attach", ""),
            Command::Logs(_) => no("logs", ""),
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
    /// Make a pod with one container of an image, and run it
    #[command(after_help = "\
Ends with the code of the container's program; with 127 if that is missing, 126 if it cannot be executed, 125 if wharf itself \
failed. With --interactive --tty, Control-P Control-Q leaves the program, which goes on.

Examples:
  wharf run --rm busybox echo hello
  wharf run --rm -it busybox sh
  wharf run -d --name web -p 8080:80 nginx
  wharf run --rm --pod web busybox wget -qO- http://127.0.0.1/
  wharf run -d --name db -v /srv/db:/var/lib/postgresql/data -e POSTGRES_PASSWORD=x --memory 512m postgres")]
    Run(Box<Run>),
    /// Run a command in a running container
    #[command(after_help = "\
NAME may be a pod, for its one container or the one of the same name. Ends with the command's code; with 127 if that is \
missing, 126 if it cannot be executed, 125 if wharf itself failed. The command ends with the session.

Examples:
  wharf exec -it web sh
  wharf exec web cat /etc/hostname
  wharf exec web/nginx sh -c 'ls -l /proc/1/fd'")]
    Exec(Exec),
    /// Talk to the program of a running container
    #[command(after_help = "\
Control-P Control-Q leaves a terminal; without one, Control-C does. The container goes on.

Example:
  wharf attach web")]
    Attach(Attach),
    /// Let ports of this machine lead into a pod
    #[command(after_help = "\
Goes on until Control-C.

Examples:
  wharf forward web 8080:80
  wharf forward db 5432")]
    Forward(Forward),
    /// Start containers or pods of `wharf run` again that have ended
    #[command(after_help = "\
A container cannot run twice: a new one of the same description takes its place, without the files that the old one wrote outside \
of its volumes. Of a pod that was stopped all is made anew, and the pod gets another address.

Example:
  wharf start web")]
    Start(Start),
    /// Stop containers or pods, which stay to be looked at
    #[command(after_help = "\
Example:
  wharf stop --time 2 web db")]
    Stop(Stop),
    /// Remove containers or pods, with what they wrote
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
    /// Show what a container wrote to its output
    #[command(after_help = "\
NAME may be a pod, for its one container or the one of the same name. What went to standard error goes there again.

Examples:
  wharf logs -f web
  wharf logs --since 10m --timestamps web/nginx")]
    Logs(Logs),
    /// Show what pods and containers use
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
    /// Fetch an image from its registry
    #[command(after_help = "\
Without --creds a login of docker's or podman's is used, from $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json or \
~/.docker/config.json.

Examples:
  wharf pull nginx
  wharf pull 127.0.0.1:5000/library/nginx:latest
  wharf pull --creds me registry.example/app")]
    Pull(Pull),
    /// List images
    Images,
    /// Remove images
    Rmi {
        /// Names, ids, or beginnings of ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also those of containers, which keep their files
        #[arg(short, long)]
        force: bool,
    },
    /// Show wharfd's version, state, network and storage
    Info,
    /// Check whether this machine can run containers, and say what to do where not
    Doctor,
    /// Print the completion of a shell
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
        /// Where to; it is made if it is missing
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Run {
    /// The image; it is fetched if it is not here
    pub(crate) image: String,
    /// The program and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
    /// A name for the pod and the container; made up from the image's if not given
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Do not wait: print the container's id and return
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Send this program's input to the container's; with --detach, keep it open for `wharf attach`
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Remove everything when the program has ended
    #[arg(long, conflicts_with = "detach")]
    pub(crate) rm: bool,
    /// Join a pod that runs, and so its network
    #[arg(long, value_name = "POD", conflicts_with_all = ["publish", "hostname", "host_network"])]
    pub(crate) pod: Option<String>,
    /// Another program instead of the image's entry point; the image's arguments go too
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// A variable of the environment; without a value, the one it has here
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<Env>,
    /// A file of such variables, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// The user that the program runs as, by name or number
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<User>,
    /// The directory that the program starts in
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) workdir: Option<String>,
    /// A directory or file of this machine to be seen in the container
    #[arg(short, long, value_name = "FROM:TO[:OPTION,...]", help_heading = "Connections")]
    pub(crate) volume: Vec<Volume>,
    /// A port of this machine, any that is free if none is named, that leads to one of the pod; or as many of each
    #[arg(short, long, value_name = "[[IP:]HOST:]POD[/udp]", help_heading = "Connections")]
    pub(crate) publish: Vec<Publish>,
    /// The pod's host name; its name if not given
    #[arg(long, value_name = "NAME", help_heading = "Connections")]
    pub(crate) hostname: Option<String>,
    /// Use this machine's network instead of one of the pod's own
    #[arg(long, conflicts_with_all = ["publish", "hostname"], help_heading = "Connections")]
    pub(crate) host_network: bool,
    /// The most memory it may use, such as 256m or 2g
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) memory: Option<Bytes>,
    /// The most processors it may use, such as 1.5
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) cpus: Option<Cpus>,
    /// Make the container's files read-only
    #[arg(long, help_heading = "Limits")]
    pub(crate) read_only: bool,
    /// A capability more than usual, such as NET_ADMIN; ALL for all
    #[arg(long, value_name = "NAME", help_heading = "Limits")]
    pub(crate) cap_add: Vec<String>,
    /// A capability less than usual; ALL for none
    #[arg(long, value_name = "NAME", help_heading = "Limits")]
    pub(crate) cap_drop: Vec<String>,
    /// Give it every right over this machine
    #[arg(long, help_heading = "Limits")]
    pub(crate) privileged: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Exec {
    /// The container: a name, POD/NAME, an id, or the beginning of one
    pub(crate) name: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<String>,
    /// Send this program's input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal, which standard input must be too
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Give up, and kill the command, after so many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["interactive", "tty"])]
    pub(crate) timeout: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The container: a name, POD/NAME, an id, or the beginning of one
    pub(crate) name: String,
    /// Only watch
    #[arg(long)]
    pub(crate) no_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// The pod: a name, an id, or the beginning of one
    pub(crate) name: String,
    /// Port of the pod, or LOCAL:PORT; LOCAL 0 is any that is free
    #[arg(required = true, value_name = "PORT")]
    pub(crate) ports: Vec<Ports>,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// What to fetch; docker.io/library/ and :latest are filled in
    pub(crate) image: String,
    /// Who to be to the registry; a password that is not here is asked for, or read from standard input
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub(crate) creds: Option<Creds>,
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
    /// How long programs may take to end before they are killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u32,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Rm {
    /// Names, ids, or beginnings of ids
    #[arg(required_unless_present_any = ["all", "namespace"], value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Also what runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Every pod that `wharf run` made
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// Every pod of a namespace, whoever made it
    #[arg(long, conflicts_with_all = ["names", "all"])]
    pub(crate) namespace: Option<String>,
    /// Do not ask whether it is meant
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Logs {
    /// The container: a name, POD/NAME, an id, or the beginning of one
    pub(crate) name: String,
    /// Go on until the container ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Only lines after a time such as 2026-01-31T12:00:00Z, or not older than 90s, 10m, 2h or 1d
    #[arg(long, value_name = "TIME", value_parser = crate::time::since)]
    pub(crate) since: Option<i64>,
    /// Show when each line was written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Show it anew every second until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
}
