//! Tests with the real kernel: every test is a host of its own, in a network namespace of its own.

/// Each of the functions is a test in either mode of the built-in network.
macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => {
        mod routed {
            $(#[test] fn $name() { super::$name(crate::Mode::Routed); })*
        }
        mod bridge {
            $(#[test] fn $name() { super::$name(crate::Mode::Bridge); })*
        }
    };
}

mod builtin;
mod choice;
mod cni;
mod cni_status;
mod firewall;
mod fixture;
mod modes;
mod neighbours;
mod ports;
mod recovery;
