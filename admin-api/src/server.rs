//! The HTTP server: connections, limits, dispatch.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, IF_MATCH, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::body::ResponseBody;
use crate::error::{ApiError, ErrorCode};
use crate::guard;
use crate::route::{self, Answer, Call, JSON};

/// Largest request body in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest head of a request in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// After an error of `accept` (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the server allows.
#[derive(Clone)]
pub struct ServerOptions {
    /// Asked of every request but `/live` and `/ready`.
    pub token: Option<String>,
    /// Connections at one time; further ones are closed at once.
    pub connections_max: usize,
    /// For the head of a request, idle time before it included, and again for its body.
    pub read_timeout: Duration,
    /// For the backend's answer.
    pub answer_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            token: None,
            connections_max: 64,
            read_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
        }
    }
}

/// Serves until `shutdown` is ready, then closes what is open.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    let permits = Arc::new(Semaphore::new(options.connections_max));
    let options = Arc::new(options);
    // Dropping the set at the end closes the connections, streams of events included.
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "The admin API cannot accept a connection.");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without a permit the stream is dropped, which closes it.
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            let (backend, options) = (Arc::clone(&backend), Arc::clone(&options));
            connections.spawn(async move {
                connection(stream, backend, options).await;
                drop(permit);
            });
        }
    }
}

async fn connection(stream: TcpStream, backend: Arc<dyn Backend>, options: Arc<ServerOptions>) {
    let read_timeout = options.read_timeout;
    let service = service_fn(move |request| {
        let (backend, options) = (Arc::clone(&backend), Arc::clone(&options));
        async move { Ok::<_, Infallible>(respond(request, backend, &options).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "An admin connection ended early.");
    }
}

async fn respond(
    request: Request<Incoming>,
    backend: Arc<dyn Backend>,
    options: &ServerOptions,
) -> Response<ResponseBody> {
    let answer = match answer(request, backend, options).await {
        Ok(answer) => answer,
        Err(error) => failure(&error),
    };
    let (status, media_type, body) = match answer {
        Answer::Full(status, media_type, body) => (status, media_type, ResponseBody::Full(body)),
        Answer::Events(events) => (StatusCode::OK, "text/event-stream", ResponseBody::events(events)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn failure(error: &ApiError) -> Answer {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Answer::json(status, error)
        .unwrap_or_else(|_| Answer::Full(status, JSON, Full::new(Bytes::from_static(b"{}"))))
}

async fn answer(
    request: Request<Incoming>,
    backend: Arc<dyn Backend>,
    options: &ServerOptions,
) -> Result<Answer, ApiError> {
    let found = route::find(request.method(), request.uri().path());
    // The guard comes first, so that a stranger does not learn which paths exist.
    let open = found.as_ref().is_ok_and(|(route, _)| route.open);
    guard::check(request.headers(), options.token.as_deref(), open)?;
    let (route, segment) = found.map_err(|code| {
        let message = format!("There is no {} {}.", request.method(), request.uri().path());
        ApiError::new(code, message, "see /openapi.json")
    })?;
    let query = parse_query(request.uri().query().unwrap_or_default())?;
    if let Some((name, _)) =
        query.iter().find(|(name, _)| !route.query.iter().any(|known| known.name == name))
    {
        return Err(ApiError::bad_request(format!("There is no parameter `{name}`."), "see /openapi.json"));
    }
    let if_match = request.headers().get(IF_MATCH).map(|value| value.to_str().unwrap_or("?").to_owned());
    let body = match *request.method() {
        Method::POST => read_body(request, options.read_timeout).await?,
        _ => Bytes::new(),
    };
    let call = Call { backend, segment: decode(&segment)?, query, if_match, body };
    match tokio::time::timeout(options.answer_timeout, (route.handler)(call)).await {
        Ok(answer) => answer,
        Err(_) => Err(ApiError::new(
            ErrorCode::Timeout,
            "Crossover did not answer in time; what was asked for may still happen.",
            "read /v1/status",
        )),
    }
}

/// The body of a mutation. Only JSON is taken: a browser sends that to another origin only after asking.
async fn read_body(request: Request<Incoming>, timeout: Duration) -> Result<Bytes, ApiError> {
    let media_type =
        request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(JSON) {
        let remedy = "send `Content-Type: application/json`";
        return Err(ApiError::new(ErrorCode::WrongMediaType, "The body is not declared as JSON.", remedy));
    }
    let collected =
        tokio::time::timeout(timeout, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("The body is larger than {BODY_BYTES_MAX} bytes.");
            Err(ApiError::new(ErrorCode::TooLarge, message, "name fewer topics in one request"))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("The body could not be read.", "send it again")),
        Err(_) => Err(ApiError::bad_request("The body did not arrive in time.", "send it again")),
    }
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(&value.replace('+', " "))?))
        })
        .collect()
}

/// Percent-decoding.
fn decode(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::bad_request("The address holds a wrong percent escape.", "escape it as UTF-8");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(bad()) };
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| bad())
}
