//! Adding to a partial. Partials are signed 64-bit and never wrap; totals are computed in 128 bits.

/// The inclusive range a rule allows. Only meaningful at spread 1, where the partial is the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub min: Option<i64>,
    pub max: Option<i64>,
}

/// Why an addition changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the value on this shard would leave the signed 64-bit range")]
    Overflow,
    #[error("the value would fall below the rule's minimum of {min}")]
    BelowMin { min: i64 },
    #[error("the value would rise above the rule's maximum of {max}")]
    AboveMax { max: i64 },
}

impl Bounds {
    pub const NONE: Self = Self { min: None, max: None };

    /// The range that both allow. Where there is none, every addition that moves further out of either is refused.
    pub fn and(self, other: Self) -> Self {
        let max = match (self.max, other.max) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        // A missing minimum is less than any.
        Self { min: self.min.max(other.min), max }
    }
}

/// The value after adding `amount`.
///
/// A bound refuses only what moves further out: a counter that a new rule finds outside its range can still be
/// brought back step by step.
pub fn add(value: i64, amount: i64, bounds: Bounds) -> Result<i64, Refused> {
    let sum = value.checked_add(amount).ok_or(Refused::Overflow)?;
    match bounds {
        Bounds { min: Some(min), .. } if sum < min && amount < 0 => Err(Refused::BelowMin { min }),
        Bounds { max: Some(max), .. } if sum > max && amount > 0 => Err(Refused::AboveMax { max }),
        _ => Ok(sum),
    }
}

/// The exact total of partials. 2^64 partials would be needed to overflow it.
pub fn total(partials: impl IntoIterator<Item = i64>) -> i128 {
    partials.into_iter().map(i128::from).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn add_is_exact_or_refused(value: i64, amount: i64) {
            let exact = i128::from(value) + i128::from(amount);
            match add(value, amount, Bounds::NONE) {
                Ok(sum) => prop_assert_eq!(i128::from(sum), exact),
                Err(refused) => {
                    prop_assert_eq!(refused, Refused::Overflow);
                    prop_assert!(i64::try_from(exact).is_err());
                }
            }
        }

        #[test]
        fn bounds_together_refuse_what_either_refuses(value: i64, amount: i64, a: (Option<i64>, Option<i64>), b: (Option<i64>, Option<i64>)) {
            let [a, b] = [a, b].map(|(min, max)| Bounds { min, max });
            let both = add(value, amount, a).is_ok() && add(value, amount, b).is_ok();
            prop_assert_eq!(add(value, amount, a.and(b)).is_ok(), both);
        }

        #[test]
        fn a_value_within_its_bounds_stays_there(min in -1000i64..0, max in 0i64..1000, amounts: Vec<i16>) {
            let bounds = Bounds { min: Some(min), max: Some(max) };
            let mut value = 0;
            for amount in amounts {
                let next = add(value, i64::from(amount), bounds);
                prop_assert_eq!(next.is_ok(), (min..=max).contains(&(value + i64::from(amount))));
                value = next.unwrap_or(value);
            }
        }

        #[test]
        fn totals_do_not_wrap(partials in prop::collection::vec(prop_oneof![Just(i64::MAX), Just(i64::MIN), any::<i64>()], 0..64)) {
            let mut expected = 0i128;
            for partial in &partials { expected += i128::from(*partial); }
            prop_assert_eq!(total(partials), expected);
        }
    }

    #[test]
    fn a_counter_outside_its_bounds_can_return() {
        let bounds = Bounds { min: Some(0), max: Some(10) };
        assert_eq!(add(-5, 2, bounds), Ok(-3));
        assert_eq!(add(-5, -1, bounds), Err(Refused::BelowMin { min: 0 }));
        assert_eq!(add(15, -1, bounds), Ok(14));
    }
}
