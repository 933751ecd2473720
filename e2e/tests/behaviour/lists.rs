//! Pages of lists, friend requests and versions, as hostile and as ordinary callers meet them.

use kith_e2e::{business::timed, target::Target};
use kith_proto::business::v1::{BusinessUser, ListConversationsRequest};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Proof, say, two};

/// Once given out by older versions, or made up.
const MADE_UP: [&str; 6] = [
    "9999999999999.0.18446744073709551615",
    "0.0.18446744073709551615",
    "zzzzz",
    "b:0.0.18446744073709551615",
    "-1",
    "AAAAAAAAAAAAAAAAAAAA",
];

fn refused(case: &str, answer: &kith_e2e::client::http::Answer) -> Proof {
    let problem = answer.problem()?;
    assert_eq!((answer.status, problem.code.as_ref()), (400, "INVALID_ARGUMENT"), "{case}");
    assert!(problem.detail.starts_with("cursor"), "{case}: {}", problem.detail);
    Ok(())
}

pub async fn a_cursor_that_was_not_given_out_is_refused_by_every_list(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let (carol, _) = two(target).await?;
    say(&alice, &bob, &["hi"]).await?;
    say(&alice, &carol, &["hi"]).await?;
    let given = alice.api.conversations(1, None).await?.next_cursor.ok_or("a second page")?;
    for path in ["/v1/conversations", "/v1/friends", "/v1/friends/requests", "/v1/blocks"] {
        for cursor in MADE_UP {
            let case = format!("{path}?cursor={cursor}");
            refused(&case, &alice.api.raw(Method::GET, &case, None).await?)?;
        }
        let case = format!("{path}?cursor={given}");
        refused(&case, &bob.api.raw(Method::GET, &case, None).await?)?;
    }
    for cursor in MADE_UP.into_iter().chain([given.as_str()]) {
        let sync = json!({"cursors": {}, "cursor": cursor});
        refused(cursor, &alice.api.raw(Method::POST, "/v1/sync", Some(sync)).await?)?;
        let request = ListConversationsRequest { user_id: bob.id.clone(), limit: 1, cursor: cursor.to_owned() };
        let status = target.business.raw().list_conversations(timed(request)).await.expect_err(cursor);
        assert!(status.code() == tonic::Code::InvalidArgument && status.message().starts_with("cursor"), "{status}");
    }
    // Nobody else has noticed anything.
    assert_eq!(bob.api.conversations(10, None).await?.conversations.len(), 1);
    Ok(())
}

pub async fn a_page_of_one_shows_the_conversation_with_the_newest_message(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let (carol, dave) = two(target).await?;
    for peer in [&bob, &carol, &dave] {
        say(peer, &alice, &["hello"]).await?;
    }
    // Within the minute in which hints are not raised again.
    for peer in [&carol, &bob, &dave, &bob] {
        let sent = say(peer, &alice, &["and again"]).await?.remove(0);
        let page = alice.api.conversations(1, None).await?;
        assert_eq!(page.conversations.len(), 1);
        assert_eq!(page.conversations[0].conversation_id, sent.conversation_id);
    }
    Ok(())
}

pub async fn sync_pages_come_to_an_end_with_everything(target: &Target) -> Proof {
    const PEERS: usize = 65;
    let bob = target.new_user("bob").await?;
    let mut ids = std::collections::BTreeSet::new();
    for n in 0..PEERS {
        let peer = target.new_user(&format!("peer{n}")).await?;
        ids.insert(say(&peer, &bob, &["hello"]).await?[0].conversation_id.clone());
    }
    let mut found = std::collections::BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let body = json!({"cursors": {}, "cursor": cursor});
        let page: Value = bob.api.call(Method::POST, "/v1/sync", Some(body)).await?;
        for conversation in page["conversations"].as_array().ok_or("conversations")? {
            assert!(conversation.get("error").is_none(), "{conversation}");
            found.insert(conversation["conversation_id"].as_str().ok_or("an id")?.to_owned());
        }
        page["next_cursor"].as_str().ok_or("a cursor")?.clone_into(&mut cursor);
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(found, ids);
    Ok(())
}

pub async fn a_friend_request_is_taken_back_and_leaves_nothing(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let waiting = async |of: &kith_e2e::target::User| {
        let page: Value = of.api.call(Method::GET, "/v1/friends/requests", None).await?;
        Ok::<_, super::Failure>(page["requests"].as_array().ok_or("requests")?.len())
    };
    let ask = json!({"user_id": bob.id, "text": "hi"});
    assert_eq!(alice.api.raw(Method::POST, "/v1/friends/requests", Some(ask)).await?.status, 201);
    assert_eq!((waiting(&alice).await?, waiting(&bob).await?), (1, 1));
    let path = format!("/v1/friends/requests/{}", bob.id);
    assert_eq!(alice.api.raw(Method::DELETE, &path, None).await?.status, 200);
    assert_eq!((waiting(&alice).await?, waiting(&bob).await?), (0, 0));
    assert_eq!(alice.api.raw(Method::DELETE, &path, None).await?.status, 404);
    let nobody = json!({"user_id": kith_e2e::target::unique("nobody"), "text": "hi"});
    assert_eq!(alice.api.raw(Method::POST, "/v1/friends/requests", Some(nobody)).await?.status, 404);
    assert_eq!(waiting(&alice).await?, 0, "what is made up leaves no row");
    let block = format!("/v1/blocks/{}", kith_e2e::target::unique("nobody"));
    assert_eq!(alice.api.raw(Method::PUT, &block, None).await?.status, 404);
    Ok(())
}

pub async fn a_lines_newer_record_is_taken_after_the_users_own_edit(target: &Target) -> Proof {
    let alice = target.new_user("alice").await?;
    let record = async |version: u64, nickname: &str| {
        let user = BusinessUser {
            user_id: alice.id.clone(),
            nickname: Some(nickname.to_owned()),
            version,
            ..BusinessUser::default()
        };
        Ok::<_, super::Failure>(target.business.upsert(vec![user]).await?.remove(0).changed)
    };
    let nickname = async || {
        let me: Value = alice.api.call(Method::GET, "/v1/me", None).await?;
        Ok::<_, super::Failure>(me["nickname"].as_str().unwrap_or_default().to_owned())
    };
    assert!(record(5, "line 5").await?);
    for name in ["mine", "mine again"] {
        let edit = json!({"nickname": name});
        assert_eq!(alice.api.raw(Method::PATCH, "/v1/me", Some(edit)).await?.status, 200);
    }
    assert!(record(6, "line 6").await?, "the source's next version");
    assert_eq!(nickname().await?, "line 6");
    assert!(!record(6, "late").await? && !record(4, "late").await?);
    assert!(record(u64::MAX, "the last").await?);
    let edit = json!({"nickname": "mine for good"});
    assert_eq!(alice.api.raw(Method::PATCH, "/v1/me", Some(edit)).await?.status, 200, "no version stops the user");
    assert_eq!(nickname().await?, "mine for good");
    // The service has lived through it.
    say(&alice, &target.new_user("bob").await?, &["still there"]).await?;
    Ok(())
}
