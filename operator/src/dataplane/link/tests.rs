//! A node that says over which of its connections it was asked, and falls silent or hangs up when it is told to.

use kith_kit::config::Valkey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Answered and then hung up on.
const LAST: &str = "L";
/// Never answered.
const SILENT: &str = "S";
const PATIENCE: Duration = Duration::from_secs(10);

fn question(word: &str) -> Cmd {
    let mut question = redis::cmd("ECHO");
    question.arg(word);
    question
}

/// Answers each question with the connection's number and the question's word.
async fn node() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for connection in 1_u32.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut heard = vec![0; question("x").get_packed_command().len()];
                while stream.read_exact(&mut heard).await.is_ok() {
                    let word = char::from(heard[heard.len() - 3]).to_string();
                    if word == SILENT {
                        continue;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    stream.write_all(format!("*2\r\n:{connection}\r\n+{word}\r\n").as_bytes()).await.unwrap();
                    if word == LAST {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn links() -> Links {
    let valkey = Valkey { seeds: Vec::new(), username: None, password_file: None, tls: false };
    Links::new(Connector::with_parts(&valkey, None, "demo").unwrap())
}

fn answer(connection: i64, word: &str) -> Value {
    Value::Array(vec![Value::Int(connection), Value::SimpleString(word.to_owned())])
}

async fn ask(links: &Links, address: SocketAddr, word: &str) -> Result<Value, LinkError> {
    links.call(address, &question(word), PATIENCE).await
}

#[tokio::test]
async fn those_who_ask_a_node_at_once_share_its_connection_and_each_has_its_own_answer() {
    let (links, address) = (links(), node().await);
    let words = ["a", "b", "c", "d", "e"];
    let answers = futures::future::join_all(words.map(|word| ask(&links, address, word))).await;
    for (word, found) in words.iter().zip(answers) {
        assert_eq!(found.unwrap(), answer(1, word));
    }
    let mut pipeline = Pipeline::new();
    pipeline.add_command(question("f")).add_command(question("g"));
    assert_eq!(links.ask(address, &pipeline, PATIENCE).await.unwrap(), [answer(1, "f"), answer(1, "g")]);
    assert_eq!(links.ask_apart(address, &pipeline, PATIENCE).await.unwrap(), [answer(2, "f"), answer(2, "g")]);
}

#[tokio::test]
async fn behind_a_connection_that_ended_the_text_may_be_another_and_the_next_question_finds_a_new_one() {
    let (links, address) = (links(), node().await);
    assert!(!links.has_seen_text(address, 7).await);
    ask(&links, address, "a").await.unwrap();
    links.saw_text(address, 7).await;
    assert!(links.has_seen_text(address, 7).await && !links.has_seen_text(address, 8).await);
    assert_eq!(ask(&links, address, LAST).await.unwrap(), answer(1, LAST));
    let noticed = async {
        while links.has_seen_text(address, 7).await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("it is noticed");
    assert_eq!(ask(&links, address, "b").await.unwrap(), answer(2, "b"));
    assert!(!links.has_seen_text(address, 7).await);
}

#[tokio::test]
async fn an_answer_that_did_not_come_in_time_is_waited_for_by_nobody_on_that_connection() {
    let (links, address) = (links(), node().await);
    ask(&links, address, "a").await.unwrap();
    let late = links.call(address, &question(SILENT), Duration::from_millis(30)).await.unwrap_err();
    assert!(matches!(late, LinkError::Deadline(at) if at == address) && !late.is_refusal(), "{late}");
    assert_eq!(ask(&links, address, "b").await.unwrap(), answer(2, "b"));
    // Whoever waited meanwhile finds a new one, too.
    let question = question(SILENT);
    let silent = links.call(address, &question, Duration::from_millis(30));
    let (silent, after) = tokio::join!(silent, ask(&links, address, "c"));
    assert!(silent.is_err());
    assert_eq!(after.unwrap(), answer(3, "c"));
}

#[tokio::test]
async fn nobody_who_listens_is_told_from_nobody_who_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = ask(&links(), address, "a").await.unwrap_err();
    assert!(error.is_connection_refused() && !error.is_refusal() && !error.is_loading(), "{error}");
}
