//! What can be asked, and how it is done.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::wire::{Reply, Version, Words};
use crate::counter::{Id, key_hash};
use crate::error::{Error, Kind};
use crate::limits;
use crate::node::read::{Freshness, read};
use crate::node::write::{self, Add, Added};
use crate::node::{Node, Worker};
use crate::policy::Partial;

#[derive(Debug, Clone)]
pub enum Command {
    Add {
        add: Add,
        answer: Answer,
    },
    Get(Id),
    GetMany(Vec<Id>),
    Exists(Vec<Id>),
    Remove(Vec<Id>),
    /// Answered without a look at any counter.
    Known(Reply),
    /// None: the version stays.
    Hello(Option<Version>),
    Quit,
}

/// What an addition is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The sum of the counter's partials.
    Total,
    /// The partial of the shard that took it.
    Partial,
}

/// Of additions that are durable and whose total cannot be told: no refusal, and nothing to send again.
const COUNTED: &str = "COUNTED";

const TAKEN: &str = "INCR, INCRBY, DECR, DECRBY, GET, MGET, EXISTS, DEL, UNLINK, QUIPU.ADD, PING, ECHO, HELLO, SELECT, \
                     CLIENT, COMMAND, CONFIG GET, INFO and QUIT are";

impl Command {
    /// Reads a command, or says what is wrong with it.
    pub fn parse(words: &Words) -> Result<Self, Reply> {
        let (name, given) = words.split_first().expect("a command has at least one word");
        let name = String::from_utf8_lossy(&name[..name.len().min(32)]).to_ascii_uppercase();
        match (name.as_str(), given) {
            ("INCR", [id]) => Self::add(id, 1, Answer::Total),
            ("DECR", [id]) => Self::add(id, -1, Answer::Total),
            ("INCRBY", [id, amount]) => Self::add(id, integer(amount)?, Answer::Total),
            ("DECRBY", [id, amount]) => {
                let amount = integer(amount)?.checked_neg().ok_or_else(|| not_an_integer(amount))?;
                Self::add(id, amount, Answer::Total)
            }
            ("QUIPU.ADD", [id]) => Self::add(id, 1, Answer::Partial),
            ("QUIPU.ADD", [id, amount]) => Self::add(id, integer(amount)?, Answer::Partial),
            ("QUIPU.ADD", [id, amount, word, key]) if word.eq_ignore_ascii_case(b"KEY") => {
                let key = text(key)?;
                write::check_key(key).map_err(|why| error(&why))?;
                let add = Add { id: counter(id)?, amount: integer(amount)?, key: Some(key.into()) };
                Ok(Self::Add { add, answer: Answer::Partial })
            }
            ("GET", [id]) => Ok(Self::Get(counter(id)?)),
            ("MGET", ids @ [_, ..]) => Ok(Self::GetMany(counters(ids)?)),
            ("EXISTS", ids @ [_, ..]) => Ok(Self::Exists(counters(ids)?)),
            ("DEL" | "UNLINK", ids @ [_, ..]) => Ok(Self::Remove(counters(ids)?)),
            ("PING", []) => Ok(Self::Known(Reply::Simple("PONG"))),
            ("PING" | "ECHO", [text]) => Ok(Self::Known(Reply::Bulk(text.clone()))),
            ("HELLO", []) => Ok(Self::Hello(None)),
            ("HELLO", [version, options @ ..]) => hello(version, options),
            ("AUTH", [_, ..]) => Err(no_password()),
            ("SELECT", [number]) if **number == b"0"[..] => Ok(Self::Known(Reply::Simple("OK"))),
            ("SELECT", [_]) => Err(Reply::error("ERR", "there is one database, 0")),
            ("CLIENT", [what, ..]) => client(what),
            ("COMMAND", _) => Ok(Self::Known(Reply::Array(Vec::new()))),
            ("CONFIG", [what, _, ..]) if what.eq_ignore_ascii_case(b"GET") => Ok(Self::Known(Reply::Map(Vec::new()))),
            ("INFO", _) => Ok(Self::Known(Reply::bulk(info()))),
            ("QUIT", []) => Ok(Self::Quit),
            (
                known @ ("INCR" | "INCRBY" | "DECR" | "DECRBY" | "QUIPU.ADD" | "GET" | "MGET" | "EXISTS" | "DEL"
                | "UNLINK" | "PING" | "ECHO" | "AUTH" | "SELECT" | "CLIENT" | "CONFIG" | "QUIT"),
                _,
            ) => Err(Reply::error("ERR", format!("wrong number of arguments for '{}'", known.to_ascii_lowercase()))),
            ("SET" | "SETNX" | "GETSET" | "INCRBYFLOAT", _) => {
                Err(Reply::error("ERR", "a counter is not set, but added to with INCRBY and removed with DEL"))
            }
            ("EXPIRE" | "PEXPIRE" | "EXPIREAT" | "SETEX", _) => {
                Err(Reply::error("ERR", "counters do not expire; remove one with DEL"))
            }
            (other, _) => Err(Reply::error("ERR", format!("unknown command '{other}'; {TAKEN} taken"))),
        }
    }

    fn add(id: &Bytes, amount: i64, answer: Answer) -> Result<Self, Reply> {
        Ok(Self::Add { add: Add { id: counter(id)?, amount, key: None }, answer })
    }

    /// Whether it may be under way together with others of its connection: additions do not depend on their order.
    /// Everything else sees what was asked before it, and nothing that was asked after it.
    pub fn runs_beside_others(&self) -> bool {
        matches!(self, Self::Add { .. })
    }
}

/// Carries a command out.
pub async fn run(worker: &Rc<Worker>, command: Command) -> Reply {
    // The rare ones in memory of their own, so that additions do not carry room for them around.
    match command {
        Command::Add { add, answer } => added(worker, add, answer).await,
        Command::Get(id) => Box::pin(got(worker, &id)).await,
        Command::GetMany(ids) => {
            let reads = ids.iter().map(|id| got(worker, id));
            Reply::Array(Box::pin(stream::iter(reads).buffered(limits::STORE_LOADS_MAX).collect()).await)
        }
        Command::Exists(ids) => counted(Box::pin(count(&worker.node, &ids)).await),
        Command::Remove(ids) => counted(Box::pin(remove(worker, &ids)).await),
        Command::Known(reply) => reply,
        Command::Hello(version) => greeting(version),
        Command::Quit => Reply::Simple("OK"),
    }
}

async fn added(worker: &Rc<Worker>, add: Add, answer: Answer) -> Reply {
    let id = (answer == Answer::Total).then(|| add.id.clone());
    let added = match write::add(worker, add).await {
        Ok(added) => added,
        Err(why) => return error(&why),
    };
    let Some(id) = id else { return added.value.map_or(Reply::Nil, Reply::Integer) };
    if let Some(value) = added.value
        && worker.node.is_on_one_shard(&id)
    {
        return Reply::Integer(value);
    }
    match Box::pin(worker.node.partials(&id)).await {
        Ok(partials) => total(&added, &partials),
        // Removed since, or accepted under a relaxed rule and not journaled yet.
        Err(why) if why.kind == Kind::CounterNotFound => total(&added, &[]),
        Err(why) => {
            Reply::error(COUNTED, format!("The addition is counted; the sum cannot be told now. {}", why.detail))
        }
    }
}

/// The partial as it was right after the addition, and those of the other shards as they are now: while one shard takes all
/// additions, each has a total of its own.
fn total(added: &Added, partials: &[Partial]) -> Reply {
    let own = |partial: &&Partial| added.value.is_some() && partial.shard == added.shard;
    let others = partials.iter().filter(|partial| !own(partial)).map(|partial| i128::from(partial.value));
    let total = i128::from(added.value.unwrap_or(0)) + others.sum::<i128>();
    let beyond = || Reply::error(COUNTED, "The addition is counted; the sum is beyond 64 bits, and GET tells it.");
    i64::try_from(total).map_or_else(|_| beyond(), Reply::Integer)
}

fn counted(found: Result<i64, Error>) -> Reply {
    found.map_or_else(|why| error(&why), Reply::Integer)
}

async fn got(worker: &Worker, id: &Id) -> Reply {
    match read(worker, id, Freshness::Exact).await {
        Ok(total) => Reply::bulk(total.value.to_string()),
        Err(why) if why.kind == Kind::CounterNotFound => Reply::Nil,
        Err(why) => error(&why),
    }
}

async fn count(node: &Arc<Node>, ids: &[Id]) -> Result<i64, Error> {
    let mut there = 0;
    for id in ids {
        there += i64::from(node.exists(id, key_hash(id.as_str())).await?);
    }
    Ok(there)
}

/// How many there were.
async fn remove(worker: &Rc<Worker>, ids: &[Id]) -> Result<i64, Error> {
    let mut removed = 0;
    for id in ids {
        match remove_one(worker, id).await {
            Ok(was_there) => removed += i64::from(was_there),
            Err(why) if removed > 0 => {
                let detail = format!("{removed} of the counters are removed, and then: {} Send it again.", why.detail);
                return Err(Error::new(Kind::UnknownOutcome, detail));
            }
            Err(why) => return Err(why),
        }
    }
    Ok(removed)
}

async fn remove_one(worker: &Rc<Worker>, id: &Id) -> Result<bool, Error> {
    let is_there = worker.node.exists(id, key_hash(id.as_str())).await?;
    if is_there {
        write::remove(worker, id, None).await?;
    }
    Ok(is_there)
}

fn error(why: &Error) -> Reply {
    Reply::error(why.kind.code().to_ascii_uppercase(), why.detail.as_str())
}

fn text(word: &Bytes) -> Result<&str, Reply> {
    std::str::from_utf8(word).map_err(|_| error(&Error::invalid("ids and keys must be UTF-8")))
}

fn counter(word: &Bytes) -> Result<Id, Reply> {
    Id::new(text(word)?).map_err(|why| error(&why.into()))
}

fn counters(words: &[Bytes]) -> Result<Vec<Id>, Reply> {
    let max = limits::READ_IDS_MAX;
    if words.len() > max {
        return Err(error(&Error::invalid(format!("at most {max} counters in one command"))));
    }
    words.iter().map(counter).collect()
}

fn integer(word: &Bytes) -> Result<i64, Reply> {
    let number = std::str::from_utf8(word).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| not_an_integer(word))
}

fn not_an_integer(word: &Bytes) -> Reply {
    let shown = String::from_utf8_lossy(&word[..word.len().min(32)]);
    Reply::error("ERR", format!("value is not an integer or out of range: '{shown}'"))
}

fn no_password() -> Reply {
    Reply::error("ERR", "no password is set: connect without one")
}

fn hello(version: &Bytes, mut options: &[Bytes]) -> Result<Command, Reply> {
    let version = match &version[..] {
        b"2" => Version::Two,
        b"3" => Version::Three,
        _ => return Err(Reply::error("NOPROTO", "versions 2 and 3 of the protocol are spoken")),
    };
    loop {
        options = match options {
            [] => return Ok(Command::Hello(Some(version))),
            [word, _, rest @ ..] if word.eq_ignore_ascii_case(b"SETNAME") => rest,
            [word, ..] if word.eq_ignore_ascii_case(b"AUTH") => return Err(no_password()),
            _ => return Err(Reply::error("ERR", "syntax error in HELLO")),
        }
    }
}

fn greeting(version: Option<Version>) -> Reply {
    Reply::Map(vec![
        ("server", Reply::bulk("quipu")),
        ("version", Reply::bulk(env!("CARGO_PKG_VERSION"))),
        ("proto", Reply::Integer(if version == Some(Version::Three) { 3 } else { 2 })),
        ("mode", Reply::bulk("standalone")),
        ("role", Reply::bulk("master")),
        ("modules", Reply::Array(Vec::new())),
    ])
}

/// What client libraries say when they connect.
fn client(what: &Bytes) -> Result<Command, Reply> {
    match what.to_ascii_uppercase().as_slice() {
        b"SETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH" => Ok(Command::Known(Reply::Simple("OK"))),
        b"GETNAME" => Ok(Command::Known(Reply::Nil)),
        _ => Err(Reply::error("ERR", "of CLIENT only SETNAME, GETNAME, SETINFO, NO-EVICT and NO-TOUCH are taken")),
    }
}

/// Some libraries wait until `loading` is 0.
fn info() -> String {
    format!("# Server\r\nquipu_version:{}\r\n# Persistence\r\nloading:0\r\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Command, Reply> {
        Command::parse(&words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
    }

    fn added(words: &[&str]) -> (i64, Answer, Option<Box<str>>) {
        match parse(words) {
            Ok(Command::Add { add, answer }) => (add.amount, answer, add.key),
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn refused(words: &[&str]) -> String {
        match parse(words) {
            Err(Reply::Error(code, detail)) => format!("{code} {detail}"),
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn additions_are_read() {
        assert_eq!(added(&["incr", "a"]), (1, Answer::Total, None));
        assert_eq!(added(&["DECRBY", "a", "7"]), (-7, Answer::Total, None));
        assert_eq!(added(&["INCRBY", "a", "-9223372036854775808"]), (i64::MIN, Answer::Total, None));
        assert_eq!(added(&["Quipu.Add", "a"]), (1, Answer::Partial, None));
        assert_eq!(added(&["QUIPU.ADD", "a", "5", "key", "k1"]), (5, Answer::Partial, Some("k1".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused(&["INCRBY", "a", "1.5"]).contains("not an integer"));
        assert!(refused(&["DECRBY", "a", "-9223372036854775808"]).contains("out of range"));
        assert!(refused(&["INCR"]).contains("wrong number of arguments for 'incr'"));
        assert!(refused(&["QUIPU.ADD", "a", "1", "k1"]).contains("wrong number of arguments"));
        assert!(refused(&["INCR", ""]).starts_with("INVALID_ARGUMENT "));
        assert!(refused(&["QUIPU.ADD", "a", "1", "KEY", ""]).starts_with("INVALID_ARGUMENT "));
        assert!(refused(&["SET", "a", "1"]).contains("INCRBY"));
        assert!(refused(&["EXPIRE", "a", "1"]).contains("do not expire"));
        assert!(refused(&["HGETALL", "a"]).contains("unknown command 'HGETALL'"));
        assert!(refused(&["HELLO", "4"]).starts_with("NOPROTO "));
        assert!(refused(&["HELLO", "3", "AUTH", "u", "p"]).contains("no password"));
        assert!(refused(&["SELECT", "1"]).contains("one database"));
        let many = vec!["MGET"; limits::READ_IDS_MAX + 2];
        assert!(refused(&many).contains("at most 1000 counters"));
    }

    #[test]
    fn only_additions_run_beside_others() {
        let beside = |words: &[&str]| parse(words).expect("a command").runs_beside_others();
        assert!(beside(&["INCR", "a"]) && beside(&["QUIPU.ADD", "a"]));
        assert!(!beside(&["GET", "a"]) && !beside(&["DEL", "a"]) && !beside(&["HELLO", "3", "SETNAME", "x"]));
    }
}
