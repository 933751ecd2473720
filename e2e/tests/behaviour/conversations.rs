//! A user's list, what is read and what is not.

use kith_e2e::{client::http::Page, target::Target};
use reqwest::Method;

use super::{Proof, SOON, say, two};

pub async fn unread_counts_what_others_wrote_and_read_never_moves_back(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["1", "2", "3", "4"]).await?[0].conversation_id.clone();
    let unread = async |of: &kith_e2e::target::User| Ok::<_, super::Failure>(of.api.conversation(&id).await?.unread);
    assert_eq!((unread(&bob).await?, unread(&alice).await?), (4, 0));
    let read = bob.api.read(&id, 3).await?;
    assert_eq!((read.read_seq, read.unread), (3, 1));
    let back = bob.api.read(&id, 1).await?;
    assert_eq!((back.read_seq, back.unread), (3, 1), "read never moves back");
    let seen = bob.api.conversation(&id).await?;
    assert_eq!((seen.read_seq, seen.unread, seen.seq), (3, 1, 4));
    say(&bob, &alice, &["an answer"]).await?;
    assert_eq!((unread(&bob).await?, unread(&alice).await?), (0, 1), "who writes has seen what was before");
    let beyond = bob.api.read(&id, 1_000).await?;
    assert_eq!((beyond.read_seq, beyond.unread), (5, 0), "nor past what there is");
    Ok(())
}

pub async fn a_first_message_is_in_both_lists_when_it_is_acknowledged(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let sent = say(&alice, &bob, &["first"]).await?.remove(0);
    for user in [&alice, &bob] {
        let list = user.api.conversations(10, None).await?.conversations;
        assert_eq!(list.len(), 1, "{}", user.id);
        assert_eq!(
            (list[0].conversation_id.as_str(), list[0].kind.as_str()),
            (sent.conversation_id.as_str(), "direct")
        );
        assert_eq!(list[0].seq, 1);
        let last = list[0].last_message.as_ref().expect("the newest message");
        assert_eq!(last.message_id, sent.message_id);
        assert!(!list[0].pinned && !list[0].muted);
    }
    Ok(())
}

pub async fn the_list_is_ordered_by_activity_and_pages_hold_everything_once(target: &Target) -> Proof {
    const PEERS: usize = 7;
    let bob = target.new_user("bob").await?;
    let mut ids = Vec::new();
    for n in 0..PEERS {
        let peer = target.new_user(&format!("peer{n}")).await?;
        ids.push(say(&peer, &bob, &["hello"]).await?[0].conversation_id.clone());
    }
    // The order follows a hint that is written lazily: it is there soon, and the content is there at once.
    let expected: Vec<String> = ids.iter().rev().cloned().collect();
    let listed = kith_e2e::wait::await_until("the order of activity", SOON, || async {
        let list = bob.api.conversations(50, None).await.map_err(|e| e.to_string())?.conversations;
        let found: Vec<String> = list.into_iter().map(|c| c.conversation_id).collect();
        if found == expected { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await?;
    let mut paged = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = bob.api.conversations(3, cursor.as_deref()).await?;
        assert!(page.conversations.len() <= 3);
        paged.extend(page.conversations.into_iter().map(|c| c.conversation_id));
        cursor = page.next_cursor.filter(|c| !c.is_empty());
        if cursor.is_none() || paged.len() > PEERS {
            break;
        }
    }
    assert_eq!(paged, listed);
    Ok(())
}

pub async fn a_cleared_conversation_is_cleared_for_the_caller_alone(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["1", "2"]).await?[0].conversation_id.clone();
    let path = format!("/v1/conversations/{id}");
    let pinned = bob.api.raw(Method::PATCH, &path, Some(serde_json::json!({"pinned": true, "muted": true}))).await?;
    assert_eq!(pinned.status, 200, "{}", String::from_utf8_lossy(&pinned.body));
    let seen = bob.api.conversation(&id).await?;
    assert!(seen.pinned && seen.muted);
    assert!(!alice.api.conversation(&id).await?.pinned, "a setting is the caller's own");
    let deleted = bob.api.raw(Method::DELETE, &path, None).await?;
    assert!((200..300).contains(&deleted.status), "{}", deleted.status);
    let left = bob.api.history(&id, Page { after: Some(0), ..Page::default() }).await;
    assert!(left.map_or_else(|e| e.code() == Some("NOT_FOUND"), |page| page.messages.is_empty()));
    assert_eq!(alice.api.whole_history(&id, SOON).await?.len(), 2);
    say(&alice, &bob, &["3"]).await?;
    let again = bob.api.history(&id, Page { after: Some(0), ..Page::default() }).await?;
    assert_eq!(again.messages.iter().map(|m| m.seq).collect::<Vec<_>>(), [3], "what comes later is seen");
    assert_eq!(bob.api.conversation(&id).await?.unread, 1);
    Ok(())
}
