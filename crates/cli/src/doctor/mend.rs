//! What `wharf doctor --fix` does about findings, and what it leaves to the operator, with the reason.
//!
//! A mend is data: programs of this machine with their arguments, which are shown as advice, or executed here, without
//! a shell. None of them removes or ends anything, and what they change is wharf's, with two exceptions: cgroups are
//! mounted where there are none, and forwarding, which wharfd has turned on before (`net.ipv4.ip_forward`), is turned
//! on again.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;
use wharf_types::program::DEFAULT_PATH;

use super::bounded::{self, Unread};
use super::{Check, Verdict};
use crate::output::Row;

/// How long a mend may take. systemd gives a service 90 s to start.
pub(super) const PATIENCE: Duration = Duration::from_secs(100);

/// How often all checks are made to find what can be mended: a wharfd that has been started can be looked into.
const ROUNDS: usize = 3;

/// What there is to do about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remedy {
    /// What needs somebody who knows this machine.
    Judgement,
    /// A restart of wharfd.
    Restart,
    /// The removal of something.
    Removal,
    /// These commands, one after another.
    Commands(Vec<CommandLine>),
}

impl Remedy {
    fn commands(&self) -> Option<&[CommandLine]> {
        match self {
            Self::Commands(commands) => Some(commands),
            Self::Judgement | Self::Restart | Self::Removal => None,
        }
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandLine(Vec<String>);

impl CommandLine {
    /// Of words that are separated by spaces.
    pub(super) fn new(words: &str) -> Self {
        Self(words.split(' ').map(str::to_owned).collect())
    }

    /// With one more argument.
    pub(super) fn and(mut self, argument: impl Into<String>) -> Self {
        self.0.push(argument.into());
        self
    }

    /// Executes it, and returns what it printed, or why it failed.
    pub(super) fn execute(&self, patience: Duration) -> Result<String, String> {
        let [name, arguments @ ..] = self.0.as_slice() else { return Err("no command".to_owned()) };
        let program = program(name).ok_or_else(|| format!("{name} is not installed"))?;
        let arguments = arguments.to_vec();
        let output = bounded::within(patience, program, move |program| {
            #[expect(clippy::disallowed_methods, reason = "a program of the machine, by its absolute path")]
            let mut command = Command::new(program);
            command.args(arguments).env_clear().env("PATH", DEFAULT_PATH).stdin(Stdio::null()).output()
        });
        let output = match output {
            Ok(output) => output.map_err(|error| format!("{name}: {error}"))?,
            Err(unread) => return Err(without_end(name, patience, unread)),
        };
        let said = |stream: &[u8]| String::from_utf8_lossy(stream).trim().to_owned();
        match (output.status.success(), said(&output.stderr)) {
            (true, _) => Ok(said(&output.stdout)),
            (false, why) if why.is_empty() => Err(format!("{name}: {}", output.status)),
            (false, why) => Err(end_of(&why)),
        }
    }
}

fn without_end(name: &str, patience: Duration, unread: Unread) -> String {
    match unread {
        Unread::Silent => format!("{name} has not ended after {} s", patience.as_secs()),
        Unread::NoThread(error) => format!("{name} was not started: {error}"),
    }
}

/// The last lines of what a program said, which need not say little.
fn end_of(said: &str) -> String {
    const LINES: usize = 4;
    const LINE_CHARS: usize = 200;
    let bounded = |line: &str| match line.char_indices().nth(LINE_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    };
    let mut last: Vec<String> = said.lines().rev().take(LINES).map(bounded).collect();
    last.reverse();
    last.join("\n")
}

/// As it is typed in a shell.
impl Display for CommandLine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+={}".contains(c);
        let quoted = |word: &String| match word.chars().all(is_plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        };
        f.write_str(&self.0.iter().map(quoted).collect::<Vec<_>>().join(" "))
    }
}

/// A program of this machine.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let places = DEFAULT_PATH.split(':').map(|directory| Path::new(directory).join(name));
    places.into_iter().find(|place| place.is_file())
}

/// Several commands as advice.
pub(super) fn told(commands: &[CommandLine]) -> String {
    commands.iter().map(ToString::to_string).collect::<Vec<_>>().join(" && ")
}

/// What `wharf doctor --fix` would do; nothing if it could do nothing.
pub(super) fn offer(checks: &[Check]) -> Option<String> {
    let mendable = checks.iter().filter(|check| check.remedy.commands().is_some());
    let mendable: Vec<_> = mendable.map(|check| check.what).collect();
    let of = mendable.join(", ");
    (!mendable.is_empty()).then(|| format!("\nwharf doctor --fix executes what the advice ends with: {of}\n"))
}

/// What has become of a finding.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fix {
    what: &'static str,
    outcome: Outcome,
    /// What was done, why it failed, or why it is left.
    told: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// All commands have succeeded.
    Done,
    Failed,
    /// The operator has to act.
    Left,
}

impl Row for Fix {
    const HEADINGS: &'static [&'static str] = &["", "CHECK", "FIX"];

    fn cells(&self) -> Vec<String> {
        let outcome = match self.outcome {
            Outcome::Done => "done",
            Outcome::Failed => "FAILED",
            Outcome::Left => "left",
        };
        [outcome, self.what, &self.told].map(str::to_owned).to_vec()
    }
}

/// Mends all that can be mended, and returns what has become of each finding, with the results of the last checks.
pub(super) async fn mend(
    mut look: impl AsyncFnMut() -> Vec<Check>,
    execute: impl Fn(&CommandLine) -> Result<String, String>,
) -> (Vec<Fix>, Vec<Check>) {
    let (mut fixes, mut tried) = (Vec::new(), Vec::new());
    let mut checks = look().await;
    for _round in 0..ROUNDS {
        let found = checks.iter().filter_map(|check| Some((check, check.remedy.commands()?)));
        let new: Vec<_> = found.filter(|(_, commands)| !tried.contains(&commands.to_vec())).collect();
        if new.is_empty() {
            break;
        }
        for (check, commands) in new {
            fixes.push(carry_out(check.what, commands, &execute));
            tried.push(commands.to_vec());
        }
        checks = look().await;
    }
    fixes.extend(checks.iter().filter(|check| check.verdict != Verdict::Ok).filter_map(left));
    (fixes, checks)
}

fn carry_out(
    what: &'static str,
    commands: &[CommandLine],
    execute: impl Fn(&CommandLine) -> Result<String, String>,
) -> Fix {
    let failed = commands.iter().find_map(|command| Some((command, execute(command).err()?)));
    match failed {
        None => Fix { what, outcome: Outcome::Done, told: told(commands) },
        Some((command, why)) => Fix { what, outcome: Outcome::Failed, told: format!("{command}: {why}") },
    }
}

/// Why nothing was done about a finding; nothing if something was.
fn left(check: &Check) -> Option<Fix> {
    let why = match check.remedy {
        Remedy::Judgement => "this needs your judgement",
        Remedy::Restart => "a restart of wharfd ends sessions of run -i, attach and exec",
        Remedy::Removal => "something would be removed that may be needed",
        Remedy::Commands(_) => return None,
    };
    let told = if check.advice.is_empty() { why.to_owned() } else { format!("{why}: {}", check.advice) };
    Some(Fix { what: check.what, outcome: Outcome::Left, told })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn outcomes(fixes: &[Fix]) -> Vec<(&'static str, Outcome)> {
        fixes.iter().map(|fix| (fix.what, fix.outcome)).collect()
    }

    #[tokio::test]
    async fn each_finding_is_mended_or_left_with_a_reason_and_looked_at_again() {
        let executed = RefCell::new(Vec::new());
        let execute = |command: &CommandLine| {
            executed.borrow_mut().push(command.to_string());
            if command.to_string().starts_with("fail") { Err("why".to_owned()) } else { Ok(String::new()) }
        };
        let mends = |words: &str| words.split(';').map(CommandLine::new).collect::<Vec<_>>();
        let look = async || {
            let executed = executed.borrow();
            let has = |words: &str| executed.iter().any(|command| command == words);
            let mut checks = vec![
                Check::ok("a", ""),
                Check::warn("b", "", "").mended_by(mends("fail b;never b")),
                Check::warn("c", "", "restart it").left_as(Remedy::Restart),
            ];
            checks.push(match has("start d") {
                false => Check::fail("d", "", "").mended_by(mends("reset d;start d")),
                true => Check::ok("d", ""),
            });
            // What is found only once d is mended.
            checks.extend(has("start d").then(|| match has("mend e") {
                false => Check::warn("e", "", "").mended_by(mends("mend e")),
                true => Check::ok("e", ""),
            }));
            checks
        };
        let (fixes, checks) = mend(look, execute).await;
        use Outcome::{Done, Failed, Left};
        assert_eq!(outcomes(&fixes), [("b", Failed), ("d", Done), ("e", Done), ("c", Left)]);
        assert_eq!((&*fixes[0].told, &*fixes[1].told), ("fail b: why", "reset d && start d"));
        assert!(fixes[3].told.contains("ends sessions") && fixes[3].told.ends_with(": restart it"));
        assert_eq!(*executed.borrow(), ["fail b", "reset d", "start d", "mend e"], "each once");
        let verdicts: Vec<_> = checks.iter().map(|check| check.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn, Verdict::Warn, Verdict::Ok, Verdict::Ok]);
    }

    #[tokio::test]
    async fn what_is_found_anew_each_time_is_not_mended_for_ever() {
        let times = RefCell::new(0);
        let look = async || {
            *times.borrow_mut() += 1;
            vec![
                Check::warn("a", "", "")
                    .mended_by(vec![CommandLine::new("mend").and(times.borrow().to_string())]),
            ]
        };
        let (fixes, _checks) = mend(look, |_command| Ok(String::new())).await;
        assert_eq!(outcomes(&fixes), [("a", Outcome::Done); ROUNDS]);
    }

    #[test]
    fn what_could_be_mended_is_offered() {
        let of = |what| Check::warn(what, "", "advice").mended_by(vec![CommandLine::new("a b")]);
        assert_eq!(of("a").advice, "advice: a b");
        let offered = offer(&[of("a"), Check::warn("b", "", ""), of("c")]).unwrap();
        assert!(offered.ends_with(": a, c\n"), "{offered}");
        assert_eq!(offer(&[Check::ok("a", ""), Check::warn("b", "", "")]), None);
    }

    #[test]
    fn a_command_is_shown_as_it_is_typed() {
        let line = CommandLine::new("find -type f,d -exec chattr -ia {} +").and("a b").and("it's");
        assert_eq!(line.to_string(), r"find -type f,d -exec chattr -ia {} + 'a b' 'it'\''s'");
    }

    #[test]
    fn a_command_is_executed_without_a_shell() {
        let run = |line: CommandLine| line.execute(Duration::from_secs(60));
        assert_eq!(run(CommandLine::new("echo $PATH").and("; false")).unwrap(), "$PATH ; false");
        assert_eq!(run(CommandLine::new("false")).unwrap_err(), "false: exit status: 1");
        assert!(run(CommandLine::new("cat /no/such")).unwrap_err().contains("No such file"));
        assert_eq!(run(CommandLine::new("no-such-program")).unwrap_err(), "no-such-program is not installed");
        let late = CommandLine::new("sleep 1").execute(Duration::ZERO);
        assert_eq!(late.unwrap_err(), "sleep has not ended after 0 s");
        let unstarted = Unread::NoThread(std::io::Error::other("why"));
        assert_eq!(without_end("sleep", PATIENCE, unstarted), "sleep was not started: why");
    }

    #[test]
    fn of_much_that_a_command_says_the_end_is_told() {
        let script = "seq 100000 >&2; printf '%70000s\\nlast' | tr ' ' x >&2; exit 1";
        let told = CommandLine::new("sh -c").and(script).execute(Duration::from_secs(60)).unwrap_err();
        assert_eq!(told, format!("99999\n100000\n{}…\nlast", "x".repeat(200)));
    }
}
