//! Takes one shard over on a store: carries out what [`takeover`] asks for.

use crate::shard::{Partials, Replay, Writer, takeover};
use crate::store::{self, Store};

use super::Settings;

/// The shard's writer under a new epoch, and what is readable of it. `durable_seq` is the highest sequence that this
/// process knows to be durable; a journal that ends before it is `Damaged`. `standby` is what was read of it already.
pub(super) async fn take_over(
    store: &dyn Store,
    settings: Settings,
    shard: u32,
    durable_seq: u64,
    standby: Option<Replay>,
) -> Result<(Box<Writer>, Box<Partials>), store::Error> {
    let (mut machine, mut effect) = takeover::Takeover::begin(shard, settings.key_window_ms(), durable_seq, standby);
    crate::panics::point("replay");
    loop {
        let event = match effect {
            takeover::Effect::Raise => {
                let store::Raised { epoch, checkpoint_seq, marks } = store.raise(shard).await?;
                takeover::Event::Raised { epoch, checkpoint_seq, marks }
            }
            takeover::Effect::Read { after } => {
                takeover::Event::Read(store.read(shard, after, settings.replay_bytes).await?)
            }
            takeover::Effect::Serve(writer, read) => return Ok((writer, read)),
            takeover::Effect::Damaged { expected_seq, found_seq } => {
                let what = format!("shard {shard}: the journal goes on at {found_seq} where {expected_seq} should be");
                return Err(store::Error::Damaged(what));
            }
        };
        effect = machine.step(event);
    }
}
