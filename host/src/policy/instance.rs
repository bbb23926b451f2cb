//! One instance of a policy: its store and its typed functions, inline (plain calls) or pooled (asynchronous ones).
//!
//! Requests are lowered from borrowed data, so the host allocates nothing for a call. After any fault of the guest the
//! instance must be dropped: its memory may be in any state.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use wasmtime::component::{ComponentNamedList, Instance as Linked, Lift, Lower, TypedFunc};
use wasmtime::{Store, UpdateDeadline};

use super::binding::Binding;
use super::fault::{Fault, Kind};
use super::imports::log;
use super::recording::format::{self as line, Answer, Line, Shard};
use super::revision::{CombineCall, Configure, Exports, PlanCall, Refresh, SelectCall};
use super::state::{Asked, State};
use super::view::{Partial, Plan, Read, Select, Total, View};

/// An instance could not be made.
#[derive(Debug)]
pub(super) enum Unready {
    Fault(Fault),
    /// The guest's `configure` answered with this error.
    Config(String),
}

impl From<Fault> for Unready {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Unready> for Fault {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Fault(fault) => fault,
            Unready::Config(text) => Fault::new(Kind::Refused, format!("configure: {text}")),
        }
    }
}

type CombineReturn = (Result<Total, String>,);
type Function<Call> = TypedFunc<<Call as Pair>::Params, <Call as Pair>::Return>;

trait Pair {
    type Params;
    type Return;
}

impl<P, R> Pair for (P, R) {
    type Params = P;
    type Return = R;
}

#[derive(Clone, Copy)]
enum Functions {
    Selection { select: Function<SelectCall<'static>> },
    Aggregation { plan: Function<PlanCall<'static>>, combine: Function<CombineCall<'static>> },
}

pub(super) struct Instance {
    store: Store<State>,
    configure: Function<Configure>,
    refresh: Function<Refresh<'static>>,
    functions: Functions,
    /// Which publication of the view it was refreshed with last; 0 for none.
    pub generation: u64,
}

impl Instance {
    /// Instantiates and configures on this thread, within CPU time.
    pub fn new(binding: &Binding) -> Result<Self, Unready> {
        let mut store = store(binding);
        store.epoch_deadline_callback(|mut context| {
            context.data_mut().tick()?;
            Ok(UpdateDeadline::Continue(1))
        });
        let linked = binding.code.pre.instantiate(&mut store);
        let mut instance = Self::linked(binding, store, linked)?;
        let (configure, config) = (instance.configure, (binding.config.clone(),));
        let answer = configure.call(&mut instance.store, config);
        instance.configured(binding, answer)
    }

    /// The same on the pool; whoever awaits it limits its wall time.
    pub async fn new_async(binding: &Binding) -> Result<Self, Unready> {
        let mut store = store(binding);
        store.epoch_deadline_async_yield_and_update(1);
        let linked = binding.code.pre.instantiate_async(&mut store).await;
        let mut instance = Self::linked(binding, store, linked)?;
        let (configure, config) = (instance.configure, (binding.config.clone(),));
        let answer = configure.call_async(&mut instance.store, config).await;
        instance.configured(binding, answer)
    }

    fn linked(binding: &Binding, mut store: Store<State>, linked: wasmtime::Result<Linked>) -> Result<Self, Unready> {
        let found = linked.and_then(|linked| {
            Ok(match &binding.code.exports {
                Exports::Selection { configure, refresh, select } => (
                    linked.get_typed_func(&mut store, configure)?,
                    linked.get_typed_func(&mut store, refresh)?,
                    Functions::Selection { select: linked.get_typed_func(&mut store, select)? },
                ),
                Exports::Aggregation { configure, refresh, plan, combine } => (
                    linked.get_typed_func(&mut store, configure)?,
                    linked.get_typed_func(&mut store, refresh)?,
                    Functions::Aggregation {
                        plan: linked.get_typed_func(&mut store, plan)?,
                        combine: linked.get_typed_func(&mut store, combine)?,
                    },
                ),
            })
        });
        match found {
            Ok((configure, refresh, functions)) => Ok(Self { store, configure, refresh, functions, generation: 0 }),
            Err(error) => Err(store.data().classify(&error).into()),
        }
    }

    fn configured(self, binding: &Binding, answer: wasmtime::Result<(Result<(), String>,)>) -> Result<Self, Unready> {
        let state = self.store.data();
        let answer = match answer {
            Ok((Ok(()),)) => Ok(()),
            Ok((Err(text),)) => {
                let max = state.shared.limits.error_text_bytes;
                Err(Unready::Config(log::cut(&text, max).to_owned()))
            }
            Err(error) => Err(state.classify(&error).into()),
        };
        self.note(|instance, heard| {
            let (revision, config) = (binding.revision.digest().to_owned(), binding.config.clone());
            let (rule, grants, pooled) = (binding.taping.rule(), binding.grants, !binding.revision.is_inline());
            let seed = state.tape.as_ref().expect("only an instance with a tape takes notes").seed();
            let answer = match &answer {
                Ok(()) => Answer::Ok(()),
                Err(Unready::Config(text)) => Answer::Refused(text.clone()),
                Err(Unready::Fault(fault)) => Answer::of(Err(fault)),
            };
            Line::Made(line::Made { instance, rule, revision, config, grants, pooled, seed, answer, heard })
        });
        answer.map(|()| {
            self.store.data().shared.stats.instance_made();
            self
        })
    }

    /// It was refused memory or table elements since it was made.
    pub fn memory_refused(&self) -> bool {
        self.store.data().account.denied_once
    }

    /// Which recording it is part of; 0 for none.
    pub fn recording(&self) -> u64 {
        self.store.data().tape.as_ref().map_or(0, |tape| tape.id())
    }

    /// Adds a line to the recording that is under way, if one is.
    fn note(&self, line: impl FnOnce(u64, Vec<line::Heard>) -> Line) {
        if let Some(tape) = &self.store.data().tape {
            tape.write(line);
        }
    }

    /// Hands the view over. `generation` is that of its publication.
    pub fn refresh(&mut self, view: &Arc<View>, generation: u64) -> Result<(), Fault> {
        self.begin_refresh(view, generation);
        let refresh: Function<Refresh<'_>> = self.refresh;
        let answer = refresh.call(&mut self.store, (view.record(),));
        self.refreshed(view, answer)
    }

    pub async fn refresh_async(&mut self, view: &Arc<View>, generation: u64) -> Result<(), Fault> {
        self.begin_refresh(view, generation);
        let refresh: Function<Refresh<'_>> = self.refresh;
        let answer = refresh.call_async(&mut self.store, (view.record(),)).await;
        self.refreshed(view, answer)
    }

    fn refreshed(&self, view: &View, answer: wasmtime::Result<()>) -> Result<(), Fault> {
        let answer = self.end(answer);
        self.note(|instance, heard| {
            let (version, shards) = (view.version, view.shards.iter().map(Shard::from).collect());
            Line::Refreshed(line::Refreshed {
                instance,
                version,
                shards,
                answer: Answer::of(answer.as_ref().copied()),
                heard,
            })
        });
        answer
    }

    fn begin_refresh(&mut self, view: &Arc<View>, generation: u64) {
        self.begin(Asked::Prepare, self.store.data().shared.limits.deadline_refresh);
        self.store.data_mut().view = view.clone();
        self.generation = generation;
    }

    pub fn select(&mut self, request: &Select<'_>) -> Result<u32, Fault> {
        let Functions::Selection { select } = self.functions else { return Err(wrong_world()) };
        let answer = self.call::<SelectCall<'_>>(select, (*request,));
        self.selected(request, answer)
    }

    pub async fn select_async(&mut self, request: &Select<'_>) -> Result<u32, Fault> {
        let Functions::Selection { select } = self.functions else { return Err(wrong_world()) };
        let answer = self.call_async::<SelectCall<'_>>(select, (*request,)).await;
        self.selected(request, answer)
    }

    fn selected(&self, request: &Select<'_>, answer: Result<(u32,), Fault>) -> Result<u32, Fault> {
        let answer = answer.and_then(|(shard,)| chosen(shard, request.candidates));
        self.note(|instance, heard| {
            let (counter, candidates) = (request.counter.to_owned(), request.candidates.to_vec());
            let (amount, key_hash, answer) = (request.amount, request.key_hash, Answer::of(answer.as_ref().copied()));
            Line::Selected(line::Selected { instance, counter, amount, key_hash, candidates, answer, heard })
        });
        answer
    }

    pub fn plan(&mut self, request: &Read<'_>) -> Result<Plan, Fault> {
        let Functions::Aggregation { plan, .. } = self.functions else { return Err(wrong_world()) };
        let answer = self.call::<PlanCall<'_>>(plan, (*request,));
        self.planned(request, answer)
    }

    pub async fn plan_async(&mut self, request: &Read<'_>) -> Result<Plan, Fault> {
        let Functions::Aggregation { plan, .. } = self.functions else { return Err(wrong_world()) };
        let answer = self.call_async::<PlanCall<'_>>(plan, (*request,)).await;
        self.planned(request, answer)
    }

    fn planned(&self, request: &Read<'_>, answer: Result<(Plan,), Fault>) -> Result<Plan, Fault> {
        let answer = answer.and_then(|(plan,)| planned(plan, request.shards));
        self.note(|instance, heard| {
            let (counter, shards) = (request.counter.to_owned(), request.shards.to_vec());
            let (key_hash, max_age_ms) = (request.key_hash, request.max_age_ms);
            let answer = match &answer {
                Ok(plan) => Answer::Ok(plan.clone()),
                Err(fault) => Answer::of(Err(fault)),
            };
            Line::Planned(line::Planned { instance, counter, key_hash, shards, max_age_ms, answer, heard })
        });
        answer
    }

    pub fn combine(&mut self, partials: &[Partial]) -> Result<i128, Fault> {
        let Functions::Aggregation { combine, .. } = self.functions else { return Err(wrong_world()) };
        let answer = self.call::<CombineCall<'_>>(combine, (partials,));
        self.combined(partials, answer)
    }

    pub async fn combine_async(&mut self, partials: &[Partial]) -> Result<i128, Fault> {
        let Functions::Aggregation { combine, .. } = self.functions else { return Err(wrong_world()) };
        let answer = self.call_async::<CombineCall<'_>>(combine, (partials,)).await;
        self.combined(partials, answer)
    }

    fn combined(&self, partials: &[Partial], answer: Result<CombineReturn, Fault>) -> Result<i128, Fault> {
        let max = self.store.data().shared.limits.error_text_bytes;
        let total = |total: Result<Total, String>| match total {
            Ok(total) => Ok(i128::from(total)),
            Err(text) => Err(Fault::new(Kind::Refused, log::cut(&text, max))),
        };
        let answer = answer.and_then(|(answer,)| total(answer));
        self.note(|instance, heard| {
            let partials = partials.iter().map(|partial| (partial.shard, partial.value)).collect();
            let answer = Answer::of(answer.as_ref().map(ToString::to_string));
            Line::Combined(line::Combined { instance, partials, answer, heard })
        });
        answer
    }

    fn call<Call: Pair>(&mut self, function: Function<Call>, params: Call::Params) -> Result<Call::Return, Fault>
    where
        Call::Params: ComponentNamedList + Lower,
        Call::Return: ComponentNamedList + Lift,
    {
        self.begin(Asked::Answer, self.store.data().shared.limits.deadline_inline);
        let answer = function.call(&mut self.store, params);
        self.end(answer)
    }

    async fn call_async<Call: Pair>(
        &mut self,
        function: Function<Call>,
        params: Call::Params,
    ) -> Result<Call::Return, Fault>
    where
        Call::Params: ComponentNamedList + Lower,
        Call::Return: ComponentNamedList + Lift + 'static,
    {
        self.begin(Asked::Answer, Duration::ZERO);
        let answer = function.call_async(&mut self.store, params).await;
        self.end(answer)
    }

    /// The limit is of CPU time and holds for inline calls; pooled ones are timed from outside.
    fn begin(&mut self, asked: Asked, limit: Duration) {
        self.store.set_epoch_deadline(1);
        self.store.data_mut().begin(asked, limit);
    }

    fn end<T>(&self, answer: wasmtime::Result<T>) -> Result<T, Fault> {
        answer.map_err(|error| self.store.data().classify(&error))
    }
}

fn store(binding: &Binding) -> Store<State> {
    let revision = &binding.revision;
    let (tape, mirror) = (binding.taping.tape(), binding.mirror.clone());
    let state = State::new(&binding.node, &revision.shared, binding.grants, revision.memory_bytes_max(), mirror, tape);
    let mut store = Store::new(binding.code.pre.engine(), state);
    store.limiter(|state| &mut state.account);
    store.set_hostcall_fuel(revision.shared.limits.host_call_bytes);
    store.set_epoch_deadline(1);
    store.data_mut().begin(Asked::Prepare, revision.shared.limits.deadline_configure_inline);
    store
}

fn chosen(shard: u32, candidates: &[u32]) -> Result<u32, Fault> {
    if candidates.contains(&shard) {
        return Ok(shard);
    }
    let shown = &candidates[..candidates.len().min(8)];
    Err(Fault::new(Kind::NotACandidate, format!("select answered {shard}; the candidates begin {shown:?}")))
}

/// A plan names shards of the request, each once: one named twice would count twice.
fn planned(plan: Plan, shards: &[u32]) -> Result<Plan, Fault> {
    if let Plan::Only(only) = &plan {
        if only.len() > shards.len() {
            let text = format!("plan named {} shards of {}", only.len(), shards.len());
            return Err(Fault::new(Kind::NotACandidate, text));
        }
        let mut sorted: SmallVec<[u32; 64]> = only.iter().copied().collect();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        if let Some(shard) = twice {
            return Err(Fault::new(Kind::NotACandidate, format!("plan named shard {shard} twice")));
        }
        let mut known: SmallVec<[u32; 64]> = shards.iter().copied().collect();
        known.sort_unstable();
        if let Some(shard) = sorted.iter().find(|shard| known.binary_search(shard).is_err()) {
            return Err(Fault::new(
                Kind::NotACandidate,
                format!("plan named shard {shard}, which is not the counter's"),
            ));
        }
    }
    Ok(plan)
}

fn wrong_world() -> Fault {
    Fault::new(Kind::Unavailable, "the rule asks a question of the other world")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_known_shards_once() {
        let detail = |only: &[u32]| planned(Plan::Only(only.to_vec()), &[4, 2, 9]).map_err(|fault| fault.detail);
        assert_eq!(detail(&[9, 4]), Ok(Plan::Only(vec![9, 4])));
        assert_eq!(detail(&[]), Ok(Plan::Only(vec![])));
        assert!(detail(&[3]).is_err_and(|text| text.contains("shard 3")));
        assert!(detail(&[4, 4]).is_err_and(|text| text.contains("twice")));
        assert!(detail(&[1, 2, 3, 4]).is_err_and(|text| text.contains("4 shards of 3")));
    }
}
