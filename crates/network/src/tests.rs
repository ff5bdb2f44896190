//! Tests with the real kernel: every test is a host of its own, in a network namespace of its own.

mod builtin;
mod choice;
mod cni;
mod cni_status;
mod firewall;
mod fixture;
mod neighbours;
mod ports;
mod recovery;
