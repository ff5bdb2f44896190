//! The status at the end of a session: a command's exit code or error, which the client reads from the error stream.

use serde_json::{Value, json};
use wharf_types::Exit;

/// The form of the status, which depends on the version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusForm {
    /// v1 to v3: nothing after success, else a message for people.
    Plain,
    /// v4 and v5: always one `Status` of the Kubernetes API.
    Json,
}

/// How a command ended, or why it never began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ended(Exit),
    Failed(String),
}

impl Outcome {
    /// The text for the error stream; may be empty.
    pub(crate) fn text(&self, form: StatusForm) -> String {
        match form {
            StatusForm::Plain => self.message().unwrap_or_default(),
            StatusForm::Json => self.status().to_string(),
        }
    }

    /// A message for people; `None` for success.
    fn message(&self) -> Option<String> {
        match self {
            Self::Ended(exit) if exit.code() == 0 => None,
            Self::Ended(exit) => {
                Some(format!("command terminated with non-zero exit code: exit status {}", exit.code()))
            }
            Self::Failed(why) => Some(format!("Internal error occurred: {why}")),
        }
    }

    fn status(&self) -> Value {
        let Some(message) = self.message() else { return json!({"status": "Success"}) };
        match self {
            Self::Ended(exit) => {
                // Clients parse the code as an 8-bit number; 128 plus a real-time signal still fits.
                let causes = json!([{"reason": "ExitCode", "message": exit.code().to_string()}]);
                json!({
                    "status": "Failure", "message": message,
                    "reason": "NonZeroExitCode", "details": {"causes": causes},
                })
            }
            Self::Failed(_) => json!({
                "status": "Failure", "message": message,
                "reason": "InternalError", "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::signal::SIGRTMAX;

    fn parsed(outcome: &Outcome) -> Value {
        serde_json::from_str(&outcome.text(StatusForm::Json)).unwrap()
    }

    #[test]
    fn every_exit_has_its_status() {
        assert_eq!(parsed(&Outcome::Ended(Exit::Code(0)))["status"], "Success");
        for (exit, code) in [
            (Exit::Code(1), "1"),
            (Exit::Code(255), "255"),
            (Exit::Signal { number: SIGRTMAX, oom: false }, "192"),
            (Exit::Lost, "255"),
        ] {
            let status = parsed(&Outcome::Ended(exit));
            assert_eq!(
                (&status["status"], &status["reason"]),
                (&json!("Failure"), &json!("NonZeroExitCode"))
            );
            assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": code}]));
        }
    }

    #[test]
    fn a_failure_says_why() {
        let status = parsed(&Outcome::Failed("no such program".into()));
        assert_eq!((&status["reason"], &status["code"]), (&json!("InternalError"), &json!(500)));
        assert_eq!(status["message"], "Internal error occurred: no such program");
    }

    #[test]
    fn older_versions_get_text_or_nothing() {
        assert_eq!(Outcome::Ended(Exit::Code(0)).text(StatusForm::Plain), "");
        assert!(Outcome::Ended(Exit::Code(3)).text(StatusForm::Plain).ends_with("code: exit status 3"));
        assert!(Outcome::Failed("why".into()).text(StatusForm::Plain).ends_with("occurred: why"));
    }
}
