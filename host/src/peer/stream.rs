//! One node's stream: connects, says when it is up and down, hands outcomes on, and connects again.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tracing::warn;

use super::wire::message::peer_client::PeerClient;
use super::wire::message::{OperationOutcome, Operations};
use super::{Identity, Member};
use crate::limits;

/// Which stream an event is about: a node that started again has another tag.
pub type Tag = u64;

pub enum Event {
    /// What is sent to the sender goes to the node, in order. Its content is bounded by the producers' windows.
    Up(Tag, UnboundedSender<Operations>),
    Outcomes(Tag, Vec<OperationOutcome>),
    Down(Tag),
}

/// Where a node is reached.
pub fn endpoint(member: &Member, identity: Option<&Identity>) -> Result<Endpoint, tonic::transport::Error> {
    let scheme = if identity.is_some() { "https" } else { "http" };
    let (interval, timeout) = limits::PEER_KEEP_ALIVE;
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", member.address))?
        .connect_timeout(limits::PEER_CONNECT_TIMEOUT)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .tcp_nodelay(true);
    match identity {
        None => Ok(endpoint),
        Some(identity) => {
            let tls = ClientTlsConfig::new().ca_certificate(identity.ca.clone()).identity(identity.own.clone());
            endpoint.tls_config(tls)
        }
    }
}

pub fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
}

/// Keeps a stream to the node until nobody listens to its events.
pub async fn keep(tag: Tag, endpoint: Endpoint, events: UnboundedSender<Event>) {
    let mut wait = limits::PEER_RETRY.0;
    let mut told = false;
    while !events.is_closed() {
        let (sender, operations) = unbounded_channel();
        match exchange(tag, &endpoint, &events, sender, operations).await {
            Ok(()) => (wait, told) = (limits::PEER_RETRY.0, false),
            // The certificates may not fit, which nobody could tell from a node that is merely gone.
            Err(Broken::NotConnected(why)) if !std::mem::replace(&mut told, true) => {
                warn!("no connection to {}: {why}; trying on", endpoint.uri());
            }
            Err(Broken::NotConnected(_)) => {}
            Err(Broken::Lost) => told = false,
        }
        if events.send(Event::Down(tag)).is_err() {
            return;
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(limits::PEER_RETRY.1);
    }
}

/// How a stream ended otherwise than by its other side.
enum Broken {
    NotConnected(String),
    Lost,
}

async fn exchange(
    tag: Tag,
    endpoint: &Endpoint,
    events: &UnboundedSender<Event>,
    sender: UnboundedSender<Operations>,
    operations: UnboundedReceiver<Operations>,
) -> Result<(), Broken> {
    let mut client = client(endpoint.connect().await.map_err(|why| Broken::NotConnected(causes(&why)))?);
    let answer = client.exchange(UnboundedReceiverStream::new(operations)).await;
    let mut outcomes = answer.map_err(|why| Broken::NotConnected(causes(&why)))?.into_inner();
    events.send(Event::Up(tag, sender)).map_err(|_| Broken::Lost)?;
    while let Some(message) = outcomes.message().await.map_err(|_| Broken::Lost)? {
        events.send(Event::Outcomes(tag, message.outcomes)).map_err(|_| Broken::Lost)?;
    }
    Ok(())
}

/// An error and what it came from: the first alone says that it is one of transport.
fn causes(why: &dyn std::error::Error) -> String {
    std::iter::successors(Some(why), |why| why.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Nodes that lose the same node at once do not call it at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..1.0))
}
