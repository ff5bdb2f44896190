//! `wharf doctor`: can this machine run containers, and if not, what is to be done.
//!
//! It works without a daemon too, and says then what it could not look at.

mod machine;
mod service;

use std::process::ExitCode;

use serde::Serialize;
use wharf_cri_api::admin::{InfoRequest, InfoResponse};

use crate::args::Socket;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{Output, Row};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// Something will not work, or may not.
    Warn,
    /// No container can run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Fail, found: found.into(), advice: advice.into() }
    }
}

impl Check {
    /// Nothing is to be done about what is well.
    fn without_needless_advice(mut self) -> Self {
        if self.verdict == Verdict::Ok {
            self.advice.clear();
        }
        self
    }
}

impl Row for Check {
    const HEADINGS: &'static [&'static str] = &["", "CHECK", "FOUND"];

    fn cells(&self) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let found = match self.advice.as_str() {
            "" => self.found.clone(),
            advice => format!("{}: {advice}", self.found),
        };
        vec![verdict.to_owned(), self.what.to_owned(), found]
    }
}

/// What a daemon told, or why none did.
pub(crate) type Told = Result<(Daemon, InfoResponse), Error>;

pub(crate) async fn doctor(socket: &Socket, output: Output) -> Result<ExitCode, Error> {
    let told = ask(socket).await;
    let mut checks = machine::checks();
    checks.extend(service::checks(told).await);
    output.rows(&checks)?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn ask(socket: &Socket) -> Told {
    let mut daemon = Daemon::connect(socket).await?;
    let info = daemon.admin.info(InfoRequest {}).await;
    let info = info.map_err(Error::call("asking wharfd about itself"))?.into_inner();
    Ok((daemon, info))
}
