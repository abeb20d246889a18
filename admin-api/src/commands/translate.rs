//! `GET /v1/translate`

use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::model::{Side, TranslateQuery, Translation};
use crate::route::{Answer, Call, Parameter, Response, Route};
use crate::schema::Schema;

pub(crate) const ROUTE: Route = Route {
    method: Method::GET,
    path: "/v1/translate",
    summary: "An offset in the number space of clients and of the cluster that holds it.",
    query: &[
        Parameter { name: "topic", required: true, kind: "string", doc: "As clients name it." },
        Parameter { name: "partition", required: true, kind: "integer", doc: "From 0." },
        Parameter {
            name: "offset",
            required: true,
            kind: "integer",
            doc: "Virtual, or of the cluster named by `side`.",
        },
        Parameter {
            name: "side",
            required: false,
            kind: "string",
            doc: "`source` or `target`; the offset is virtual when absent.",
        },
    ],
    request: None,
    response: Response::Json(StatusCode::OK, <Translation as Schema>::schema),
    open: false,
    handler: |call| Box::pin(handle(call)),
};

async fn handle(call: Call) -> Result<Answer, ApiError> {
    let side = match call.parameter("side")? {
        None => None,
        Some(text) => Some(Side::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!("`side` is \"{text}\"."), "give `source` or `target`")
        })?),
    };
    let query = TranslateQuery {
        topic: call.required("topic")?.to_owned(),
        partition: number(&call, "partition", i64::from(i32::MAX))? as i32,
        offset: number(&call, "offset", i64::MAX)?,
        side,
    };
    Answer::ok(&call.backend.translate(query).await?)
}

fn number(call: &Call, name: &str, max: i64) -> Result<i64, ApiError> {
    let text = call.required(name)?;
    match text.parse::<i64>() {
        Ok(value) if (0..=max).contains(&value) => Ok(value),
        _ => {
            let remedy = format!("give a whole number from 0 to {max}");
            Err(ApiError::bad_request(format!("`{name}` is \"{text}\"."), remedy))
        }
    }
}
