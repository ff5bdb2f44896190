//! Shell completion and man pages, both generated from the grammar.

use std::path::Path;
use std::process::ExitCode;

use crate::args;
use crate::error::Error;
use crate::output;

pub(crate) fn completion(shell: clap_complete::Shell) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "wharf", &mut script);
    output::bytes(output::Stream::Stdout, &script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for `wharf` and one for each command.
pub(crate) fn pages(directory: &Path) -> Result<ExitCode, Error> {
    let failed = |cause| Error::File { path: directory.to_owned(), cause };
    std::fs::create_dir_all(directory).map_err(failed)?;
    // The overview's groups are for a terminal; a man page lists the commands in its own way.
    clap_mangen::generate_to(args::command().help_template("{all-args}"), directory).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path()).unwrap();
        for command in args::command().get_subcommands() {
            let page = dir.path().join(format!("wharf-{}.1", command.get_name()));
            assert!(std::fs::read_to_string(&page).unwrap().contains(".TH"), "{}", page.display());
        }
        assert!(std::fs::read_to_string(dir.path().join("wharf.1")).unwrap().contains("WHARF_SOCKET"));
    }

    #[test]
    fn completion_offers_nothing_that_the_help_hides() {
        for command in args::command().get_subcommands() {
            let hidden: Vec<_> = command.get_arguments().filter(|argument| argument.is_hide_set()).collect();
            assert!(hidden.is_empty(), "{}: {hidden:?}", command.get_name());
        }
    }

    #[test]
    fn pages_need_a_directory() {
        let error = pages(Path::new("/proc/no/such")).unwrap_err();
        assert_eq!(wharf_types::chain(&error), "/proc/no/such: No such file or directory (os error 2)");
    }
}
