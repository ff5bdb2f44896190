//! How long a program's arguments and environment may be.
//!
//! An image may have any. The kernel executes no program with longer ones than these, so that a container with them
//! would never run, and would only take room in the state directory and in its pod's supervisor.

use crate::Refusal;

/// What one argument or variable may take, with the NUL behind it: `MAX_ARG_STRLEN`, 32 pages.
const ONE_LIMIT_BYTES: usize = 128 << 10;
/// What all of them may take, each with its NUL and a pointer: a quarter of the usual stack (`bprm_stack_limits`). With
/// a larger stack the kernel would accept more, up to three times as much; a container that needs this is not known.
const ALL_LIMIT_BYTES: usize = 2 << 20;

/// Refuses what cannot be executed.
pub(crate) fn check(args: &[impl AsRef<[u8]>], environment: &[impl AsRef<[u8]>]) -> Result<(), Refusal> {
    let args = measure("args", args)?;
    let environment = measure("envs", environment)?;
    if args + environment <= ALL_LIMIT_BYTES {
        return Ok(());
    }
    let problem = format!(
        "the arguments take {args} bytes and the environment {environment}, but both together may take at most \
         {ALL_LIMIT_BYTES}"
    );
    Err(Refusal::field(if environment > args { "envs" } else { "args" }, problem))
}

/// Refuses the arguments of a further command in a container that can never be executed.
///
/// # Errors
/// [`Refusal`], which says what is too long.
pub fn check_command(command: &[String]) -> Result<(), Refusal> {
    check(command, &[] as &[&[u8]])
}

/// What texts take on the stack of the program.
fn measure(field: &'static str, texts: &[impl AsRef<[u8]>]) -> Result<usize, Refusal> {
    let mut all = 0;
    for text in texts.iter().map(AsRef::as_ref) {
        let taken = text.len() + 1;
        if taken > ONE_LIMIT_BYTES {
            // A value may be a secret.
            let name = text.split(|byte| *byte == b'=').next().unwrap_or_default();
            let begin = String::from_utf8_lossy(&name[..name.len().min(40)]);
            let problem = format!(
                "the one that begins with {begin:?} takes {taken} bytes, but each may take at most {ONE_LIMIT_BYTES}"
            );
            return Err(Refusal::field(field, problem));
        }
        all += taken + size_of::<u64>();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Vec<u8> {
        vec![b'x'; length]
    }

    #[test]
    fn what_the_kernel_takes_is_accepted_to_the_last_byte() {
        let longest = text(ONE_LIMIT_BYTES - 1);
        assert_eq!(check(&[text(0)], std::slice::from_ref(&longest)), Ok(()));
        // 15 of the longest take more than half a KiB less than the bound leaves for the rest.
        let mut environment = vec![longest; 15];
        let taken = environment.len() * (ONE_LIMIT_BYTES + 8);
        environment.push(text(ALL_LIMIT_BYTES - taken - 10 - 9));
        assert_eq!(check(&[text(1)], &environment), Ok(()));
        let refusal = check(&[text(2)], &environment).unwrap_err().to_string();
        assert!(refusal.starts_with("envs: the arguments take 11 bytes"), "{refusal}");
        let refusal = check(&environment, &[text(2)]).unwrap_err().to_string();
        assert!(refusal.starts_with("args: "), "{refusal}");
    }

    #[test]
    fn one_that_is_too_long_is_named_by_its_beginning() {
        let long = format!("NAME={}", "x".repeat(ONE_LIMIT_BYTES));
        let refusal = check(&["sh"], std::slice::from_ref(&long)).unwrap_err().to_string();
        assert!(refusal.starts_with("envs: ") && refusal.contains("\"NAME\" takes"), "{refusal}");
        assert!(refusal.len() < 200, "{refusal}");
        assert!(check_command(&[long]).unwrap_err().to_string().starts_with("args: "));
        assert_eq!(check_command(&["true".to_owned()]), Ok(()));
    }

    /// Small ones take their pointers more than their bytes.
    #[test]
    fn many_that_are_short_are_bounded_too() {
        let many = vec![text(0); ALL_LIMIT_BYTES / 9 + 1];
        assert!(check(&many, &[text(0)]).is_err());
        assert!(many.len() < ALL_LIMIT_BYTES / 8);
    }
}
