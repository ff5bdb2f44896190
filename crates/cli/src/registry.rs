//! `wharf registry`: which hosts would be asked for an image.

use std::process::ExitCode;

use serde_json::{Value, json};
use wharf_cri_api::admin::{ExplainRegistryRequest, NameMeaning, RegistryHost};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{Output, table};

const HEADINGS: [&str; 5] = ["HOST", "ROLE", "CREDENTIALS", "CONNECTION", "FILE"];

/// Returns the exit code: 1 if a pull would ask nobody.
pub(crate) async fn explain(daemon: &mut Daemon, output: Output, image: String) -> Result<ExitCode, Error> {
    let answer = daemon.admin.explain_registry(ExplainRegistryRequest { image }).await;
    let meanings =
        answer.map_err(Error::call("asking which registries would be asked"))?.into_inner().meanings;
    let value: Vec<_> = meanings.iter().map(json).collect();
    let texts: Vec<_> = meanings.iter().map(text).collect();
    output.result(&value, &texts.join("\n"))?;
    Ok(if is_asked_for(&meanings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether somebody would be asked for one of the meanings.
fn is_asked_for(meanings: &[NameMeaning]) -> bool {
    meanings.iter().any(|meaning| !meaning.hosts.is_empty())
}

fn json(meaning: &NameMeaning) -> Value {
    let hosts = meaning.hosts.iter().map(|host| {
        json!({
            "url": host.url, "role": role(host), "capabilities": host.capabilities, "file": host.file,
            "authorities": host.authorities, "clientCertificates": host.client_certificates,
            "proof": host.proof, "proxy": host.proxy, "credentials": host.credentials,
        })
    });
    json!({ "image": meaning.image, "hosts": hosts.collect::<Vec<_>>(), "problem": meaning.problem })
}

fn text(meaning: &NameMeaning) -> String {
    if !meaning.problem.is_empty() {
        return format!("{}: nobody is asked: {}\n", meaning.image, meaning.problem);
    }
    let rows: Vec<Vec<String>> = meaning.hosts.iter().map(cells).collect();
    format!("{} is asked for at, in this order:\n{}", meaning.image, table(&HEADINGS, &rows))
}

fn cells(host: &RegistryHost) -> Vec<String> {
    let or_none = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
    vec![
        host.url.clone(),
        role(host),
        or_none(&host.credentials, "none of this node"),
        connection(host),
        or_none(&host.file, "no file"),
    ]
}

/// `mirror`, `registry`; with what it may be asked for, if that is not all.
fn role(host: &RegistryHost) -> String {
    let role = if host.is_mirror { "mirror" } else { "registry" };
    let may = |what: &str| host.capabilities.iter().any(|capability| capability == what);
    match (may("pull"), may("resolve")) {
        (true, true) => role.to_owned(),
        (true, false) => format!("{role}, not for tags"),
        (false, true) => format!("{role}, only for tags"),
        (false, false) => format!("{role}, for nothing"),
    }
}

/// How the host's identity is proved, and the proxy.
fn connection(host: &RegistryHost) -> String {
    let proof = match (host.proof.as_str(), host.authorities.as_slice()) {
        ("plain", _) => "not encrypted".to_owned(),
        ("verified", files @ [_, ..]) => format!("verified, also by {}", files.join(", ")),
        (proof, _) => proof.to_owned(),
    };
    let shown = host.client_certificates.iter().map(|file| format!(", shows {file}"));
    let proxy =
        Some(&host.proxy).filter(|proxy| !proxy.is_empty()).map(|proxy| format!(", by way of {proxy}"));
    std::iter::once(proof).chain(shown).chain(proxy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_the_order_and_the_reason() {
        let mirror = RegistryHost {
            url: "https://m.x/v2/cache/app".into(),
            is_mirror: true,
            capabilities: vec!["pull".into()],
            file: "/etc/r.conf".into(),
            authorities: vec!["/c/ca.crt".into()],
            proof: "verified".into(),
            proxy: "p.x:3128".into(),
            ..RegistryHost::default()
        };
        let own = RegistryHost {
            url: "http://a.b/v2/app".into(),
            capabilities: vec!["pull".into(), "resolve".into()],
            proof: "plain".into(),
            credentials: "/etc/auth.json, \"a.b\"".into(),
            ..RegistryHost::default()
        };
        let meaning =
            NameMeaning { image: "a.b/app:v1".into(), hosts: vec![mirror, own], ..Default::default() };
        let shown = text(&meaning);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "a.b/app:v1 is asked for at, in this order:");
        for words in ["mirror, not for tags", "none of this node", "also by /c/ca.crt, by way of p.x:3128"] {
            assert!(lines[2].contains(words), "{}", lines[2]);
        }
        for words in ["not encrypted", "/etc/auth.json, \"a.b\"", "no file"] {
            assert!(lines[3].contains(words), "{}", lines[3]);
        }
        let problem =
            NameMeaning { image: "a.b/x".into(), problem: "it is blocked".into(), ..Default::default() };
        assert_eq!(text(&problem), "a.b/x: nobody is asked: it is blocked\n");
        assert_eq!(json(&meaning)["hosts"][0]["role"], "mirror, not for tags");
        assert!(!is_asked_for(std::slice::from_ref(&problem)));
        assert!(is_asked_for(&[problem, meaning]));
    }
}
