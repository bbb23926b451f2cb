//! One node's stream: connects, says when it is up and down, hands outcomes on, and connects again.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

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
    while !events.is_closed() {
        let (sender, operations) = unbounded_channel();
        if exchange(tag, &endpoint, &events, sender, operations).await.is_ok() {
            wait = limits::PEER_RETRY.0;
        }
        if events.send(Event::Down(tag)).is_err() {
            return;
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(limits::PEER_RETRY.1);
    }
}

async fn exchange(
    tag: Tag,
    endpoint: &Endpoint,
    events: &UnboundedSender<Event>,
    sender: UnboundedSender<Operations>,
    operations: UnboundedReceiver<Operations>,
) -> Result<(), tonic::Status> {
    let unreachable = |why: tonic::transport::Error| tonic::Status::unavailable(why.to_string());
    let mut client = client(endpoint.connect().await.map_err(unreachable)?);
    let mut outcomes = client.exchange(UnboundedReceiverStream::new(operations)).await?.into_inner();
    let closed = |_| tonic::Status::cancelled("nobody listens");
    events.send(Event::Up(tag, sender)).map_err(closed)?;
    while let Some(message) = outcomes.message().await? {
        events.send(Event::Outcomes(tag, message.outcomes)).map_err(closed)?;
    }
    Ok(())
}

/// Nodes that lose the same node at once do not call it at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..1.0))
}
