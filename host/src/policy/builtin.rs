//! The policies that come with the binary. They are components like anybody's and have no privilege; only their bytes
//! need no upload.

/// One embedded component.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    pub name: &'static str,
    pub bytes: &'static [u8],
}

/// `host/build.rs` has the same list and finds the files.
macro_rules! builtins {
    ($($name:literal in $file:literal),* $(,)?) => {
        &[$(Builtin { name: $name, bytes: include_bytes!(concat!(env!("QUIPU_BUILTIN_POLICIES"), "/", $file, ".wasm")) }),*]
    };
}

/// All of them, by name.
pub const ALL: &[Builtin] = builtins![
    "available-sum" in "available_sum",
    "cached-sum" in "cached_sum",
    "least-cpu" in "least_cpu",
    "local-first" in "local_first",
    "max" in "max",
    "random" in "random",
    "rendezvous" in "rendezvous",
    "round-robin" in "round_robin",
    "sum" in "sum",
    "two-choices" in "two_choices",
    "value-modulo" in "value_modulo",
];

/// The bytes of the built-in of this name.
pub fn find(name: &str) -> Option<Builtin> {
    ALL.iter().copied().find(|builtin| builtin.name == name)
}
