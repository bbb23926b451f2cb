//! One connection: commands as they come, many additions under way at once, replies in the order of the commands.
//!
//! A connection to Redis is often shared by all requests of a process, so commands that waited for those before them would
//! wait for a journal entry each. Additions run beside each other and share entries; see [`Command::runs_beside_others`]
//! for the rest.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use bytes::BytesMut;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::error;

use super::command::{Command, run};
use super::wire::{Reply, Version, take};
use crate::front::Activity;
use crate::limits;
use crate::node::Worker;
use crate::panics;

/// Room that is made before a read.
const READ_BYTES: usize = 8 * 1024;

/// What has come and has not begun.
#[derive(Default)]
struct Asked {
    bytes: BytesMut,
    /// Waits until all before it are answered.
    held: Option<Command>,
    /// No command follows.
    ended: bool,
}

impl Asked {
    fn next(&mut self) -> Option<Command> {
        if self.held.is_some() || self.ended {
            return self.held.take();
        }
        let command = match take(&mut self.bytes) {
            Ok(words) => Command::parse(&words?).unwrap_or_else(Command::Known),
            Err(why) => {
                self.ended = true;
                Command::Known(Reply::error("ERR", format!("Protocol error: {}", why.0)))
            }
        };
        self.ended |= matches!(command, Command::Quit);
        Some(command)
    }

    fn is_partial(&self) -> bool {
        !self.ended && !self.bytes.is_empty()
    }
}

/// Serves a connection until its client ends it, sends what is no command, or the node drains. One that is idle stays, as
/// clients of Redis expect.
pub async fn serve(worker: Rc<Worker>, mut stream: TcpStream, activity: Rc<Activity>) {
    let mut asked = Asked::default();
    let mut under_way = FuturesOrdered::new();
    // What is under way is one command that nothing else may run beside.
    let mut alone = false;
    let (mut version, mut output) = (Version::default(), Vec::new());
    let mut at_rest = Some(activity.open(false));
    let mut came = false;
    panics::point("resp connection");
    loop {
        while under_way.is_empty() || !alone && under_way.len() < limits::RESP_COMMANDS_MAX {
            let Some(command) = asked.next() else { break };
            let beside = command.runs_beside_others();
            if !beside && !under_way.is_empty() {
                asked.held = Some(command);
                break;
            }
            alone = !beside;
            under_way.push_back(carry_out(worker.clone(), command));
        }
        // Replies that are ready together leave together. The others are asked again below, where they learn whom to wake.
        while let Some((reply, spoken)) = under_way.next().now_or_never().flatten() {
            version = spoken.unwrap_or(version);
            reply.write(version, &mut output);
        }
        if !output.is_empty() {
            if send(&mut stream, &output).await.is_err() {
                return;
            }
            output.clear();
            continue;
        }
        if under_way.is_empty() && (asked.ended || activity.is_closing()) {
            break;
        }
        // A client with Nagle's algorithm on, as some are, sends no more until what it sent is acknowledged: not with the
        // replies, which wait for a journal entry that could carry more.
        if std::mem::take(&mut came) && !under_way.is_empty() {
            // Without it that client is slower, and nothing else.
            #[cfg(target_os = "linux")]
            let _ = stream.set_quickack(true);
        }
        // A client that has sent part of a command has so long to send the rest of it.
        if under_way.is_empty() && asked.is_partial() {
            at_rest = None;
            activity.received();
        } else if at_rest.is_none() {
            at_rest = Some(activity.open(false));
        }
        let idle = under_way.is_empty();
        let told = poll_fn(|context| {
            activity.watch(context);
            let over = activity.is_expired() || activity.is_closing() && idle;
            if over { Poll::Ready(()) } else { Poll::Pending }
        });
        let reads = !asked.ended
            && asked.held.is_none()
            && !activity.is_closing()
            && under_way.len() < limits::RESP_COMMANDS_MAX;
        if reads {
            asked.bytes.reserve(READ_BYTES);
        }
        tokio::select! {
            () = told => if activity.is_expired() { return },
            read = stream.read_buf(&mut asked.bytes), if reads => match read {
                Ok(1..) => came = true,
                // It sends no more, and may still listen.
                Ok(0) => asked.ended = true,
                Err(_) => return,
            },
            Some((reply, spoken)) = under_way.next(), if !under_way.is_empty() => {
                version = spoken.unwrap_or(version);
                reply.write(version, &mut output);
            }
        }
    }
    end(stream).await;
}

/// Says that nothing follows, and takes in what still comes: a socket that is closed over bytes nobody read may take back
/// replies on their way. Should the other side be gone, that is no news.
async fn end(mut stream: TcpStream) {
    let mut room = [0; 512];
    let _ = stream.shutdown().await;
    let rest = async { while stream.read(&mut room).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(limits::DRAIN_IDLE, rest).await;
}

/// The reply, and the version that it and those after it are written in, where that changes.
async fn carry_out(worker: Rc<Worker>, command: Command) -> (Reply, Option<Version>) {
    let spoken = match &command {
        &Command::Hello(version) => version,
        _ => None,
    };
    let reply = panics::caught(run(&worker, command)).await;
    let panicked = |why| {
        error!("a command was answered with INTERNAL, because the program has panicked: {why}");
        Reply::error("INTERNAL", "The command met a mistake of the program; whether it is carried out is not known.")
    };
    (reply.unwrap_or_else(panicked), spoken)
}

/// A client that does not take its replies is left.
async fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let sent = match stream.try_write(bytes) {
        Ok(sent) => sent,
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => 0,
        Err(why) => return Err(why),
    };
    if sent == bytes.len() {
        return Ok(());
    }
    let rest = stream.write_all(&bytes[sent..]);
    tokio::time::timeout(limits::REQUEST_READ_TIMEOUT, rest).await?
}
