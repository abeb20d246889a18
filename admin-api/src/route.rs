//! A path of the API: what it takes, what it answers, who serves it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::broadcast;

use crate::backend::Backend;
use crate::commands;
use crate::error::{ApiError, ErrorCode};
use crate::model::Event;

pub(crate) type Handler = fn(Call) -> Pin<Box<dyn Future<Output = Result<Answer, ApiError>> + Send>>;
pub(crate) type SchemaOf = fn(&mut Map<String, Value>) -> Value;

pub(crate) struct Route {
    pub(crate) method: Method,
    /// A segment in braces matches one segment of a request.
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) query: &'static [Parameter],
    pub(crate) request: Option<SchemaOf>,
    pub(crate) response: Response,
    /// Served without a token: health probes only.
    pub(crate) open: bool,
    pub(crate) handler: Handler,
}

pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) required: bool,
    /// JSON type.
    pub(crate) kind: &'static str,
    pub(crate) doc: &'static str,
}

pub(crate) enum Response {
    Json(StatusCode, SchemaOf),
    /// With this media type.
    Text(&'static str),
}

/// Every path; the OpenAPI document is made from it.
pub(crate) const ROUTES: &[Route] = &[
    commands::live::ROUTE,
    commands::ready::ROUTE,
    commands::metrics::ROUTE,
    commands::openapi::ROUTE,
    commands::status::ROUTE,
    commands::clusters::ROUTE,
    commands::topics::ROUTE,
    commands::routes::ROUTE,
    commands::groups::ROUTE,
    commands::ledger::ROUTE,
    commands::operation::ROUTE,
    commands::translate::ROUTE,
    commands::events::ROUTE,
    commands::plan::ROUTE,
    commands::cutover::ROUTE,
    commands::rollback::ROUTE,
    commands::abort::ROUTE,
    commands::group_move::ROUTE,
    commands::transactions::ROUTE,
    commands::transaction_abort::ROUTE,
];

/// One request, after the guards.
pub(crate) struct Call {
    pub(crate) backend: Arc<dyn Backend>,
    /// The segment that matched the braces.
    pub(crate) segment: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) if_match: Option<String>,
    pub(crate) body: Bytes,
}

pub(crate) enum Answer {
    Full(StatusCode, &'static str, Full<Bytes>),
    Events(broadcast::Receiver<Event>),
}

pub(crate) const JSON: &str = "application/json";

/// The route of a path, and the segment in its braces; `Err` says whether the path exists with another method.
pub(crate) fn find(method: &Method, path: &str) -> Result<(&'static Route, String), ErrorCode> {
    let mut known = false;
    for route in ROUTES {
        if let Some(segment) = matches(route.path, path) {
            if route.method == *method {
                return Ok((route, segment.to_owned()));
            }
            known = true;
        }
    }
    Err(if known { ErrorCode::MethodNotAllowed } else { ErrorCode::NotFound })
}

fn matches<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    match pattern.split_once('{') {
        None => (pattern == path).then_some(""),
        Some((prefix, _)) => {
            path.strip_prefix(prefix).filter(|segment| !segment.is_empty() && !segment.contains('/'))
        }
    }
}

impl Answer {
    pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Answer, ApiError> {
        let text = serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(Answer::Full(status, JSON, Full::new(Bytes::from(text))))
    }

    pub(crate) fn ok<T: Serialize>(value: &T) -> Result<Answer, ApiError> {
        Answer::json(StatusCode::OK, value)
    }

    pub(crate) fn text(media_type: &'static str, text: String) -> Answer {
        Answer::Full(StatusCode::OK, media_type, Full::new(Bytes::from(text)))
    }
}

impl Call {
    /// The body as JSON; an absent body reads as `{}`.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_request(format!("The body is not what is expected: {error}."), "see /openapi.json")
        })
    }

    /// The revision a mutation expects, from the body or the header.
    pub(crate) fn expected_revision(&self, in_body: Option<u64>) -> Result<u64, ApiError> {
        let remedy = "send the revision of /v1/status as `expected_revision` or `If-Match`";
        let in_header = match self.if_match.as_deref() {
            None => None,
            Some(text) => Some(text.trim().trim_matches('"').parse::<u64>().map_err(|_| {
                ApiError::bad_request(format!("If-Match is \"{text}\", which is no revision."), remedy)
            })?),
        };
        match (in_body, in_header) {
            (Some(body), Some(header)) if body != header => Err(ApiError::bad_request(
                format!("The body expects revision {body}, the header If-Match {header}."),
                "send one of them",
            )),
            (None, None) => {
                Err(ApiError::new(ErrorCode::RevisionMissing, "The request names no revision.", remedy))
            }
            (body, header) => Ok(body.or(header).unwrap_or_default()),
        }
    }

    /// A query parameter; given twice is an error.
    pub(crate) fn parameter(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => {
                Err(ApiError::bad_request(format!("The parameter `{name}` is given twice."), "give it once"))
            }
            (value, None) => Ok(value),
        }
    }

    pub(crate) fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.parameter(name)?.filter(|value| !value.is_empty()).ok_or_else(|| {
            ApiError::bad_request(format!("The parameter `{name}` is missing."), "see /openapi.json")
        })
    }
}

/// Topics of a mutation or plan: at least one, none twice.
pub(crate) fn check_topics(topics: &[String]) -> Result<(), ApiError> {
    if topics.is_empty() || topics.iter().any(String::is_empty) {
        return Err(ApiError::bad_request("No topic is named.", "name at least one topic"));
    }
    for (index, topic) in topics.iter().enumerate() {
        if topics.iter().take(index).any(|earlier| earlier == topic) {
            return Err(ApiError::bad_request(format!("The topic {topic} is named twice."), "name it once"));
        }
    }
    Ok(())
}
