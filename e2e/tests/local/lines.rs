//! Business lines beside each other: whom their users see, and what a caller without a certificate is shown.

use futures::StreamExt;
use kith_e2e::{
    business::Business,
    target::{Target, User, unique},
};
use kith_proto::business::v1::ListMessagesRequest;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{behaviour::Failure, shared};

/// A user of a line that is not the target's.
async fn of_line(target: &Target, line: &Business, name: &str) -> Result<User, Failure> {
    let id = unique(name);
    let token = line.token(&id, "d1", "ios").await?;
    Ok(User { api: target.anonymous().with_token(token), id })
}

/// How a user is shown to another: alone, among others, and in presence.
async fn shown(to: &User, user: &User) -> Result<(u16, bool, bool), Failure> {
    let alone = to.api.raw(Method::GET, &format!("/v1/users/{}", user.id), None).await?;
    let ask = async |path: &str| -> Result<Value, Failure> {
        Ok(to.api.raw(Method::POST, path, Some(json!({"user_ids": [user.id]}))).await?.json()?)
    };
    let among = ask("/v1/users:batchGet").await?["users"].as_array().is_some_and(|users| !users.is_empty());
    let present = ask("/v1/presence:query").await?["presence"].get(&user.id).is_some();
    Ok((alone.status, among, present))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_users_of_its_line_friends_and_those_it_talks_to() -> Result<(), Failure> {
    let platform = shared().await;
    let target = platform.target().await?;
    let other = Business::over(platform.business_channel(Some("other")).await?);
    let (alice, anna) = (target.new_user("alice").await?, target.new_user("anna").await?);
    let (bob, ben) = (of_line(&target, &other, "bob").await?, of_line(&target, &other, "ben").await?);
    let (seen, unseen) = ((200, true, true), (404, false, false));
    assert_eq!(shown(&alice, &anna).await?, seen, "of one line");
    assert_eq!(shown(&bob, &ben).await?, seen, "of one line");
    for (to, user) in [(&alice, &bob), (&bob, &alice)] {
        assert_eq!(shown(to, user).await?, unseen, "of another line");
    }
    let refused = async |user: &str| -> Result<_, Failure> {
        let problem = alice.api.raw(Method::GET, &format!("/v1/users/{user}"), None).await?.problem()?;
        Ok((problem.code, problem.detail.replace(user, "…"), problem.reason))
    };
    assert_eq!(refused(&bob.id).await?, refused(&unique("nobody")).await?);

    let talk = alice.api.send(&kith_e2e::client::Draft::to(&bob.id, "hi")).await?.conversation_id;
    assert_eq!(shown(&alice, &bob).await?, seen, "who talk");
    assert_eq!(shown(&bob, &alice).await?, seen, "who talk");
    assert_eq!(shown(&alice, &ben).await?, unseen);
    let among = json!({"user_ids": [bob.id, ben.id, alice.id], "conversation_id": talk});
    let among = alice.api.raw(Method::POST, "/v1/users:batchGet", Some(among)).await?.json()?;
    assert_eq!(among["users"].as_array().map(Vec::len), Some(2), "{among}");

    let asked = anna.api.raw(Method::POST, "/v1/friends/requests", Some(json!({"user_id": ben.id}))).await?;
    assert_eq!(asked.status, 201);
    assert_eq!(shown(&anna, &ben).await?, unseen, "asked is not befriended");
    let path = format!("/v1/friends/requests/{}/accept", anna.id);
    assert_eq!(ben.api.raw(Method::POST, &path, None).await?.status, 200);
    assert_eq!(shown(&anna, &ben).await?, seen, "friends");
    assert_eq!(shown(&ben, &anna).await?, seen, "friends");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_is_not_told_which_conversations_of_others_exist() -> Result<(), Failure> {
    let platform = shared().await;
    let target = platform.target().await?;
    let other = Business::over(platform.business_channel(Some("other")).await?);
    let (alice, anna) = (target.new_user("alice").await?, target.new_user("anna").await?);
    let stands = alice.api.send(&kith_e2e::client::Draft::to(&anna.id, "hi")).await?.conversation_id;
    let absent = format!("d:{}:{}", unique("a"), unique("b"));
    let mut told = Vec::new();
    for id in [&stands, &absent] {
        let request = ListMessagesRequest { conversation_id: id.clone(), ..Default::default() };
        let status = other.raw().list_messages(request).await.expect_err("not the line's");
        told.push((status.code(), status.message().to_owned()));
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0].0, Code::NotFound);
    Ok(())
}

/// What reflection answers to one request.
async fn reflected(channel: Channel, request: MessageRequest) -> Result<Option<MessageResponse>, tonic::Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = futures::stream::iter([request]);
    let mut answers = ServerReflectionClient::new(channel).server_reflection_info(requests).await?.into_inner();
    Ok(answers.next().await.transpose()?.and_then(|answer| answer.message_response))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_of_business_shows_a_line_its_own_package_and_nobody_else_anything() -> Result<(), Failure> {
    let platform = shared().await;
    let list = || MessageRequest::ListServices(String::new());
    let symbol = |name: &str| MessageRequest::FileContainingSymbol(name.to_owned());
    let nobody = platform.business_channel(None).await?;
    for request in [list(), symbol("kith.business.v1.ImBusiness")] {
        let refused = reflected(nobody.clone(), request).await.expect_err("no certificate");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let line = platform.business_channel(Some("default")).await?;
    let Some(MessageResponse::ListServicesResponse(listed)) = reflected(line.clone(), list()).await? else {
        panic!("no list")
    };
    let names: Vec<_> = listed.service.iter().map(|s| s.name.as_str()).filter(|n| n.starts_with("kith.")).collect();
    assert_eq!(names, ["kith.business.v1.ImBusiness"]);
    assert!(reflected(line.clone(), symbol("kith.business.v1.ImBusiness")).await?.is_some());
    let internal = reflected(line, symbol("kith.storage.v1.Peer")).await.expect_err("an internal service");
    assert_eq!(internal.code(), Code::NotFound);
    Ok(())
}
