//! What a request holds, or the problem that names the field at fault.

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use kith_contract::json::Object;
use kith_rpc::{
    error::{Error, reason},
    http::problem_with,
};
use serde::de::DeserializeOwned;

/// The largest request body: content of 64 KiB, escaped, and the fields around it.
pub(crate) const MAX_BODY_BYTES: usize = 512 << 10;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// Why a body was refused; carries statuses that no gRPC code has.
pub(crate) enum BodyError {
    Media,
    TooLarge,
    Invalid(Error),
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        match self {
            Self::Media => {
                problem_with(&Error::invalid("content-type: send application/json"), StatusCode::UNSUPPORTED_MEDIA_TYPE)
            }
            Self::TooLarge => problem_with(
                &Error::invalid(format!("body: more than {MAX_BODY_BYTES} bytes")).with_reason(reason::TOO_LARGE),
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Self::Invalid(error) => error.into_response(),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = BodyError;

    async fn from_request(request: Request, state: &S) -> Result<Self, BodyError> {
        if !is_json(request.headers()) {
            return Err(BodyError::Media);
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => BodyError::TooLarge,
            _ => BodyError::Invalid(Error::invalid("body: it broke off")),
        })?;
        parse(&bytes).map(Self).map_err(BodyError::Invalid)
    }
}

/// Reads a JSON object; an error names the path of the field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        // Where the text itself breaks off there is no field to name.
        let path = if path == "." || path == "?" { "body".to_owned() } else { path };
        Error::invalid(format!("{path}: {}", error.into_inner()))
    })?;
    deserializer.end().map_err(|error| Error::invalid(format!("body: {error}")))?;
    Ok(value)
}

/// Query parameters.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Query::<T>::try_from_uri(&parts.uri).map(|Query(value)| Self(value)).map_err(|rejection| {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            Error::invalid(format!("query: {text}"))
        })
    }
}

/// Path parameters.
pub(crate) struct Segments<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Invalid URL: ").unwrap_or(&text).to_owned();
                Err(Error::invalid(format!("path: {text}")))
            }
        }
    }
}

/// A page size within its bound.
pub(crate) fn limit(given: Option<u32>, max: u32) -> Result<u32, Error> {
    match given {
        None => Ok(max.min(50)),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => Err(Error::invalid(format!("limit: {limit}, give 1 to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    use kith_contract::json::U64;
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Ack {
        #[allow(dead_code)]
        seq: U64,
    }
    #[derive(Debug, Deserialize)]
    struct Sample {
        content: Box<RawValue>,
        #[allow(dead_code)]
        acks: Vec<Object<Ack>>,
    }

    #[test]
    fn raw_content_passes_and_a_wrong_field_is_named_by_its_path() {
        let sample: Sample = parse(br#"{"content":{"a": 1.50},"acks":[{"seq":"1"}]}"#).unwrap();
        assert_eq!(sample.content.get(), r#"{"a": 1.50}"#);
        let error = parse::<Sample>(br#"{"content":{},"acks":[{"seq":"1"},{"seq":"x"}]}"#).unwrap_err();
        assert!(error.detail.starts_with("acks[1].seq:"), "{error}");
        assert!(parse::<Sample>(br#"{"acks":[]}"#).unwrap_err().detail.contains("content"));
        assert!(parse::<Sample>(b"{").unwrap_err().detail.starts_with("body:"));
        assert!(parse::<Sample>(br#"{"content":{},"acks":[]} x"#).is_err());
    }

    #[test]
    fn an_array_is_no_object_and_its_place_is_named() {
        let error = parse::<Ack>(br#"["1"]"#).unwrap_err();
        assert!(error.detail.starts_with("body: "), "{error}");
        let error = parse::<Sample>(br#"{"content":{},"acks":[{"seq":"1"},["1"]]}"#).unwrap_err();
        assert!(error.detail.starts_with("acks[1]: "), "{error}");
    }

    #[test]
    fn limits_outside_their_bound_are_refused() {
        assert_eq!(limit(None, 200).unwrap(), 50);
        assert_eq!(limit(Some(200), 200).unwrap(), 200);
        assert!(limit(Some(0), 200).is_err());
        assert!(limit(Some(201), 200).is_err());
    }
}
