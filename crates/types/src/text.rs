//! Texts of other programs, in messages of ours.

/// What a program said, on one line: its lines without the empty ones, separated by semicolons.
#[must_use]
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_without_the_empty_ones() {
        assert_eq!(one_line("one\n\n  two \n"), "one; two");
        assert_eq!(one_line(" \n"), "");
    }
}
