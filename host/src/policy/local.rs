//! The policies of one serving thread: its own instances, asked without a lock and without an allocation by the host.
//!
//! Each question is answered. When the policy cannot (a fault, an open breaker, policies switched off), the native
//! choice does, and says so. An instance is made on first use and again after a fault, as often as the breaker admits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::binding::Binding;
use super::breaker::{Admission, Slow};
use super::fault::{Fault, Kind};
use super::instance::Instance;
use super::limits::INLINE_SLOW;
use super::state::Node;
use super::stats::SAMPLE_EVERY;
use super::view::{self, Chosen, Combined, Partial, Plan, Planned, Read, Select, View};

/// One per serving thread; it stays there.
pub struct Local {
    node: Arc<Node>,
    /// Which lane of the statistics this thread writes.
    lane: usize,
    seats: Vec<Option<Seat>>,
    view: Arc<View>,
    generation: u64,
    /// Instances are bound to the thread that uses them: its clock counts their deadlines.
    not_send: std::marker::PhantomData<*const ()>,
}

struct Seat {
    binding: Weak<Binding>,
    id: u64,
    instance: Instance,
}

impl Local {
    pub(super) fn new(node: &Arc<Node>, lane: usize) -> Self {
        let generation = node.published.generation();
        let view = node.published.load();
        Self { node: node.clone(), lane, seats: Vec::new(), view, generation, not_send: std::marker::PhantomData }
    }

    /// Which shard takes an addition. None: the policy runs on the pool; ask `select_pooled`.
    pub fn select_now(&mut self, binding: &Arc<Binding>, request: &Select<'_>) -> Option<Chosen> {
        let answer = self.ask(binding, request.candidates.len(), |instance| instance.select(request))?;
        Some(match answer {
            Ok(shard) => Chosen { shard, fallback: false },
            Err(NoAnswer) => view::select_natively(request.candidates),
        })
    }

    /// What to read. None as for `select_now`.
    pub fn plan_now(&mut self, binding: &Arc<Binding>, request: &Read<'_>) -> Option<Planned> {
        let answer = self.ask(binding, request.shards.len(), |instance| instance.plan(request))?;
        Some(match answer {
            Ok(plan) => Planned { plan, fallback: false },
            Err(NoAnswer) => Planned { plan: Plan::All, fallback: true },
        })
    }

    /// The total. None as for `select_now`.
    pub fn combine_now(&mut self, binding: &Arc<Binding>, partials: &[Partial]) -> Option<Combined> {
        let answer = self.ask(binding, partials.len(), |instance| instance.combine(partials))?;
        Some(match answer {
            Ok(total) => Combined { total, fallback: false },
            Err(NoAnswer) => view::combine_natively(partials),
        })
    }

    /// Makes the instance of a binding now, so that the first question need not wait for it.
    pub fn warm(&mut self, binding: &Arc<Binding>) -> Result<(), Fault> {
        if binding.revision.is_inline() { self.instance(binding).map(|_| ()) } else { Ok(()) }
    }

    /// Drops the instances of bindings that are gone. Happens by itself when a question meets a changed view; a thread
    /// that may be idle for long calls it now and then.
    pub fn purge(&mut self) {
        for seat in &mut self.seats {
            if seat.as_ref().is_some_and(|seat| seat.binding.strong_count() == 0) {
                *seat = None;
            }
        }
    }

    /// `shards` is how many the question names.
    fn ask<T>(
        &mut self,
        binding: &Arc<Binding>,
        shards: usize,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> Option<Result<T, NoAnswer>> {
        let revision = &*binding.revision;
        if !revision.is_inline() {
            return None;
        }
        let shared = &*revision.shared;
        if !self.node.enabled.load(Ordering::Relaxed) {
            shared.stats.count(self.lane, Kind::Unavailable);
            return Some(Err(NoAnswer));
        }
        let admission = binding.breaker.admit();
        if admission == Admission::Refused {
            shared.stats.count(self.lane, Kind::BreakerOpen);
            return Some(Err(NoAnswer));
        }
        let number = shared.stats.call(self.lane);
        // Not the first of a lane, which makes the instance.
        let began = (number % SAMPLE_EVERY == SAMPLE_EVERY - 1).then(Instant::now);
        let instance = match self.instance(binding) {
            Ok(instance) => instance,
            // Whatever the reason, the next attempt is the breaker's to admit.
            Err(fault) => return Some(Err(self.failed(binding, fault, true))),
        };
        // Without the making and refreshing of the instance, which are rare and have limits of their own.
        let asked = (began.is_some() || admission == Admission::Watched).then(Instant::now);
        let answer = question(instance);
        Some(match answer {
            Ok(answer) => {
                let took = asked.map_or(Duration::ZERO, |asked| asked.elapsed());
                if let Some(began) = began {
                    shared.stats.timed(self.lane, began.elapsed());
                }
                if took > slow(shards) {
                    self.was_slow(binding, took);
                } else {
                    binding.breaker.succeeded(admission);
                }
                Ok(answer)
            }
            Err(fault) => {
                let guests = fault.kind.is_the_guests();
                if !guests {
                    // It answered, if only with an error.
                    binding.breaker.succeeded(admission);
                }
                Err(self.failed(binding, fault, guests))
            }
        })
    }

    /// This thread's instance, made if need be and refreshed.
    fn instance(&mut self, binding: &Arc<Binding>) -> Result<&mut Instance, Fault> {
        let generation = self.node.published.generation();
        if generation != self.generation {
            self.generation = generation;
            self.view = self.node.published.load();
            self.purge();
        }
        if binding.seat >= self.seats.len() {
            self.seats.resize_with(binding.seat + 1, || None);
        }
        let seat = &mut self.seats[binding.seat];
        let recording = binding.taping.recording();
        // Another id is a binding that is gone and whose seat this one took. A recording begins with new instances.
        let other = |seat: &Seat| seat.id != binding.id || recording != 0 && seat.instance.recording() != recording;
        if seat.as_ref().is_none_or(other) {
            *seat = None;
            let instance = Instance::new(binding)?;
            *seat = Some(Seat { binding: Arc::downgrade(binding), id: binding.id, instance });
        }
        let instance = &mut seat.as_mut().expect("just filled").instance;
        if instance.generation != generation {
            instance.refresh(&self.view, generation)?;
        }
        Ok(instance)
    }

    #[cold]
    fn was_slow(&self, binding: &Binding, took: Duration) {
        match binding.breaker.slow(took) {
            Slow::Harmless => {}
            Slow::Busy => binding.keeps_threads_busy(),
            Slow::Opened => {
                let detail = format!("a call took {took:?} of a serving thread, as those before it did");
                let (shared, fault) = (&binding.revision.shared, Fault::new(Kind::Slow, detail));
                tracing::debug!(plugin = shared.name, revision = shared.digest, %fault, "a policy is slow; the native choice answers");
                shared.stats.fault(self.lane, fault);
            }
        }
    }

    #[cold]
    fn failed(&mut self, binding: &Binding, fault: Fault, tell_breaker: bool) -> NoAnswer {
        let shared = &binding.revision.shared;
        if tell_breaker {
            if let Some(seat) = self.seats.get_mut(binding.seat) {
                *seat = None;
            }
            binding.breaker.failed(fault.kind);
        }
        tracing::debug!(plugin = shared.name, revision = shared.digest, %fault, "a policy failed; the native choice answers");
        shared.stats.fault(self.lane, fault);
        NoAnswer
    }
}

/// A call that names so many shards is slow when it takes longer.
fn slow(shards: usize) -> Duration {
    let (least, each) = INLINE_SLOW;
    least + each * u32::try_from(shards).unwrap_or(u32::MAX)
}

/// The policy did not answer; it is counted.
struct NoAnswer;
