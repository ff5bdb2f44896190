//! An exit as a supervisor tells it.

use wharf_types::Exit;
use wharf_wire::v1::{self, exit::Kind};

/// How something ended; one that is not told of is lost.
pub(crate) fn exit_of(told: Option<v1::Exit>) -> Exit {
    let Some(told) = told else { return Exit::Lost };
    let value = u8::try_from(told.value).unwrap_or(u8::MAX);
    match told.kind() {
        Kind::Code => Exit::Code(value),
        Kind::Signal => Exit::Signal { number: value, oom: told.oom },
        Kind::NotStarted => Exit::NotStarted,
        Kind::Lost => Exit::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_is_what_it_was_told_to_be() {
        let table = [
            (Kind::Code, 3, false, Exit::Code(3)),
            (Kind::Code, 300, false, Exit::Code(255)),
            (Kind::Signal, 15, false, Exit::Signal { number: 15, oom: false }),
            (Kind::Signal, 9, true, Exit::Signal { number: 9, oom: true }),
            (Kind::NotStarted, 0, false, Exit::NotStarted),
            (Kind::Lost, 0, false, Exit::Lost),
        ];
        for (kind, value, oom, expected) in table {
            let told = v1::Exit { kind: kind.into(), value, oom };
            assert_eq!(exit_of(Some(told)), expected);
        }
        assert_eq!(exit_of(None), Exit::Lost);
    }
}
