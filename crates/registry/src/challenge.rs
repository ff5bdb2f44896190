//! `WWW-Authenticate`, parsed leniently and within bounds: what cannot be understood is skipped, never guessed.

/// How much of one header is parsed, in bytes.
const LIMIT_BYTES: usize = 8 << 10;
/// The most challenges, and the most parameters of one challenge.
const LIMIT_ITEMS: usize = 16;

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// The scheme in lower case.
    pub(crate) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// The first value of a parameter, by its lower-case name.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the challenges of one header.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    if header.len() > LIMIT_BYTES {
        return challenges;
    }
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            return challenges;
        }
        let blank = after.trim_start_matches([' ', '\t']);
        match blank.strip_prefix('=') {
            Some(text) => {
                let Some((value, after)) = value(text.trim_start_matches([' ', '\t', '='])) else {
                    return challenges;
                };
                rest = after;
                // A parameter before any scheme, or beyond the limit, belongs to no challenge.
                if let Some(challenge) = challenges.last_mut().filter(|c| c.params.len() < LIMIT_ITEMS) {
                    challenge.params.push((word.to_ascii_lowercase(), value));
                }
            }
            None if challenges.len() == LIMIT_ITEMS => return challenges,
            None => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() });
                rest = blank;
            }
        }
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)));
    text.split_at(end.unwrap_or(text.len()))
}

/// A quoted string or a bare word; `None` if the quote is not closed.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_challenge_is_read() {
        let text =
            r#"Bearer realm="https://a.b/token?x=1,2",service="a.b", scope="repository:x/y:pull,push""#;
        let all = parse(text);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].scheme, "bearer");
        assert_eq!(all[0].param("realm"), Some("https://a.b/token?x=1,2"));
        assert_eq!(all[0].param("scope"), Some("repository:x/y:pull,push"));
        assert_eq!(all[0].param("error"), None);
    }

    #[test]
    fn several_challenges_are_kept_apart() {
        let all = parse(r#"Basic realm=x, BEARER Realm = "y\"z" ,service=s, Negotiate"#);
        let schemes: Vec<_> = all.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "bearer", "negotiate"]);
        assert_eq!(all[0].param("realm"), Some("x"));
        assert_eq!(all[1].param("realm"), Some("y\"z"));
        assert_eq!(all[1].param("service"), Some("s"));
    }

    #[test]
    fn nonsense_is_skipped_within_bounds() {
        assert!(parse("").is_empty());
        assert!(parse("\u{7f}x").is_empty());
        assert!(parse("realm=\"x\"").is_empty());
        assert!(parse("Bearer realm=\"open").first().is_some_and(|c| c.param("realm").is_none()));
        assert!(parse(&"x ".repeat(9000)).is_empty());
        assert_eq!(parse(&"Basic a=b, ".repeat(100)).len(), LIMIT_ITEMS);
        assert_eq!(parse(&format!("Basic {}", "a=b,".repeat(100)))[0].params.len(), LIMIT_ITEMS);
        for cut in 0..60 {
            parse(&r#"Bearer realm="https://a/é?\"x",service=a b c== ,, "x" =" ö "#.chars().take(cut).collect::<String>());
        }
    }
}
