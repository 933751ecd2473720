//! Reading back.

use kith_e2e::{
    client::{Draft, http::Page},
    target::Target,
};

use super::{Proof, SOON, two};

pub async fn pages_in_both_directions_hold_everything_once(target: &Target) -> Proof {
    const COUNT: u64 = 23;
    let (alice, bob) = two(target).await?;
    let mut id = String::new();
    for n in 1..=COUNT {
        id = alice.api.send_until_stored(&Draft::to(&bob.id, &n.to_string()), SOON).await?.conversation_id;
    }
    let newest = bob.api.history(&id, Page::default()).await?;
    assert_eq!(newest.messages.last().map(|m| m.seq), Some(COUNT), "without a direction the newest come");
    let mut back = Vec::new();
    let mut page = Page { limit: Some(10), ..Page::default() };
    loop {
        let found = bob.api.history(&id, page).await?;
        let seqs: Vec<u64> = found.messages.iter().map(|m| m.seq).collect();
        assert!(seqs.is_sorted() && seqs.len() <= 10, "{seqs:?}");
        page.before = seqs.first().copied();
        back.splice(0..0, seqs);
        if !found.has_more {
            break;
        }
    }
    assert_eq!(back, (1..=COUNT).collect::<Vec<_>>());
    let mut forward = Vec::new();
    let mut page = Page { after: Some(0), limit: Some(10), ..Page::default() };
    loop {
        let found = bob.api.history(&id, page).await?;
        forward.extend(found.messages.iter().map(|m| m.seq));
        page.after = forward.last().copied();
        if !found.has_more {
            break;
        }
    }
    assert_eq!(forward, (1..=COUNT).collect::<Vec<_>>());
    let beyond = bob.api.history(&id, Page { after: Some(COUNT), ..Page::default() }).await?;
    assert!(beyond.messages.is_empty() && !beyond.has_more);
    Ok(())
}

pub async fn strangers_see_nothing(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let eve = target.new_user("eve").await?;
    let sent = alice.api.send(&Draft::to(&bob.id, "between us")).await?;
    let id = &sent.conversation_id;
    let history = eve.api.history(id, Page::default()).await.expect_err("not a member");
    assert_eq!(history.code(), Some("NOT_FOUND"), "{history}");
    assert_eq!(eve.api.conversation(id).await.expect_err("not a member").code(), Some("NOT_FOUND"));
    let write = eve.api.send(&Draft::into_conversation(id, "let me in")).await.expect_err("not a member");
    assert_eq!((write.code(), write.reason()), (Some("NOT_FOUND"), None), "{write}");
    assert!(eve.api.conversations(50, None).await?.conversations.is_empty());
    assert_eq!(bob.api.whole_history(id, SOON).await?.len(), 1);
    Ok(())
}
