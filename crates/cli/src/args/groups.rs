//! The overview of `wharf --help`: the commands, grouped by task.

use std::fmt::Write as _;

use super::Arguments;

const GROUPS: [(&str, &[&str]); 5] = [
    ("Run and stop", &["run", "exec", "attach", "forward", "start", "stop", "rm"]),
    ("Inspect", &["ps", "pods", "logs", "stats", "inspect", "explain"]),
    ("Images", &["pull", "load", "save", "tag", "images", "rmi", "registry"]),
    ("This machine", &["info", "doctor"]),
    ("Your shell", &["completion", "man"]),
];

const EXAMPLES: &str = "\
Examples:
  wharf run --rm busybox echo hello            run a program and show its output
  wharf run -d --name web -p 8080:80 nginx     run a server
  wharf logs -f web                            follow its output
  wharf exec -it web sh                        open a shell in it
  wharf rm -f web                              stop it and remove it

Give a pod, container or image by its name, its id, or the beginning of its id; a container
also by POD/NAME. If pods of several namespaces have one name, put NAMESPACE/ before it. See
`wharf COMMAND --help` for the rest.";

/// The whole grammar, with its commands in groups.
pub(crate) fn command() -> clap::Command {
    let grammar = Arguments::grammar();
    let groups = groups(&grammar);
    grammar
        .help_template(format!(
            "{{about}}\n\nUsage: wharf [OPTIONS] COMMAND\n\n{groups}Global options:\n{{options}}{{after-help}}"
        ))
        .after_help(EXAMPLES)
}

fn groups(grammar: &clap::Command) -> String {
    let mut text = String::new();
    for (heading, names) in GROUPS {
        let _never_fails = writeln!(text, "{heading}:");
        for name in names {
            let about = grammar.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _never_fails = writeln!(text, "  {name:<12}{about}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let grammar = command();
        let mut known: Vec<&str> = grammar.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        known.sort_unstable();
        assert_eq!(grouped, known);
    }

    #[test]
    fn the_grammar_is_consistent_and_every_argument_explained() {
        command().debug_assert();
        for command in command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn the_help_is_the_golden_one() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/help.txt");
        let help = command().term_width(100).render_help().to_string();
        if std::env::var_os("WHARF_BLESS").is_some_and(|value| value == "1") {
            std::fs::write(golden, &help).unwrap();
        }
        assert_eq!(help, std::fs::read_to_string(golden).unwrap(), "WHARF_BLESS=1 rewrites tests/help.txt");
    }
}
