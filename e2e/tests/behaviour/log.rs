//! The event log says what the store says.

use kith_contract::events::Kind;
use kith_e2e::{target::Target, wait::await_every};
use std::time::Duration;

use super::{Proof, SOON, say, two};

pub async fn the_event_log_replays_to_the_same_conversation(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["1", "2", "3"]).await?[0].conversation_id.clone();
    say(&bob, &alice, &["4"]).await?;
    // What one wrote oneself is read already, and no event says so.
    alice.api.read(&id, 4).await?;
    let history = alice.api.whole_history(&id, SOON).await?;
    assert_eq!(history.len(), 4);
    let replay = await_every(Duration::from_millis(500), "the log to hold the conversation", SOON * 2, || async {
        let replay = target.replay(SOON).await.map_err(|e| e.to_string())?;
        let differences = replay.differences(&id, &history);
        let kinds = [Kind::ConversationCreated, Kind::MessageCreated, Kind::ReceiptRead];
        match kinds.into_iter().find(|kind| !replay.kinds.contains_key(kind.ce_type())) {
            Some(kind) => Err(format!("{kind}: {:?}", replay.kinds)),
            None if differences.is_empty() => Ok(replay),
            None => Err(format!("{differences:?}")),
        }
    })
    .await?;
    assert!(replay.faults.is_empty(), "{:?}", replay.faults);
    Ok(())
}
