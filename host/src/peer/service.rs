//! The gRPC service that other nodes call. It answers for this node alone and asks nobody else, so that no two nodes
//! wait for each other.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc::unbounded_channel;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::receiver::{Receiver, Session};
use super::wire::message::peer_server::{Peer, PeerServer};
use super::wire::message::*;
use crate::counter::Id;
use crate::error::Error;
use crate::limits;
use crate::node::Node;
use crate::node::cluster::Journaled;

pub struct Service {
    node: Arc<Node>,
    receiver: Arc<Receiver>,
}

impl Service {
    pub fn new(node: Arc<Node>, receiver: Arc<Receiver>) -> PeerServer<Self> {
        PeerServer::new(Self { node, receiver })
            .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
    }

    fn shards(&self, shards: &[u32]) -> Result<(), Status> {
        let unknown = shards.iter().find(|&&shard| shard >= self.node.shards);
        unknown.map_or(Ok(()), |shard| Err(Status::invalid_argument(format!("there is no shard {shard}"))))
    }
}

fn id(text: &str) -> Result<Id, Status> {
    Id::new(text).map_err(|why| Status::invalid_argument(why.to_string()))
}

fn failed(why: Error) -> Status {
    Status::unavailable(why.to_string())
}

type Outbound = Pin<Box<dyn Stream<Item = Result<Outcomes, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Service {
    type ExchangeStream = Outbound;

    async fn exchange(&self, request: Request<Streaming<Operations>>) -> Result<Response<Outbound>, Status> {
        let (sender, outcomes) = unbounded_channel();
        let session = self.receiver.open(sender);
        let (receiver, shards) = (self.receiver.clone(), self.node.shards);
        tokio::spawn(async move {
            if let Err(why) = receive(&receiver, session, shards, request.into_inner()).await {
                warn!("a node's stream ends: {}", why.message());
            }
            receiver.close(session);
        });
        let outbound = UnboundedReceiverStream::new(outcomes).map(|outcomes| Ok(Outcomes { outcomes }));
        Ok(Response::new(Box::pin(outbound)))
    }

    async fn read_partials(&self, request: Request<ReadRequest>) -> Result<Response<ReadReply>, Status> {
        let ReadRequest { shards, counter } = request.into_inner();
        self.shards(&shards)?;
        let (found, unserved) = self.node.read_own(&id(&counter)?, shards).await.map_err(failed)?;
        let mut reply = ReadReply { unserved, ..ReadReply::default() };
        for Journaled { shard, seq, value, exists } in found {
            let list = if exists { &mut reply.partials } else { &mut reply.removed };
            list.push(Partial { shard, value, seq });
        }
        Ok(Response::new(reply))
    }

    async fn find_key(&self, request: Request<FindKeyRequest>) -> Result<Response<FindKeyReply>, Status> {
        let FindKeyRequest { shard, counter, key } = request.into_inner();
        self.shards(&[shard])?;
        let found = self.node.find_key_own(shard, &id(&counter)?, &key).await.map_err(failed)?;
        let reply = match found {
            None => FindKeyReply { served: false, record: None },
            Some(record) => FindKeyReply { served: true, record: record.as_ref().map(KeyRecord::from) },
        };
        Ok(Response::new(reply))
    }

    async fn list_changed(&self, request: Request<ListChangedRequest>) -> Result<Response<ListChangedReply>, Status> {
        let ListChangedRequest { prefix, after, limit, settled, relaxed_settled } = request.into_inner();
        if settled {
            let waited = self.node.await_older_rules(relaxed_settled).await;
            waited.map_err(|why| Status::unavailable(why.detail))?;
        }
        let after = after.map(|after| id(&after)).transpose()?;
        let limit = (limit as usize).min(limits::LIST_LIMIT_MAX + 1);
        let node = self.node.clone();
        // Looks at every changed counter: not work for the thread that all streams are on.
        let listed = tokio::task::spawn_blocking(move || node.list_changed(&prefix, after.as_ref(), limit));
        let listed = listed.await.map_err(|why| Status::internal(why.to_string()))?;
        let counters = listed.into_iter().map(|(id, partials)| ListedCounter {
            counter: id.as_str().to_owned(),
            partials: partials.into_iter().map(|(shard, partial)| ListedPartial::new(shard, partial)).collect(),
        });
        Ok(Response::new(ListChangedReply { counters: counters.collect() }))
    }

    async fn prepare_rule(&self, request: Request<PrepareRuleRequest>) -> Result<Response<PrepareRuleReply>, Status> {
        let why_not = self.node.prepare_rule(&request.into_inner().versioned).await.err();
        Ok(Response::new(PrepareRuleReply { why_not: why_not.map(|why| why.detail) }))
    }

    async fn await_revision(
        &self,
        request: Request<AwaitRevisionRequest>,
    ) -> Result<Response<AwaitRevisionReply>, Status> {
        self.node.await_revision(request.into_inner().revision).await;
        Ok(Response::new(AwaitRevisionReply {}))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<VerifyReply>, Status> {
        let audit = self.node.verify().await.map_err(failed)?;
        let audit = serde_json::to_vec(&audit).map_err(|why| Status::internal(why.to_string()))?;
        Ok(Response::new(VerifyReply { audit }))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        Ok(Response::new(self.node.describe()))
    }
}

async fn receive(
    receiver: &Receiver,
    session: Session,
    shards: u32,
    mut operations: Streaming<Operations>,
) -> Result<(), Status> {
    while let Some(message) = operations.message().await? {
        let producer = <[u8; 16]>::try_from(message.producer.as_slice());
        let producer = u128::from_be_bytes(producer.map_err(|_| Status::invalid_argument("no producer"))?);
        let operations = message.operations.into_iter().map(|operation| {
            let round = operation.round;
            operation.into_op(producer, shards).map(|op| (op, round))
        });
        let operations: Result<Vec<_>, _> = operations.collect();
        receiver.accept(session, operations.map_err(|why| Status::invalid_argument(why.to_string()))?);
    }
    Ok(())
}
