//! A revision: one component, checked, compiled and linked, ready to be instantiated.
//!
//! Loading runs no code of the guest. Whether its answers are any good is for admission, which calls it. Many revisions
//! are kept and few are used, so the compiled code of one that rests is in memory only while something is bound to it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentExportIndex, ComponentNamedList, InstancePre, Lift, Linker, Lower};

use super::breaker;
use super::fault::Fault;
use super::imports::log::Line;
use super::imports::{NEVER_WAIT, REGISTRY, REGISTRY_WRITE, WAIT, wasi};
use super::limits::{self, Limits};
use super::pool::Pooled;
use super::scan;
use super::state::{Shared, State};
use super::stats::{Counts, Snapshot, Stats};
use super::view::{Partial, Plan, Read, Select, Total, ViewRecord};

/// Which question a policy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    Selection,
    Aggregation,
}

impl World {
    pub fn name(self) -> &'static str {
        match self {
            Self::Selection => "selection",
            Self::Aggregation => "aggregation",
        }
    }
}

/// Where a revision's calls run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "runs", content = "because")]
pub enum Placement {
    /// On the thread that serves the request.
    Inline,
    /// On the pool, for this reason.
    Pooled(String),
}

/// Why a component or a config is not accepted. Each is a sentence for whoever uploaded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error(
        "a policy's name has 1 to {max} of the characters a-z, 0-9, '.', '_' and '-', and begins with a letter or digit; \
         this one is {0:?}",
        max = limits::NAME_BYTES_MAX
    )]
    Name(String),
    #[error("the component has {bytes} bytes; the limit is {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("this is no WebAssembly component: {0}")]
    NotAComponent(&'static str),
    #[error("the component is too much to compile: {0}")]
    Structure(String),
    #[error("the component is not valid: {0}")]
    Invalid(String),
    #[error("the component did not compile within {0:?}")]
    CompileTime(Duration),
    #[error("too many components are being compiled or tried out; try again later")]
    Busy,
    #[error("{0}")]
    World(String),
    #[error("the component imports {0:?}, which no policy is given")]
    Import(String),
    #[error("the component has {count} imports; the limit is {}", limits::IMPORTS_MAX)]
    TooManyImports { count: usize },
    #[error("the component does not fit its world: {0}")]
    Interface(String),
    #[error("the config has {bytes} bytes; the limit is {}", limits::CONFIG_BYTES_MAX)]
    ConfigTooLong { bytes: usize },
    /// The guest's own words.
    #[error("the policy refuses this config: {0}")]
    Config(String),
    #[error("the policy failed while it was configured: {0}")]
    Fault(#[source] Fault),
    #[error("{} rules' policies are in use at once; no more can be", limits::BINDINGS_MAX)]
    TooManyBindings,
    /// Whoever binds a revision that rests wakes it first.
    #[error("the compiled code of this revision is not in memory")]
    Rests,
}

/// What the uploader or the operator says about a revision.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The revision's own limits; the server's hold where they are smaller.
    pub limits: Option<Limits>,
    /// Run it on the pool though it could run inline, for this reason (admission found it slow, for example).
    pub pooled_because: Option<String>,
}

pub struct Revision {
    pub world: World,
    /// Names of the interfaces it imports.
    pub imports: Vec<String>,
    /// Of the component as uploaded.
    pub size_bytes: usize,
    pub placement: Placement,
    pub(super) shared: Arc<Shared>,
    pub(super) resident: Mutex<Resident>,
    pub(super) pooled: Pooled,
}

/// Compiled and linked: what instances are made of.
pub(super) struct Code {
    pub pre: InstancePre<State>,
    pub exports: Exports,
}

/// The code of one revision while it is in memory. Bindings hold it.
pub(super) struct Resident {
    /// None while the revision rests.
    kept: Option<Arc<Code>>,
    code: Weak<Code>,
}

impl Resident {
    pub fn new(code: Arc<Code>) -> Mutex<Self> {
        Mutex::new(Self { code: Arc::downgrade(&code), kept: Some(code) })
    }
}

/// Holds the code of a revision in memory until it is bound.
pub struct Awake {
    _code: Arc<Code>,
}

impl Revision {
    /// What is needed to bind it, if it is in memory.
    pub(super) fn code(&self) -> Result<Arc<Code>, Rejected> {
        self.resident.lock().code.upgrade().ok_or(Rejected::Rests)
    }

    /// From now on its code is in memory only while something is bound to it or holds an [`Awake`].
    pub(super) fn rest(&self) {
        self.resident.lock().kept = None;
    }

    /// Holds the code where it is still in memory.
    pub(super) fn stay_awake(&self) -> Option<Awake> {
        self.code().ok().map(|_code| Awake { _code })
    }

    /// Its code is in memory again. Two that came at once share the first.
    pub(super) fn woken(&self, code: Code) -> Awake {
        let mut resident = self.resident.lock();
        let code = resident.code.upgrade().unwrap_or_else(|| Arc::new(code));
        resident.code = Arc::downgrade(&code);
        Awake { _code: code }
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// `sha256:<hex>` of the component as uploaded.
    pub fn digest(&self) -> &str {
        &self.shared.digest
    }

    pub fn is_inline(&self) -> bool {
        self.placement == Placement::Inline
    }

    /// It is on the pool because its calls kept serving threads busy.
    pub(super) fn kept_busy(&self) -> bool {
        matches!(&self.placement, Placement::Pooled(because) if because == limits::KEPT_BUSY)
    }

    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// The worst under any rule.
    pub fn breaker(&self) -> breaker::State {
        self.shared.breakers.state()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.shared.stats.snapshot(self.breaker())
    }

    /// Ends its quarantine, or the pause of an open breaker, under every rule: the next call goes to the policy.
    pub fn release(&self) {
        self.shared.breakers.release();
    }

    /// Calls, faults and latency since it was loaded, to be compared with a later look.
    pub fn counts(&self) -> Counts {
        self.shared.stats.counts()
    }

    /// What it logged lately: lines numbered above `after`, oldest first.
    pub fn log_lines(&self, after: u64) -> Vec<Line> {
        self.shared.lines.after(after)
    }

    pub(super) fn memory_bytes_max(&self) -> usize {
        match self.placement {
            Placement::Inline => self.shared.limits.memory_inline_bytes,
            Placement::Pooled(_) => self.shared.limits.memory_pooled_bytes,
        }
    }
}

impl std::fmt::Debug for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revision").field("name", &self.name()).field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// `sha256:<hex>`: how a revision is named.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Names become paths, metric labels and spaces of the store.
pub(super) fn check_name(name: &str) -> Result<(), Rejected> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let first = name.bytes().next();
    let good = name.len() <= limits::NAME_BYTES_MAX
        && name.bytes().all(allowed)
        && first.is_some_and(|byte| byte.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(Rejected::Name(name.chars().take(limits::NAME_BYTES_MAX).collect())) }
}

/// Tells a component from what is often sent in its place, before anything is compiled.
pub(super) fn check_bytes(bytes: &[u8], max: usize) -> Result<(), Rejected> {
    if bytes.len() > max {
        return Err(Rejected::TooLarge { bytes: bytes.len(), max });
    }
    match bytes {
        [b'\0', b'a', b's', b'm', _, _, 1, 0, ..] => scan::scan(bytes),
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(Rejected::NotAComponent(
            "it is a core module; build it for wasm32-wasip2, or wrap it with `wasm-tools component new`",
        )),
        [] => Err(Rejected::NotAComponent("there are no bytes")),
        [b'\0', b'a', b's', b'm', ..] => {
            Err(Rejected::NotAComponent("its header is cut short or of an unknown version"))
        }
        _ => Err(Rejected::NotAComponent("it does not begin as WebAssembly does")),
    }
}

/// The exported instance of one of our worlds, and its version.
pub(super) fn world_of(component: &Component) -> Result<(World, String), Rejected> {
    let ty = component.component_type();
    let names: Vec<&str> = ty.exports(component.engine()).map(|(name, _)| name).collect();
    let find = |interface: &str| names.iter().find(|name| name.split('@').next() == Some(interface));
    let (world, name) = match (find("quipu:policy/selector"), find("quipu:policy/aggregator")) {
        (Some(name), None) => (World::Selection, name),
        (None, Some(name)) => (World::Aggregation, name),
        (Some(_), Some(_)) => {
            let text =
                "the component exports both quipu:policy/selector and quipu:policy/aggregator; a policy is one of them";
            return Err(Rejected::World(text.into()));
        }
        (None, None) => {
            let shown: Vec<&str> = names.iter().take(5).copied().collect();
            let text = format!(
                "the component exports neither quipu:policy/selector nor quipu:policy/aggregator, but {shown:?}"
            );
            return Err(Rejected::World(text));
        }
    };
    if !hosted(name) {
        return Err(Rejected::World(format!("the component exports {name}; this host knows version 1.0")));
    }
    Ok((world, (*name).to_owned()))
}

/// Whether a name such as `quipu:policy/log@1.0.0` is of a version that this host offers.
fn hosted(name: &str) -> bool {
    name.split_once('@').is_some_and(|(_, version)| version == "1.0" || version.starts_with("1.0."))
}

/// Names of the imports, all of them allowed, and where the component has to run because of them. `mirrored` says that the
/// registry can be read without waiting.
pub(super) fn imports_of(component: &Component, mirrored: bool) -> Result<(Vec<String>, Placement), Rejected> {
    let ty = component.component_type();
    let names: Vec<String> = ty.imports(component.engine()).map(|(name, _)| name.to_owned()).collect();
    if names.len() > limits::IMPORTS_MAX {
        return Err(Rejected::TooManyImports { count: names.len() });
    }
    let mut placement = Placement::Inline;
    for name in &names {
        let interface = name.split('@').next().unwrap_or_default();
        let ours = NEVER_WAIT.contains(&interface) || wasi::INLINE.iter().any(|prefix| interface.starts_with(prefix));
        let reads_only = || mirrored && interface == REGISTRY && !imports_function(component, name, REGISTRY_WRITE);
        if reads_only() {
            continue;
        }
        let pooled = WAIT.contains(&interface) || wasi::POOLED.iter().any(|prefix| interface.starts_with(prefix));
        match (ours, pooled) {
            (false, false) => return Err(Rejected::Import(name.clone())),
            (_, true) if placement == Placement::Inline => {
                placement = Placement::Pooled(format!("it imports {interface}"))
            }
            _ => {}
        }
    }
    Ok((names, placement))
}

/// Whether a component calls this function of an interface that it imports: tools leave out those that it does not.
fn imports_function(component: &Component, interface: &str, function: &str) -> bool {
    let ty = component.component_type();
    let found = ty.imports(component.engine()).find(|(name, _)| *name == interface).map(|(_, item)| item.ty);
    match found {
        Some(ComponentItem::ComponentInstance(instance)) => {
            instance.exports(component.engine()).any(|(name, _)| name == function)
        }
        _ => true,
    }
}

/// A component whose first memory is larger than an inline instance may have runs on the pool.
pub(super) fn placement_by_memory(component: &Component, limits: &Limits) -> Option<Placement> {
    let initial = component.resources_required()?.max_initial_memory_size?;
    let limit = limits.memory_inline_bytes;
    (initial > limit as u64)
        .then(|| Placement::Pooled(format!("its memory begins with {initial} bytes; inline ones have at most {limit}")))
}

/// The world's functions, found and type-checked once.
#[derive(Debug)]
pub(super) enum Exports {
    Selection {
        configure: ComponentExportIndex,
        refresh: ComponentExportIndex,
        select: ComponentExportIndex,
    },
    Aggregation {
        configure: ComponentExportIndex,
        refresh: ComponentExportIndex,
        plan: ComponentExportIndex,
        combine: ComponentExportIndex,
    },
}

/// Parameters and results of the exported functions.
pub(super) type Configure = ((String,), (Result<(), String>,));
pub(super) type Refresh<'a> = ((ViewRecord<'a>,), ());
pub(super) type SelectCall<'a> = ((Select<'a>,), (u32,));
pub(super) type PlanCall<'a> = ((Read<'a>,), (Plan,));
pub(super) type CombineCall<'a> = ((&'a [Partial],), (Result<Total, String>,));

impl Exports {
    fn find(pre: &InstancePre<State>, world: World, name: &str) -> Result<Self, Rejected> {
        let instance = pre.component().get_export_index(None, name);
        let instance = instance.ok_or_else(|| Rejected::Interface(format!("{name} is no instance")))?;
        let finder = Finder { pre, instance };
        let configure = finder.function::<Configure>("configure")?;
        let refresh = finder.function::<Refresh<'static>>("refresh")?;
        Ok(match world {
            World::Selection => {
                Self::Selection { configure, refresh, select: finder.function::<SelectCall<'static>>("select")? }
            }
            World::Aggregation => Self::Aggregation {
                configure,
                refresh,
                plan: finder.function::<PlanCall<'static>>("plan")?,
                combine: finder.function::<CombineCall<'static>>("combine")?,
            },
        })
    }
}

struct Finder<'a> {
    pre: &'a InstancePre<State>,
    instance: ComponentExportIndex,
}

/// A pair of parameters and results.
trait Signature {
    type Params: ComponentNamedList + Lower;
    type Return: ComponentNamedList + Lift;
}

impl<P: ComponentNamedList + Lower, R: ComponentNamedList + Lift> Signature for (P, R) {
    type Params = P;
    type Return = R;
}

impl Finder<'_> {
    fn function<S: Signature>(&self, name: &str) -> Result<ComponentExportIndex, Rejected> {
        let found = self.pre.component().get_export(Some(&self.instance), name);
        let Some((ComponentItem::ComponentFunc(ty), index)) = found else {
            return Err(Rejected::Interface(format!("it does not export the function {name:?}")));
        };
        ty.typecheck::<S::Params, S::Return>(&self.pre.instance_type())
            .map_err(|error| Rejected::Interface(format!("the function {name:?} has another type: {error:#}")))?;
        Ok(index)
    }
}

/// Links a checked component.
pub(super) fn link(linker: &Linker<State>, component: &Component, world: World, name: &str) -> Result<Code, Rejected> {
    let pre = linker.instantiate_pre(component).map_err(|error| Rejected::Interface(format!("{error:#}")))?;
    let exports = Exports::find(&pre, world, name)?;
    Ok(Code { pre, exports })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        for good in ["a", "least-cpu", "0", "x.y_z-1", &"a".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "A", "-a", "_a", "a b", "é", &"a".repeat(65), "a\0"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_component_is_named() {
        let reason = |bytes: &[u8]| check_bytes(bytes, 100).unwrap_err().to_string();
        assert!(reason(b"\0asm\x01\0\0\0").contains("core module"));
        assert!(reason(b"\0asm\x0d").contains("cut short"));
        assert!(reason(b"hello").contains("does not begin"));
        assert!(reason(b"").contains("no bytes"));
        assert_eq!(check_bytes(&[0; 101], 100), Err(Rejected::TooLarge { bytes: 101, max: 100 }));
        assert_eq!(check_bytes(b"\0asm\x0d\0\x01\0", 100), Ok(()));
    }

    #[test]
    fn older_patches_of_our_version_are_hosted() {
        assert!(hosted("quipu:policy/log@1.0.0") && hosted("quipu:policy/log@1.0.7"));
        assert!(!hosted("quipu:policy/log@1.1.0") && !hosted("quipu:policy/log@2.0.0") && !hosted("quipu:policy/log"));
    }

    #[test]
    fn a_digest_is_named_by_its_function() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
