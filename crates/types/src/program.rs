//! Programs: where they are searched for, and why one cannot be executed. People read these texts, and the command line
//! recognises them.

/// The search path if the environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file, or the interpreter that it names, does not exist.
pub const MISSING: &str = "no such file or directory in the container (the program, or its interpreter)";

/// Before the name of the architecture that a file is for.
pub const FOREIGN: &str = "it is a program for";

/// Before the interpreter that a file names, and what is wrong with that.
pub const INTERPRETER: &str = "the interpreter that it names";

/// The user who is to execute the file may not.
pub const DENIED: &str = "permission denied: it is not executable by this user";

/// The file is for another architecture, or is not a program at all.
pub const FORMAT: &str = "exec format error: not a program for this machine";
