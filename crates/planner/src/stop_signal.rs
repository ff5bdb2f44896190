//! Stop signals: the names of images and requests, the kernel's numbers, and the CRI's own list.
//!
//! The name is what records and the spec have; the number is the kernel's and is used only when the signal is sent.

use wharf_cri_api::v1::Signal;

use crate::request::Request;

/// The kernel's signals that the CRI has, by name without prefix, alphabetical as in the CRI's list.
const NAMES: [(&str, i32); 31] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("KILL", 9),
    ("PIPE", 13),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// The canonical name, such as `SIGTERM`, of a name or number; `None` if it is neither.
#[must_use]
pub fn canonical(text: &str) -> Option<String> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        let name = NAMES.iter().find(|(_, known)| *known == number).map(|(name, _)| format!("SIG{name}"));
        return name.or_else(|| real_time_name(number));
    }
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let name = format!("SIG{short}");
    // Real-time signals can be counted from either end; the CRI has only one name for each.
    number(&name).map(|number| real_time_name(number).unwrap_or(name))
}

/// The name of the signal that stops a container: the request's, else the image's, else SIGTERM.
pub(crate) fn of(request: &Request<'_>) -> String {
    let images = || canonical(request.image.stop_signal().as_deref()?);
    from_cri(request.container.stop_signal()).or_else(images).unwrap_or_else(|| "SIGTERM".to_owned())
}

fn real_time_name(number: i32) -> Option<String> {
    match number {
        34 => Some("SIGRTMIN".to_owned()),
        35..=49 => Some(format!("SIGRTMIN+{}", number - 34)),
        50..=63 => Some(format!("SIGRTMAX-{}", 64 - number)),
        64 => Some("SIGRTMAX".to_owned()),
        _ => None,
    }
}

/// The kernel's number for a canonical name.
#[must_use]
pub fn number(name: &str) -> Option<i32> {
    let short = name.strip_prefix("SIG")?;
    if let Some(offset) = short.strip_prefix("RTMIN") {
        return if offset.is_empty() {
            Some(34)
        } else {
            offset.strip_prefix('+')?.parse().ok().map(|n: i32| 34 + n)
        }
        .filter(|number| (34..=64).contains(number));
    }
    if let Some(offset) = short.strip_prefix("RTMAX") {
        return if offset.is_empty() {
            Some(64)
        } else {
            offset.strip_prefix('-')?.parse().ok().map(|n: i32| 64 - n)
        }
        .filter(|number| (34..=64).contains(number));
    }
    NAMES.iter().find(|(known, _)| *known == short).map(|(_, number)| *number)
}

/// The CRI's value for a canonical name.
#[must_use]
pub fn cri_signal(name: &str) -> Signal {
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    Signal::from_str_name(&format!("SIGNAL_{name}")).unwrap_or_default()
}

/// The canonical name for a value of the CRI; `None` for the runtime's default.
#[must_use]
pub fn from_cri(signal: Signal) -> Option<String> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    canonical(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_cri_has_a_number_and_comes_back() {
        let mut seen = 0;
        for value in 1..=65 {
            let Ok(signal) = Signal::try_from(value) else { continue };
            if let Some(name) = from_cri(signal) {
                assert!(number(&name).is_some(), "{name}");
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen}");
        assert_eq!(cri_signal("SIGTERM").as_str_name(), "SIGNAL_SIGTERM");
    }

    #[test]
    fn names_and_numbers_are_one() {
        for text in ["15", "term", "SIGTERM", "TERM"] {
            assert_eq!(canonical(text).as_deref(), Some("SIGTERM"));
        }
        assert_eq!(number("SIGRTMIN+3"), Some(37));
        for text in ["SIGRTMIN+20", "rtmax-10", "54"] {
            let name = canonical(text).unwrap();
            assert_eq!((name.as_str(), number(&name)), ("SIGRTMAX-10", Some(54)));
            assert_eq!(cri_signal(&name).as_str_name(), "SIGNAL_SIGRTMAXMINUS10");
        }
        assert_eq!(canonical("SIGNOPE"), None);
        assert_eq!(canonical("99"), None);
    }
}
