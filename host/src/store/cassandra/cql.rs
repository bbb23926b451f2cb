//! One statement sent once, and what is known of it afterwards.
//!
//! The driver neither retries nor speculates here: whoever sends decides whether the same statement may go again.
//! [`Cql::settle`] is for conditional statements whose repetition is recognised by their own conditions.

use std::collections::HashMap;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::errors::{ExecutionError, RequestAttemptError};
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, Row};
use tokio::time::Instant;

use super::super::Error;
use crate::limits;

/// Why a statement has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// It never left this process.
    #[error("Cassandra cannot be reached: {0}")]
    NotSent(String),
    /// It may have been carried out, now or later.
    #[error("Cassandra did not answer: {0}")]
    Unknown(String),
}

impl From<ExecutionError> for Unanswered {
    fn from(why: ExecutionError) -> Self {
        match &why {
            ExecutionError::BadQuery(_)
            | ExecutionError::EmptyPlan
            | ExecutionError::ConnectionPoolError(_)
            | ExecutionError::LastAttemptError(
                RequestAttemptError::SerializationError(_)
                | RequestAttemptError::CqlRequestSerialization(_)
                | RequestAttemptError::UnableToAllocStreamId,
            ) => Self::NotSent(why.to_string()),
            _ => Self::Unknown(why.to_string()),
        }
    }
}

/// For work that may simply be done again.
impl From<Unanswered> for Error {
    fn from(why: Unanswered) -> Self {
        Self::NotApplied(why.to_string())
    }
}

/// The answer to a conditional statement: applied, or what it found instead.
#[derive(Debug)]
pub struct Conditional {
    pub applied: bool,
    /// Columns that are not null, by name.
    found: HashMap<String, CqlValue>,
}

impl Conditional {
    fn parse(result: QueryResult) -> Result<Self, Unanswered> {
        let unreadable = |why: String| Unanswered::Unknown(format!("its answer cannot be read: {why}"));
        let rows = result.into_rows_result().map_err(|why| unreadable(why.to_string()))?;
        let names: Vec<String> = rows.column_specs().iter().map(|spec| spec.name().to_owned()).collect();
        let row: Row = rows.first_row().map_err(|why| unreadable(why.to_string()))?;
        let found: HashMap<String, CqlValue> =
            names.into_iter().zip(row.columns).filter_map(|(name, value)| Some((name, value?))).collect();
        match found.get("[applied]") {
            Some(&CqlValue::Boolean(applied)) => Ok(Self { applied, found }),
            _ => Err(unreadable("it does not say whether it was applied".into())),
        }
    }

    pub fn value(&self, column: &str) -> Option<&CqlValue> {
        self.found.get(column)
    }

    pub fn int(&self, column: &str) -> Option<u64> {
        match self.found.get(column)? {
            &CqlValue::BigInt(value) => Some(value as u64),
            _ => None,
        }
    }

    pub fn text(&self, column: &str) -> Option<&str> {
        self.found.get(column)?.as_text().map(String::as_str)
    }
}

/// The session, and how long it is waited for.
pub struct Cql {
    pub session: Session,
    /// How long a conditional statement is sent again while its outcome is unknown.
    pub settle_timeout: Duration,
}

impl Cql {
    /// A read, or a write that may be carried out twice.
    pub async fn run(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, Unanswered> {
        Ok(self.session.execute_unpaged(statement, values).await?)
    }

    /// At most one row.
    pub async fn row<R>(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Option<R>, Error>
    where
        R: for<'f> scylla::deserialize::row::DeserializeRow<'f, 'f>,
    {
        let rows = self.run(statement, values).await?.into_rows_result().map_err(unreadable)?;
        rows.maybe_first_row::<R>().map_err(unreadable)
    }

    /// All rows of a statement that limits them.
    pub async fn rows<R>(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Vec<R>, Error>
    where
        R: for<'f> scylla::deserialize::row::DeserializeRow<'f, 'f>,
    {
        let rows = self.run(statement, values).await?.into_rows_result().map_err(unreadable)?;
        rows.rows::<R>().map_err(unreadable)?.map(|row| row.map_err(unreadable)).collect()
    }

    /// A conditional statement, sent once.
    pub async fn conditional(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Conditional, Unanswered> {
        Conditional::parse(self.run(statement, values).await?)
    }

    /// A conditional statement, sent again until it is answered. Its refusal may mean that an earlier copy got in: the
    /// caller looks at what was found.
    pub async fn settle(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Conditional, Unanswered> {
        let mut tries = Tries::new(self.settle_timeout);
        loop {
            match self.conditional(statement, &values).await {
                Err(why) => tries.again(why).await?,
                answered => return answered,
            }
        }
    }
}

/// Repetitions of one statement, within a time.
pub struct Tries {
    until: Instant,
    pause: Duration,
    /// Some earlier copy may have arrived.
    sent: bool,
}

impl Tries {
    pub fn new(within: Duration) -> Self {
        Self { until: Instant::now() + within, pause: limits::CASSANDRA_RETRY.0, sent: false }
    }

    /// Waits before the next one, or hands the failure back when the time is over or nothing was ever sent.
    pub async fn again(&mut self, why: Unanswered) -> Result<(), Unanswered> {
        let why = match why {
            Unanswered::NotSent(_) if !self.sent => return Err(why),
            Unanswered::NotSent(why) | Unanswered::Unknown(why) => Unanswered::Unknown(why),
        };
        self.sent = true;
        if Instant::now() + self.pause >= self.until {
            return Err(why);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(limits::CASSANDRA_RETRY.1);
        Ok(())
    }
}

/// An answer of another shape than the schema's.
pub fn unreadable(why: impl std::fmt::Display) -> Error {
    Error::Damaged(format!("Cassandra's answer cannot be read: {why}"))
}
