//! Where a component keeps its policy between calls.

use core::cell::RefCell;

/// Empty until the policy is configured.
pub struct State<T>(RefCell<Option<T>>);

// SAFETY: an instance of a component is entered by one thread at a time, and this target has no threads of its own.
#[cfg(target_family = "wasm")]
#[allow(unsafe_code)]
unsafe impl<T> Sync for State<T> {}

impl<T> State<T> {
    pub const fn empty() -> Self {
        Self(RefCell::new(None))
    }

    pub fn set(&self, policy: T) {
        *self.0.borrow_mut() = Some(policy);
    }

    /// Calls `f` with the policy.
    ///
    /// # Panics
    /// Before [`State::set`]: the contract promises that `configure` is called before anything else.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(self.0.borrow_mut().as_mut().expect("`configure` is called before anything else"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_stays_between_calls() {
        let state = State::empty();
        state.set(1);
        state.with(|n| *n += 1);
        assert_eq!(state.with(|n| *n), 2);
    }

    #[test]
    #[should_panic(expected = "`configure` is called before anything else")]
    fn an_unconfigured_policy_traps() {
        State::<u32>::empty().with(|n| *n);
    }
}
