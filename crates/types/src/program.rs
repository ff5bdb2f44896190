//! Programs: where they are looked for, and why one cannot be executed, in the words that people read and that the command
//! line knows again.

/// Where programs are looked for if the environment does not say it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// There is no such file, or not the interpreter that it names.
pub const MISSING: &str = "no such file or directory in the container (the program, or its interpreter)";

/// The file is not to be executed by whom is to execute it.
pub const DENIED: &str = "permission denied: it is not executable by this user";

/// The file is of another machine, or no program at all.
pub const FORMAT: &str = "exec format error: not a program for this machine";
