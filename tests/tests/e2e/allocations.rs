//! How often a program allocates, by breakpoints of the kernel (uprobes) in the functions that do. They are in its
//! file, so they count in every thread and every process that executes it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use perf_event::events::{Event, EventData};
use perf_event::{Builder, Counter};
use perf_event_open_sys::bindings::perf_event_attr;

/// The ends of the names of the functions with which Rust allocates; before them is the compiler's own hash.
const FUNCTIONS: [&str; 3] = ["___rust_alloc", "___rust_alloc_zeroed", "___rust_realloc"];

/// Counts from its making on.
pub(crate) struct Allocations(Vec<Counter>);

impl Allocations {
    /// Those of a program, of which nobody else executes this very file.
    ///
    /// # Panics
    /// The program has no such function, or the kernel sets no breakpoints.
    pub(crate) fn of(program: &Path) -> Self {
        let offsets = offsets(program);
        assert!(!offsets.is_empty(), "{} has no symbols", program.display());
        let processors = std::thread::available_parallelism().unwrap().get();
        let counters =
            offsets.iter().flat_map(|offset| (0..processors).map(|on| counter(program, *offset, on)));
        Self(counters.collect())
    }

    pub(crate) fn count(&mut self) -> usize {
        let counts = self.0.iter_mut().map(|counter| counter.read().unwrap());
        usize::try_from(counts.sum::<u64>()).unwrap()
    }
}

/// Where in its file the functions begin.
fn offsets(program: &Path) -> Vec<u64> {
    let bytes = std::fs::read(program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let is_one = |name: &str| FUNCTIONS.iter().any(|function| name.ends_with(function));
    let functions = file.symbols().filter(|symbol| symbol.is_definition() && symbol.name().is_ok_and(is_one));
    let offset = |address: u64| {
        file.segments().find_map(|segment| {
            let within = address.checked_sub(segment.address()).filter(|within| *within < segment.size())?;
            Some(segment.file_range().0 + within)
        })
    };
    functions.filter_map(|symbol| offset(symbol.address())).collect()
}

fn counter(program: &Path, offset: u64, processor: usize) -> Counter {
    let path = CString::new(program.as_os_str().as_bytes()).unwrap();
    let mut builder = Builder::new(Breakpoint { path, offset });
    let counter = builder.any_pid().one_cpu(processor).include_kernel().build();
    let mut counter = counter.unwrap_or_else(|error| {
        panic!(
            "the kernel sets no breakpoint in {}, which takes root and uprobes: {error}",
            program.display()
        )
    });
    counter.enable().unwrap();
    counter
}

/// A breakpoint at an offset of a file.
struct Breakpoint {
    path: CString,
    offset: u64,
}

impl Event for Breakpoint {
    fn update_attrs(self, _attributes: &mut perf_event_attr) {
        unreachable!("the path must live as long as the builder");
    }

    fn update_attrs_with_data(self, attributes: &mut perf_event_attr) -> Option<Arc<dyn EventData>> {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").unwrap();
        attributes.type_ = kind.trim().parse().unwrap();
        attributes.uprobe_path = self.path.as_ptr().addr() as u64;
        attributes.probe_offset = self.offset;
        Some(Arc::new(self.path))
    }
}
