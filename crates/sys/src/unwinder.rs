//! Empty versions of an unwinder's functions, so that the linker includes no real one. A program that aborts on a panic
//! and is stripped unwinds nothing, and its backtraces name nothing; an unwinder would be a tenth of the supervisor.

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK`.
const END_OF_STACK: c_int = 5;

/// A backtrace without frames.
// SAFETY: the name is the system's for this, and nothing is done with the arguments.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_frame: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

/// Functions that only a working unwinder calls.
macro_rules! never_called {
    ($($name:ident)*) => {$(
        // SAFETY: the name is the system's; whoever calls it cannot go on, and does not.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )*};
}

never_called! {
    _Unwind_GetDataRelBase
    _Unwind_GetIP
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_SetGR
    _Unwind_SetIP
}
