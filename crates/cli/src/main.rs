//! `wharf`: the command line. It talks to wharfd over the CRI and the admin service on the daemon's socket, and reads
//! the log files of containers. It depends on nothing else of wharf and keeps no state of its own.

mod args;
mod credentials;
mod daemon;
mod doctor;
mod error;
mod exec;
mod explain;
mod find;
mod forward;
mod images;
mod info;
mod inspect;
mod list;
mod listener;
mod load;
mod logs;
mod manual;
mod output;
mod pull;
mod registry;
mod regular;
mod remove;
mod run;
mod save;
mod signals;
mod start;
mod stats;
mod stop;
mod stream;
mod terminal;
mod time;
mod touch;
mod units;
mod wait;

use std::process::ExitCode;

use crate::args::{Arguments, Command};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::Output;

fn main() -> ExitCode {
    if touch::is_asked(std::env::args_os()) {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse_or_exit();
    let failure = arguments.failure_code();
    let ended = arguments.check().and_then(|()| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Runtime { source })
            .and_then(|runtime| runtime.block_on(perform(arguments)))
    });
    match ended {
        Ok(code) => code,
        // The reader of the output has seen enough.
        Err(Error::Output { source }) if source.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&wharf_types::chain(&error));
            failure(&error)
        }
    }
}

/// Runs the command, and returns the exit code of `wharf`.
async fn perform(arguments: Arguments) -> Result<ExitCode, Error> {
    let output = Output::new(arguments.json);
    match arguments.command {
        Command::Completion { shell } => return manual::completion(shell),
        Command::Man { directory } => return manual::pages(&directory),
        Command::Doctor(doctor) => return doctor::doctor(&arguments.socket, output, doctor).await,
        _ => {}
    }
    let mut daemon = Daemon::connect(&arguments.socket).await?;
    let daemon = &mut daemon;
    match arguments.command {
        Command::Run(run) => return Box::pin(run::run(daemon, output, *run)).await,
        Command::Exec(exec) => return exec::exec(daemon, exec).await,
        Command::Attach(attach) => return exec::attach(daemon, attach).await,
        Command::Forward(forward) => forward::forward(daemon, forward).await?,
        Command::Start(start) => start::start(daemon, output, start).await?,
        Command::Stop(stop) => stop::stop(daemon, output, stop).await?,
        Command::Rm(rm) => remove::remove(daemon, output, rm).await?,
        Command::Ps(ps) => list::containers(daemon, output, ps).await?,
        Command::Pods => list::pods(daemon, output).await?,
        Command::Logs(logs) => logs::logs(daemon, logs).await?,
        Command::Stats(stats) => stats::stats(daemon, output, stats).await?,
        Command::Inspect { names } => inspect::inspect(daemon, &names).await?,
        Command::Explain { name } => explain::explain(daemon, output, &name).await?,
        Command::Pull(pull) => pull::command(daemon, output, pull).await?,
        Command::Registry(args::Registry::Explain { image }) => {
            return registry::explain(daemon, output, image).await;
        }
        Command::Images => images::list(daemon, output).await?,
        Command::Rmi { images, force } => {
            images::remove(daemon, output, &images, remove::Force::from_flag(force)).await?
        }
        Command::Load(load) => load::load(daemon, output, load).await?,
        Command::Save(save) => save::save(daemon, output, save).await?,
        Command::Tag { image, name } => images::tag(daemon, output, image, name).await?,
        Command::Info => info::info(daemon, output).await?,
        Command::Doctor(_) | Command::Completion { .. } | Command::Man { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}
