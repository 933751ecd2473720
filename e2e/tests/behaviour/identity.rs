//! Ids, and what others may learn from them: one id is one thing, whatever its words; who is not in a conversation learns nothing of it.

use std::borrow::Cow;

use kith_e2e::{
    client::{ClientError, DeviceOptions, Draft, http::Answer},
    target::{Target, User, unique},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Failure, Proof, SOON, two};

/// What is told of a refusal, with the ids that the caller gave itself taken out.
fn told(answer: &Answer, given: &str) -> Result<(u16, String, String, Option<String>), ClientError> {
    let problem = answer.problem()?;
    let reason = problem.reason.map(Cow::into_owned);
    Ok((answer.status, problem.code.into_owned(), problem.detail.replace(given, "…"), reason))
}

pub async fn ids_that_could_be_read_in_two_ways_are_refused(target: &Target) -> Proof {
    let alice = target.new_user("alice").await?;
    for bad in ["a:b", ":", "@all", "@", ".", "..", "a/b", ""] {
        for (user, device) in [(bad, "d1"), ("someone", bad)] {
            let refused = target.business.token(user, device, "ios").await.expect_err("no such id");
            assert!(refused.to_string().contains("InvalidArgument"), "{user} {device}: {refused}");
        }
    }
    let colon = Draft::to("b:c", "hi");
    assert_eq!(alice.api.send(&colon).await.expect_err("a colon").code(), Some("INVALID_ARGUMENT"));
    for bad in ["d:a:b:c", "d:b:a", "d:a", "g:01arz3ndektsv4rrffq69g5fav", "s:news", "d:@all:b"] {
        let answer = alice.api.raw(Method::GET, &format!("/v1/conversations/{bad}"), None).await?;
        assert_eq!((answer.status, answer.problem()?.code.as_ref()), (400, "INVALID_ARGUMENT"), "{bad}");
        let refused = alice.api.send(&Draft::into_conversation(bad, "hi")).await.expect_err("no such id");
        assert_eq!(refused.code(), Some("INVALID_ARGUMENT"), "{bad}: {refused}");
    }
    Ok(())
}

/// A call on a conversation: what stands behind its path, and the body.
type Call = (Method, &'static str, Option<Value>);

pub async fn a_conversation_of_others_is_as_one_that_does_not_exist(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let eve = target.new_user("eve").await?;
    let stands = alice.api.send(&Draft::to(&bob.id, "between us")).await?.conversation_id;
    let absent = format!("d:{}:{}", unique("a"), unique("b"));
    let message =
        |id: &str| json!({"client_msg_id": "c", "conversation_id": id, "type": "text", "content": {"text": "hi"}});
    let calls: [Call; 14] = [
        (Method::GET, "", None),
        (Method::PATCH, "", Some(json!({"pinned": true}))),
        (Method::DELETE, "", None),
        (Method::GET, "/messages", None),
        (Method::GET, "/messages?after_seq=0", None),
        (Method::GET, "/messages?before_seq=2", None),
        (Method::PATCH, "/messages/1", Some(json!({"content": {"text": "mine"}}))),
        (Method::POST, "/messages/1/recall", None),
        (Method::POST, "/messages/9/recall", None),
        (Method::PUT, "/messages/1/reactions/+1", None),
        (Method::DELETE, "/messages/1/reactions/+1", None),
        (Method::POST, "/read", Some(json!({"seq": "1"}))),
        (Method::GET, "/receipts?seq=1", None),
        (Method::GET, "/receipts?seq=9", None),
    ];
    for (method, path, body) in calls {
        let ask = async |id: &str| -> Result<_, ClientError> {
            let answer = eve.api.raw(method.clone(), &format!("/v1/conversations/{id}{path}"), body.clone()).await?;
            told(&answer, id)
        };
        let (of_others, of_nobody) = (ask(&stands).await?, ask(&absent).await?);
        assert_eq!(of_others, of_nobody, "{method} {path}");
        assert_eq!((of_others.0, of_others.1.as_str(), &of_others.3), (404, "NOT_FOUND", &None), "{method} {path}");
    }
    for (path, body) in [
        ("/v1/messages", &message as &dyn Fn(&str) -> Value),
        ("/v1/ack", &|id| json!({"acks": [{"conversation_id": id, "seq": "1"}]})),
        ("/v1/users:batchGet", &|id| json!({"user_ids": [alice.id], "conversation_id": id})),
    ] {
        let mut answers = Vec::new();
        for id in [&stands, &absent] {
            answers.push(told(&eve.api.raw(Method::POST, path, Some(body(id))).await?, id)?);
        }
        assert_eq!(answers[0], answers[1], "{path}");
        assert_eq!(answers[0].0, 404, "{path}");
    }
    let synced = json!({"cursors": {stands.clone(): "0", absent.clone(): "0"}});
    let synced = eve.api.raw(Method::POST, "/v1/sync", Some(synced)).await?;
    assert_eq!((synced.status, &synced.json()?["conversations"]), (200, &json!([])));
    let device = target.device(&eve, DeviceOptions::default()).await?;
    let mut refusals = Vec::new();
    for id in [&stands, &absent] {
        let refused = device.send(&Draft::into_conversation(id, "let me in")).await.expect_err("not a member");
        refusals.push((refused.code().map(str::to_owned), refused.reason().map(str::to_owned)));
    }
    assert_eq!(refusals, vec![(Some("NOT_FOUND".to_owned()), None); 2]);
    assert_eq!(alice.api.conversation(&stands).await?.seq, 1);
    Ok(())
}

pub async fn what_is_a_fixed_word_of_a_path_is_an_id_all_the_same(target: &Target) -> Proof {
    let alice = target.new_user("alice").await?;
    let named = target.user_on("requests", "d1", "ios").await?;
    befriend(&alice, &named).await?;
    let renamed = alice.api.raw(Method::PATCH, "/v1/friends/requests", Some(json!({"alias": "Mr Requests"}))).await?;
    assert_eq!((renamed.status, &renamed.json()?["changed"]), (200, &json!(true)));
    let ended = alice.api.raw(Method::DELETE, "/v1/friends/requests", None).await?;
    assert_eq!((ended.status, &ended.json()?["changed"]), (200, &json!(true)));

    let device = target.user_on(&alice.id, "push-token", "web").await?;
    let gone = alice.api.raw(Method::DELETE, "/v1/devices/push-token", None).await?;
    assert_eq!((gone.status, &gone.json()?["changed"]), (200, &json!(true)));
    kith_e2e::wait::await_until("the token of the device to be dead", SOON, || async {
        match device.api.raw(Method::GET, "/v1/me", None).await {
            Ok(answer) if answer.status == 401 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    Ok(())
}

/// Makes the two friends.
async fn befriend(a: &User, b: &User) -> Proof {
    let asked = a.api.raw(Method::POST, "/v1/friends/requests", Some(json!({"user_id": b.id}))).await?;
    assert_eq!(asked.status, 201);
    let accepted = b.api.raw(Method::POST, &format!("/v1/friends/requests/{}/accept", a.id), None).await?;
    assert_eq!(accepted.status, 200);
    Ok(())
}

async fn description(target: &Target) -> Result<Value, Failure> {
    Ok(target.anonymous().raw(Method::GET, "/v1/openapi.json", None).await?.json()?)
}

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn taken(operations: &Value) -> impl Iterator<Item = Method> + '_ {
    METHODS.into_iter().filter(|m| operations.get(m.as_str().to_lowercase()).is_some())
}

pub async fn every_method_of_a_path_with_an_id_is_there_for_the_fixed_words_beside_it(target: &Target) -> Proof {
    let document = description(target).await?;
    let paths = document["paths"].as_object().expect("paths");
    let mut looked_at = 0;
    for (with_id, operations) in paths {
        for (fixed, own) in paths.iter().filter(|(fixed, _)| shadows(fixed, with_id)) {
            for method in taken(operations) {
                assert!(!taken(own).any(|m| m == method), "{method} of {fixed} and of {with_id} are one call");
                let path = fixed.replace("{user}", "someone").replace("{id}", "someone");
                // Without a token: a call that is there asks for one.
                let answer = target.anonymous().raw(method.clone(), &path, None).await?;
                assert_eq!(answer.status, 401, "{method} {fixed}, an id of {with_id}");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at >= 3, "the fixed words that are known: {looked_at}");
    Ok(())
}

/// Whether `fixed` is `with_id` with a word where that has a parameter.
fn shadows(fixed: &str, with_id: &str) -> bool {
    let (fixed, with_id): (Vec<_>, Vec<_>) = (fixed.split('/').collect(), with_id.split('/').collect());
    fixed != with_id
        && fixed.len() == with_id.len()
        && fixed
            .iter()
            .zip(&with_id)
            .all(|(word, place)| word == place || (place.starts_with('{') && !word.starts_with('{')))
}

pub async fn an_array_is_taken_for_an_object_in_no_body(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let talk = alice.api.send(&Draft::to(&bob.id, "hi")).await?.conversation_id;
    let document = description(target).await?;
    let mut bodies = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for method in taken(operations) {
            let operation = &operations[method.as_str().to_lowercase()];
            let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema") else { continue };
            let path = path.replace("{id}", &talk).replace("{seq}", "1").replace("{user}", "someone");
            let mut good = sample(&document, schema);
            // Of a message only one of two places is given, and its type is one that there is.
            if let Some(fields) = good.as_object_mut().filter(|fields| fields.contains_key("recipient_id")) {
                fields.remove("recipient_id");
                fields.insert("conversation_id".to_owned(), talk.clone().into());
                fields.insert("type".to_owned(), "text".into());
            }
            for bad in with_arrays(&good) {
                let answer = alice.api.raw(method.clone(), &path, Some(bad.clone())).await?;
                let detail = answer.problem().map(|p| p.detail).unwrap_or_default();
                assert_eq!(answer.status, 400, "{method} {path} {bad}: {detail}");
                assert!(detail.contains("sequence") || detail.contains("object"), "{method} {path} {bad}: {detail}");
                bodies += 1;
            }
        }
    }
    assert!(bodies >= 12, "bodies that were tried: {bodies}");
    Ok(())
}

/// A value of a described type.
fn sample(document: &Value, schema: &Value) -> Value {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.trim_start_matches('#');
        return sample(document, document.pointer(pointer).expect("a described type"));
    }
    if let Some(one) = ["oneOf", "anyOf", "allOf"].iter().find_map(|k| schema[*k].as_array()) {
        let shown = one.iter().find(|s| s["type"] != "null").expect("a type");
        return sample(document, shown);
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|k| *k != "null").cloned().unwrap_or_default(),
        kind => kind.clone(),
    };
    match kind.as_str() {
        Some("string") => "1".into(),
        Some("integer" | "number") => 1.into(),
        Some("boolean") => true.into(),
        Some("array") => json!([sample(document, &schema["items"])]),
        _ => match schema["properties"].as_object() {
            Some(fields) => fields
                .iter()
                .map(|(name, s)| (name.clone(), sample(document, s)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            None => json!({"text": "1"}),
        },
    }
}

/// The value once for each of its objects, with that one as an array of its fields.
fn with_arrays(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(fields) => {
            let mut all = vec![Value::Array(fields.values().cloned().collect())];
            for (name, inner) in fields {
                all.extend(with_arrays(inner).into_iter().map(|bad| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), bad);
                    fields.into()
                }));
            }
            all
        }
        Value::Array(items) => items.iter().flat_map(with_arrays).map(|bad| json!([bad])).collect(),
        _ => Vec::new(),
    }
}
