//! Asks managed brokers for their access control lists and changes them, over Kafka's own protocol: the client library cannot.
//!
//! A connection lives for one look. Any broker answers what its lists are, and passes changes on to the controller that writes them.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest, DescribeAclsResponse, RequestHeader, ResponseHeader,
        create_acls_request::AclCreation, delete_acls_request::DeleteAclsFilter,
    },
    protocol::{Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer},
};
use kith_crds::conditions::reason;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Security, Target, Trouble,
    rights::{self, Changes, Right},
};

/// Connecting to one broker.
const CONNECT: Duration = Duration::from_secs(5);
/// Everything that is asked of one broker.
const ASK: Duration = Duration::from_secs(10);
/// Of all three requests: every broker that can hold lists without ZooKeeper speaks it.
const VERSION: i16 = 2;
/// An answer, bytes. All entries of a ChatCluster take a few thousand.
const LARGEST: usize = 4 << 20;
/// Kafka's word for "any" in filters.
const ANY: i8 = 1;
/// The permission of an entry that allows something.
const ALLOW: i8 = 3;

#[derive(Debug, Error)]
enum AclError {
    #[error("setting up TLS: {0}")]
    Setup(String),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Deadline,
    #[error("an answer of {0} bytes")]
    Size(i32),
    #[error("an answer that cannot be read: {0}")]
    Protocol(String),
    #[error("{what}: {error}{}", .message.as_ref().map(|m| format!(": {m}")).unwrap_or_default())]
    Refused { what: &'static str, error: ResponseError, message: Option<String> },
}

impl AclError {
    /// Whether a broker has understood the question: then that says more than that another one is away.
    fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    fn trouble(&self, target: &Target) -> Trouble {
        let bootstrap = &target.bootstrap;
        match self {
            Self::Refused { error: ResponseError::SecurityDisabled, .. } => Trouble {
                reason: reason::RIGHTS_NOT_ENFORCED,
                message: format!(
                    "the brokers at {bootstrap} do not ask for rights yet: rights are written as soon as they have restarted with their new settings"
                ),
            },
            Self::Refused { error: ResponseError::ClusterAuthorizationFailed, .. } => Trouble {
                reason: reason::EVENT_LOG_UNAUTHORIZED,
                message: format!(
                    "the brokers at {bootstrap} do not let the operator manage rights ({self}): their setting super.users must name its certificate"
                ),
            },
            _ => Trouble {
                reason: reason::EVENT_LOG_UNREACHABLE,
                message: format!(
                    "no broker at {bootstrap} lets the operator see to rights ({self}): check that they run and have a controller"
                ),
            },
        }
    }
}

/// Makes the brokers' lists say what `wanted` says of those whose rights the operator decides.
pub(super) async fn ensure(target: &Target, wanted: &BTreeSet<Right>) -> Result<(), Trouble> {
    let tls = tls(&target.security).map_err(|error| error.trouble(target))?;
    let mut told: Option<AclError> = None;
    for address in target.bootstrap.split(',') {
        match at(address, &tls, wanted).await {
            Ok(changes) => {
                if changes != Changes::default() {
                    let (added, taken) = (changes.missing.len(), changes.surplus.len());
                    tracing::info!(broker = address, added, taken, "rights on the event log changed");
                }
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(broker = address, %error, "rights on the event log could not be looked at");
                if !told.as_ref().is_some_and(AclError::is_answer) {
                    told = Some(error);
                }
            }
        }
    }
    let error = told.unwrap_or_else(|| AclError::Setup("there is no broker".to_owned()));
    Err(error.trouble(target))
}

fn tls(security: &Security) -> Result<TlsConnector, AclError> {
    let setup = |error: &dyn std::fmt::Display| AclError::Setup(error.to_string());
    let (Some(ca), Some((cert, key))) = (&security.ca_pem, &security.client) else {
        return Err(setup(&"there is no certificate"));
    };
    let certificates = |pem: &str| {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        found.map_err(|e| setup(&e))
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).map_err(|e| setup(&e))?;
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| setup(&e))?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| setup(&e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(cert)?, key)
        .map_err(|e| setup(&e))?;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Looks at one broker's lists and changes what differs.
async fn at(address: &str, tls: &TlsConnector, wanted: &BTreeSet<Right>) -> Result<Changes, AclError> {
    let connected = timeout(CONNECT, async {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(|e| AclError::Setup(format!("{host}: {e}")))?;
        let stream = TcpStream::connect(address).await?;
        Ok::<_, AclError>(tls.connect(name, stream).await?)
    });
    let mut stream = connected.await.map_err(|_| AclError::Deadline)??;
    timeout(ASK, converge(&mut stream, wanted)).await.map_err(|_| AclError::Deadline)?
}

async fn converge<S>(stream: &mut S, wanted: &BTreeSet<Right>) -> Result<Changes, AclError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let everything = DescribeAclsRequest::default()
        .with_resource_type_filter(ANY)
        .with_resource_name_filter(None)
        .with_pattern_type_filter(ANY)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_operation(ANY)
        .with_permission_type(ANY);
    let answer = call(stream, 1, &everything).await?;
    accepted("asking for rights", answer.error_code, answer.error_message.as_ref())?;
    let changes = rights::changes(wanted, &allowed(&answer));
    // What is missing first: nobody is without a right that only changes its form.
    if !changes.missing.is_empty() {
        let creations = changes.missing.iter().map(creation).collect();
        let answer = call(stream, 2, &CreateAclsRequest::default().with_creations(creations)).await?;
        for result in &answer.results {
            accepted("adding a right", result.error_code, result.error_message.as_ref())?;
        }
    }
    if !changes.surplus.is_empty() {
        let filters = changes.surplus.iter().map(filter).collect();
        let answer = call(stream, 3, &DeleteAclsRequest::default().with_filters(filters)).await?;
        for result in &answer.filter_results {
            accepted("taking a right away", result.error_code, result.error_message.as_ref())?;
            for right in &result.matching_acls {
                accepted("taking a right away", right.error_code, right.error_message.as_ref())?;
            }
        }
    }
    Ok(changes)
}

fn accepted(what: &'static str, code: i16, message: Option<&StrBytes>) -> Result<(), AclError> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(AclError::Refused { what, error, message: message.map(ToString::to_string) }),
    }
}

/// The entries that allow something. What a person forbids besides is theirs.
fn allowed(answer: &DescribeAclsResponse) -> BTreeSet<Right> {
    let entries = answer.resources.iter().flat_map(|on| on.acls.iter().map(move |acl| (on, acl)));
    entries
        .filter(|(_, acl)| acl.permission_type == ALLOW)
        .map(|(on, acl)| Right {
            principal: acl.principal.to_string(),
            host: acl.host.to_string(),
            resource: on.resource_type,
            pattern: on.pattern_type,
            name: on.resource_name.to_string(),
            operation: acl.operation,
        })
        .collect()
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn creation(right: &Right) -> AclCreation {
    AclCreation::default()
        .with_resource_type(right.resource)
        .with_resource_name(text(&right.name))
        .with_resource_pattern_type(right.pattern)
        .with_principal(text(&right.principal))
        .with_host(text(&right.host))
        .with_operation(right.operation)
        .with_permission_type(ALLOW)
}

/// That entry and no other.
fn filter(right: &Right) -> DeleteAclsFilter {
    DeleteAclsFilter::default()
        .with_resource_type_filter(right.resource)
        .with_resource_name_filter(Some(text(&right.name)))
        .with_pattern_type_filter(right.pattern)
        .with_principal_filter(Some(text(&right.principal)))
        .with_host_filter(Some(text(&right.host)))
        .with_operation(right.operation)
        .with_permission_type(ALLOW)
}

/// One request and its answer.
async fn call<S, R>(stream: &mut S, number: i32, request: &R) -> Result<R::Response, AclError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Request,
{
    let protocol = |error: &dyn std::fmt::Display| AclError::Protocol(error.to_string());
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(VERSION)
        .with_correlation_id(number)
        .with_client_id(Some(StrBytes::from_static_str("kith-operator")));
    let mut body = BytesMut::new();
    encode_request_header_into_buffer(&mut body, &header).map_err(|e| protocol(&e))?;
    request.encode(&mut body, VERSION).map_err(|e| protocol(&e))?;
    let mut frame = BytesMut::with_capacity(body.len() + 4);
    frame.put_i32(i32::try_from(body.len()).map_err(|e| protocol(&e))?);
    frame.put(body);
    stream.write_all(&frame).await?;
    stream.flush().await?;

    let length = stream.read_i32().await?;
    let size = usize::try_from(length).ok().filter(|size| *size <= LARGEST).ok_or(AclError::Size(length))?;
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer).await?;
    let mut answer = Bytes::from(answer);
    let header = ResponseHeader::decode(&mut answer, R::Response::header_version(VERSION)).map_err(|e| protocol(&e))?;
    if header.correlation_id != number {
        return Err(protocol(&format!("it is for request {}, {number} was sent", header.correlation_id)));
    }
    R::Response::decode(&mut answer, VERSION).map_err(|e| protocol(&e))
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{
        messages::{
            ApiKey, CreateAclsResponse, DeleteAclsResponse,
            create_acls_response::AclCreationResult,
            delete_acls_response::DeleteAclsFilterResult,
            describe_acls_response::{AclDescription, DescribeAclsResource},
        },
        protocol::{Encodable, decode_request_header_from_buffer},
    };
    use tokio::io::DuplexStream;

    use super::*;
    use crate::eventlog::rights::{LITERAL, READ, TOPIC, WRITE};

    /// Brokers with access control lists, or without.
    struct Broker {
        lists: BTreeSet<Right>,
        refusal: Option<ResponseError>,
        asked: Vec<ApiKey>,
    }

    impl Broker {
        fn new(lists: &[Right]) -> Self {
            Self { lists: lists.iter().cloned().collect(), refusal: None, asked: Vec::new() }
        }

        /// Answers until the connection ends.
        async fn serve(&mut self, mut stream: DuplexStream) {
            while let Ok(length) = stream.read_i32().await {
                let mut request = vec![0; length as usize];
                stream.read_exact(&mut request).await.unwrap();
                let answer = self.answer(Bytes::from(request));
                stream.write_i32(answer.len() as i32).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }

        fn answer(&mut self, mut request: Bytes) -> BytesMut {
            let header = decode_request_header_from_buffer(&mut request).unwrap();
            let key = ApiKey::try_from(header.request_api_key).unwrap();
            self.asked.push(key);
            let code = self.refusal.map_or(0, |refusal| refusal.code());
            let mut answer = BytesMut::new();
            ResponseHeader::default()
                .with_correlation_id(header.correlation_id)
                .encode(&mut answer, key.response_header_version(VERSION))
                .unwrap();
            match key {
                ApiKey::DescribeAcls => {
                    DescribeAclsRequest::decode(&mut request, VERSION).unwrap();
                    let resources = self.lists.iter().map(described).collect();
                    let all = DescribeAclsResponse::default().with_error_code(code).with_resources(resources);
                    all.encode(&mut answer, VERSION).unwrap();
                }
                ApiKey::CreateAcls => {
                    let new = CreateAclsRequest::decode(&mut request, VERSION).unwrap().creations;
                    let results = new.iter().map(|_| AclCreationResult::default().with_error_code(code)).collect();
                    self.lists.extend(new.into_iter().map(|acl| {
                        assert_eq!(acl.permission_type, ALLOW);
                        Right {
                            principal: acl.principal.to_string(),
                            host: acl.host.to_string(),
                            resource: acl.resource_type,
                            pattern: acl.resource_pattern_type,
                            name: acl.resource_name.to_string(),
                            operation: acl.operation,
                        }
                    }));
                    CreateAclsResponse::default().with_results(results).encode(&mut answer, VERSION).unwrap();
                }
                ApiKey::DeleteAcls => {
                    let filters = DeleteAclsRequest::decode(&mut request, VERSION).unwrap().filters;
                    self.lists.retain(|right| !filters.contains(&filter(right)));
                    let results = filters.iter().map(|_| DeleteAclsFilterResult::default()).collect();
                    DeleteAclsResponse::default().with_filter_results(results).encode(&mut answer, VERSION).unwrap();
                }
                other => panic!("{other:?}"),
            }
            answer
        }

        /// One look at it.
        async fn look(&mut self, wanted: &BTreeSet<Right>) -> Result<Changes, AclError> {
            let (mut ours, theirs) = tokio::io::duplex(1 << 16);
            let look = async move { converge(&mut ours, wanted).await };
            tokio::join!(look, self.serve(theirs)).0
        }
    }

    fn described(right: &Right) -> DescribeAclsResource {
        let acl = AclDescription::default()
            .with_principal(text(&right.principal))
            .with_host(text(&right.host))
            .with_operation(right.operation)
            .with_permission_type(ALLOW);
        DescribeAclsResource::default()
            .with_resource_type(right.resource)
            .with_resource_name(text(&right.name))
            .with_pattern_type(right.pattern)
            .with_acls(vec![acl])
    }

    fn right(principal: &str, operation: i8) -> Right {
        Right {
            principal: principal.to_owned(),
            host: "*".to_owned(),
            resource: TOPIC,
            pattern: LITERAL,
            name: "demo.events".to_owned(),
            operation,
        }
    }

    #[tokio::test]
    async fn brokers_end_up_with_the_rights_of_the_table_and_are_left_alone_then() {
        let wanted: BTreeSet<Right> = [right("User:service-storage", WRITE), right("User:line-default", READ)].into();
        let auditor = right("User:CN=auditor", READ);
        let mut broker = Broker::new(&[right("User:line-default", WRITE), auditor.clone()]);
        let changes = broker.look(&wanted).await.unwrap();
        assert_eq!((changes.missing.len(), changes.surplus.len()), (2, 1));
        assert_eq!(broker.lists, wanted.iter().cloned().chain([auditor]).collect());
        assert_eq!(broker.asked, [ApiKey::DescribeAcls, ApiKey::CreateAcls, ApiKey::DeleteAcls]);
        assert_eq!(broker.look(&wanted).await.unwrap(), Changes::default());
        assert_eq!(broker.asked.len(), 4, "it was only asked");
    }

    #[tokio::test]
    async fn brokers_that_do_not_ask_for_rights_are_named_so() {
        let target = Target::plain("kafka:9093".to_owned());
        let mut broker = Broker::new(&[]);
        for (refusal, word) in [
            (ResponseError::SecurityDisabled, reason::RIGHTS_NOT_ENFORCED),
            (ResponseError::ClusterAuthorizationFailed, reason::EVENT_LOG_UNAUTHORIZED),
        ] {
            broker.refusal = Some(refusal);
            let error = broker.look(&BTreeSet::new()).await.unwrap_err();
            assert_eq!(error.trouble(&target).reason, word, "{error}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_or_is_no_answer_ends_the_look() {
        for (bytes, wanted) in [
            (&i32::MAX.to_be_bytes()[..], "an answer of 2147483647 bytes"),
            (&(-1_i32).to_be_bytes()[..], "an answer of -1 bytes"),
            (&[0, 0, 0, 5, 0, 0, 0, 9, 0][..], "an answer that cannot be read: it is for request 9, 1 was sent"),
            (&[0, 0, 0, 2, 0, 0][..], "an answer that cannot be read"),
        ] {
            let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
            theirs.write_all(bytes).await.unwrap();
            let error = converge(&mut ours, &BTreeSet::new()).await.unwrap_err();
            assert!(error.to_string().starts_with(wanted), "{error}");
        }
    }
}
