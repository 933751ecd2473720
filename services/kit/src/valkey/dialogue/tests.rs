//! A node that answers by a script: whole, in pieces, with refusals, too late, too much, and not at all.

use std::{fs, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    config::Tls,
    tls::{self, ClientCerts},
    valkey::{COMPONENT, Connector},
};

/// One step of a node.
enum Step {
    /// Reads exactly this.
    Hears(Vec<u8>),
    /// Writes this.
    Says(Vec<u8>),
    /// Writes this, so many bytes at a time with a pause after each.
    Spells(Vec<u8>, usize),
    /// Waits until it is told to go on.
    Waits(Arc<Notify>),
    /// Hangs up.
    HangsUp,
}
use Step::{HangsUp, Hears, Says, Spells, Waits};

/// A node that takes one connection for each script.
async fn node(scripts: Vec<Vec<Step>>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = tokio::spawn(async move {
        let mut standing = Vec::new();
        for script in scripts {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            if play(&mut stream, script).await {
                standing.push(stream);
            }
        }
        std::future::pending::<()>().await;
    });
    (address, node)
}

/// Answers whether the connection stands at the end.
async fn play(stream: &mut TcpStream, script: Vec<Step>) -> bool {
    for step in script {
        match step {
            Hears(wanted) => {
                let mut heard = vec![0; wanted.len()];
                stream.read_exact(&mut heard).await.unwrap();
                assert_eq!(String::from_utf8_lossy(&heard), String::from_utf8_lossy(&wanted));
            }
            Says(bytes) => stream.write_all(&bytes).await.unwrap(),
            Spells(bytes, piece) => {
                for piece in bytes.chunks(piece) {
                    stream.write_all(piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Waits(told) => told.notified().await,
            HangsUp => return false,
        }
    }
    true
}

/// A certificate that its holder signed, for the name that nodes have in a ChatCluster `demo`.
fn certificate(folder: &Path) -> Tls {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec![format!("{COMPONENT}.demo.kith.internal")];
    let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
    let files = Tls { ca: folder.join("ca"), cert: folder.join("cert"), key: folder.join("key") };
    for (file, text) in [(&files.ca, &cert), (&files.cert, &cert), (&files.key, &key.serialize_pem())] {
        fs::write(file, text).unwrap();
    }
    files
}

#[tokio::test]
async fn it_is_the_same_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path());
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&files, ClientCerts::Optional).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let text = vec![b'x'; 33_000];
    let says = [b"+PONG\r\n".to_vec(), bulk(&text)];
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut heard = vec![0; ping().get_packed_command().len()];
        for answer in says {
            stream.read_exact(&mut heard).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
        stream.shutdown().await.unwrap();
    });
    let valkey = serde_json::from_value(serde_json::json!({"seeds": [address], "tls": true})).unwrap();
    let connector = Connector::with_parts(&valkey, Some(&files), "demo").unwrap();
    let mut dialogue = connector.dialogue(&address).await.unwrap();
    // Tickets for later handshakes come unasked, and are none of the node's words.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(dialogue.is_open());
    assert_eq!(dialogue.command(&ping()).await.unwrap(), Value::SimpleString("PONG".to_owned()));
    assert!(dialogue.is_open());
    assert_eq!(dialogue.command(&ping()).await.unwrap(), Value::BulkString(text));
    let noticed = async {
        while dialogue.is_open() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), noticed).await.expect("it is noticed");
}

fn connector(password_file: Option<std::path::PathBuf>, username: Option<&str>) -> Connector {
    Connector { username: username.map(str::to_owned), password_file, tls: None }
}

async fn plain(address: &str) -> Dialogue {
    connector(None, None).dialogue(address).await.unwrap()
}

fn ping() -> Cmd {
    redis::cmd("PING")
}

fn pinged() -> Step {
    Hears(ping().get_packed_command())
}

fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

#[tokio::test]
async fn answers_are_read_in_whatever_pieces_they_come() {
    let mut commands = Pipeline::new();
    commands.cmd("CLUSTER").arg("MYID");
    commands.cmd("CONFIG").arg("GET").arg("x");
    commands.cmd("DBSIZE");
    let answers = b"$3\r\nabc\r\n*2\r\n$1\r\nx\r\n$-1\r\n:17\r\n".to_vec();
    for piece in [1, 2, 7, answers.len()] {
        let hears = Hears(commands.get_packed_pipeline());
        let (address, node) =
            node(vec![vec![hears, Spells(answers.clone(), piece), pinged(), Says(b"+PONG\r\n".to_vec())]]).await;
        let mut dialogue = plain(&address).await;
        let values = dialogue.pipeline(&commands).await.unwrap();
        let pair = Value::Array(vec![Value::BulkString(b"x".to_vec()), Value::Nil]);
        assert_eq!(values, [Value::BulkString(b"abc".to_vec()), pair, Value::Int(17)]);
        assert!(dialogue.is_open());
        assert_eq!(dialogue.command(&ping()).await.unwrap(), Value::SimpleString("PONG".to_owned()));
        node.abort();
    }
}

#[tokio::test]
async fn a_refusal_is_a_value_in_a_pipeline_and_an_error_alone_and_the_connection_stands() {
    let mut commands = Pipeline::new();
    commands.cmd("A").cmd("B").cmd("C");
    let answers = b"+OK\r\n-LOADING not yet\r\n-ERR what\r\n".to_vec();
    let script =
        vec![Hears(commands.get_packed_pipeline()), Says(answers), pinged(), Says(b"-LOADING not yet\r\n".to_vec())];
    let (address, _node) = node(vec![script]).await;
    let mut dialogue = plain(&address).await;
    let values = dialogue.pipeline(&commands).await.unwrap();
    assert!(matches!(&values[..], [Value::Okay, Value::ServerError(_), Value::ServerError(_)]), "{values:?}");
    let error = dialogue.command(&ping()).await.unwrap_err();
    assert!(matches!(&error, ValkeyError::Redis { source, .. } if source.code() == Some("LOADING")), "{error}");
    assert!(dialogue.is_open());
    assert_eq!(dialogue.pipeline(&Pipeline::new()).await.unwrap(), []);
}

#[tokio::test]
async fn a_large_answer_is_read_whole() {
    let text: Vec<u8> = (0..33_000_u32).map(|n| (n % 251) as u8).collect();
    let mut commands = Pipeline::new();
    commands.cmd("A").cmd("B");
    let says = Says([bulk(&text), bulk(&text[1..])].concat());
    let (address, _node) = node(vec![vec![Hears(commands.get_packed_pipeline()), says]]).await;
    let mut dialogue = plain(&address).await;
    let values = dialogue.pipeline(&commands).await.unwrap();
    assert_eq!(values, [Value::BulkString(text.clone()), Value::BulkString(text[1..].to_vec())]);
    assert!(dialogue.is_open());
}

#[tokio::test]
async fn a_question_that_was_given_up_closes_the_connection_and_its_answer_is_nobodys() {
    let half = || vec![pinged(), Says(b"+PO".to_vec())];
    let (address, _node) = node(vec![half(), vec![pinged(), Says(b"+PONG\r\n".to_vec())]]).await;
    let mut dialogue = plain(&address).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), dialogue.command(&ping())).await.is_err());
    assert!(!dialogue.is_open());
    let error = dialogue.command(&ping()).await.unwrap_err();
    assert!(matches!(&error, ValkeyError::Redis { source, .. } if source.code().is_none()), "no refusal: {error}");
    assert!(!dialogue.is_open());
    assert_eq!(plain(&address).await.command(&ping()).await.unwrap(), Value::SimpleString("PONG".to_owned()));
}

#[tokio::test]
async fn what_ends_amid_an_answer_or_makes_no_sense_or_is_too_much_closes_the_connection() {
    for said in ["$10\r\nabc", "", "?\r\n", ":x\r\n", "+PONG\r\n+PONG\r\n"] {
        let (address, _node) = node(vec![vec![pinged(), Says(said.as_bytes().to_vec()), HangsUp]]).await;
        let mut dialogue = plain(&address).await;
        let error = dialogue.command(&ping()).await.unwrap_err();
        assert!(matches!(&error, ValkeyError::Redis { source, .. } if source.code().is_none()), "{said:?}: {error}");
        assert!(!dialogue.is_open(), "{said:?}");
    }
}

#[tokio::test]
async fn a_node_that_hung_up_or_speaks_unasked_is_noticed_before_the_next_question() {
    let pong = || Says(b"+PONG\r\n".to_vec());
    for unasked in [HangsUp, Says(b"+late\r\n".to_vec())] {
        let told = Arc::new(Notify::new());
        let (address, _node) = node(vec![vec![pinged(), pong(), Waits(told.clone()), unasked]]).await;
        let mut dialogue = plain(&address).await;
        dialogue.command(&ping()).await.unwrap();
        assert!(dialogue.is_open());
        told.notify_one();
        let noticed = async {
            while dialogue.is_open() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), noticed).await.expect("it is noticed");
    }
}

#[tokio::test]
async fn the_login_is_given_first_and_a_refused_one_is_no_refusal_of_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "secret\n").unwrap();
    let named = Hears(b"*3\r\n$4\r\nAUTH\r\n$8\r\noperator\r\n$6\r\nsecret\r\n".to_vec());
    let unnamed = Hears(b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n".to_vec());
    let refused = Says(b"-WRONGPASS invalid secret\r\n".to_vec());
    let accepted = || Says(b"+OK\r\n".to_vec());
    let pong = Says(b"+PONG\r\n".to_vec());
    let (address, _node) = node(vec![vec![named, accepted(), pinged(), pong], vec![unnamed, refused]]).await;
    let mut dialogue = connector(Some(file.clone()), Some("operator")).dialogue(&address).await.unwrap();
    assert_eq!(dialogue.address(), address);
    assert_eq!(dialogue.command(&ping()).await.unwrap(), Value::SimpleString("PONG".to_owned()));
    let error = connector(Some(file), None).dialogue(&address).await.err().unwrap();
    assert!(matches!(&error, ValkeyError::Redis { source, .. } if source.code().is_none()), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    let missing = connector(Some(folder.path().join("none")), None).dialogue(&address).await.err().unwrap();
    assert!(matches!(missing, ValkeyError::Password { .. }), "{missing}");
}

#[tokio::test]
async fn where_nobody_listens_the_connection_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = connector(None, None).dialogue(&address).await.err().unwrap();
    let refused = |source: &io::Error| source.kind() == io::ErrorKind::ConnectionRefused;
    assert!(matches!(&error, ValkeyError::Connect { source, .. } if refused(source)), "{error}");
}
