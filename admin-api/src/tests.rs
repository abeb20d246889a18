//! The API over a real loopback socket, with a backend that remembers what it was asked.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::model::Event;
use crate::route::ROUTES;
use crate::{Backend, ServerOptions, serve};
use fake::Fake;

const DEADLINE: Duration = Duration::from_secs(10);

struct Server {
    backend: Arc<Fake>,
    address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(options: ServerOptions) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address").to_string();
    let backend = Arc::new(Fake::default());
    let shared: Arc<dyn Backend> = backend.clone();
    let task = tokio::spawn(serve(listener, shared, options, std::future::pending()));
    Server { backend, address, task }
}

impl Server {
    /// Sends bytes as they are and reads to the end: status and body.
    async fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        // The server may refuse and close before everything is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ =
            tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
        let answer = String::from_utf8(answer).expect("text");
        let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let host =
            if headers.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        let (status, body) = self.raw(&request).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("POST", path, "Content-Type: application/json\r\n", &body.to_string()).await
    }
}

#[tokio::test]
async fn every_get_answers() {
    let server = start(ServerOptions::default()).await;
    for path in [
        "/live",
        "/v1/status",
        "/v1/clusters",
        "/v1/topics",
        "/v1/routes",
        "/v1/groups",
        "/v1/transactions",
        "/v1/ledger?since=3",
    ] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    let (status, health) = server.get("/ready").await;
    assert_eq!((status, &health["reasons"][0]), (503, &json!("the fake is never ready")));
    assert_eq!(server.get("/metrics").await, (200, json!("up 1\n")));
    assert_eq!(server.get("/v1/ledger?since=3").await.1["next"], json!(3));
    assert_eq!(server.get("/v1/operations/a%20b").await.1["id"], json!("a b"));
    let (status, translation) = server.get("/v1/translate?topic=t&partition=2&offset=7&side=target").await;
    assert_eq!((status, &translation["native_offset"]), (200, &json!(7)));
}

#[tokio::test]
async fn wrong_questions_are_refused_with_a_remedy() {
    let server = start(ServerOptions::default()).await;
    for (path, wanted) in [
        ("/v1/nothing", 404),
        ("/v1/operations/", 404),
        ("/v1/cutover", 405),
        ("/v1/ledger?since=x", 400),
        ("/v1/ledger?sinse=1", 400),
        ("/v1/translate?topic=t&partition=0", 400),
        ("/v1/translate?topic=t&partition=-1&offset=0", 400),
        ("/v1/translate?topic=t&partition=0&offset=0&side=left", 400),
        ("/v1/translate?topic=%zz&partition=0&offset=0", 400),
    ] {
        let (status, body) = server.get(path).await;
        assert_eq!(status, wanted, "{path}: {body}");
        for field in ["code", "message", "remedy"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{path}: {field}");
        }
    }
}

#[tokio::test]
async fn a_mutation_names_the_revision_it_expects() {
    let server = start(ServerOptions::default()).await;
    let topics = json!({ "topics": ["orders"] });
    let (status, body) = server.post("/v1/cutover", topics.clone()).await;
    assert_eq!((status, &body["code"]), (428, &json!("revision_missing")));
    let (status, body) =
        server.post("/v1/cutover", json!({ "topics": ["orders"], "expected_revision": 6 })).await;
    assert_eq!((status, &body["code"]), (409, &json!("revision_mismatch")));
    let header = "Content-Type: application/json\r\nIf-Match: \"7\"\r\n";
    let (status, body) = server.send("POST", "/v1/cutover", header, &topics.to_string()).await;
    assert_eq!((status, &body["kind"], &body["state"]), (202, &json!("cutover"), &json!("PREPARE")));
    let both = json!({ "topics": ["orders"], "expected_revision": 8 }).to_string();
    assert_eq!(server.send("POST", "/v1/cutover", header, &both).await.0, 400);
}

#[tokio::test]
async fn a_second_operation_is_refused_and_an_abort_ends_the_first() {
    let server = start(ServerOptions::default()).await;
    let request = json!({ "topics": ["orders"], "expected_revision": 7 });
    assert_eq!(server.post("/v1/rollback", request.clone()).await.0, 202);
    let (status, body) = server.post("/v1/cutover", request.clone()).await;
    assert_eq!((status, &body["code"]), (409, &json!("operation_running")));
    let group = json!({ "group": "g", "to": "target", "expected_revision": 7 });
    assert_eq!(server.post("/v1/groups/move", group.clone()).await.0, 409);
    let (status, body) = server.post("/v1/abort", json!({})).await;
    assert_eq!((status, &body["state"]), (200, &json!("ABORTED")));
    assert_eq!(server.post("/v1/groups/move", group).await.0, 202);
}

#[tokio::test]
async fn bodies_are_strict_and_bounded() {
    let server = start(ServerOptions::default()).await;
    for body in [
        json!({ "topics": ["a"], "forse": true, "expected_revision": 7 }),
        json!({ "topics": [], "expected_revision": 7 }),
        json!({ "topics": ["a", "a"], "expected_revision": 7 }),
        json!([1]),
    ] {
        assert_eq!(server.post("/v1/cutover", body.clone()).await.0, 400, "{body}");
    }
    assert_eq!(server.send("POST", "/v1/plan", "", r#"{"topics":["a"]}"#).await.0, 415);
    let (status, plan) = server.post("/v1/plan", json!({ "topics": ["a"] })).await;
    assert_eq!((status, &plan["to"]), (200, &json!("target")));
    let large = json!({ "topics": ["x".repeat(65 * 1024)] });
    assert_eq!(server.post("/v1/plan", large).await.0, 413);
    assert!(
        server.backend.log().iter().all(|call| call == "plan"),
        "refused requests never reach the backend"
    );
}

#[tokio::test]
async fn rebound_names_and_foreign_pages_are_refused() {
    let server = start(ServerOptions::default()).await;
    for (headers, wanted) in [
        ("Host: evil.example\r\n", 403),
        ("Host: evil.example:8080\r\n", 403),
        ("Host: localhost:8080\r\n", 200),
        ("Host: [::1]:8080\r\n", 200),
        ("Host: localhost:8080\r\nOrigin: http://evil.example\r\n", 403),
        ("Host: localhost:8080\r\nOrigin: null\r\n", 403),
        ("Host: localhost:8080\r\nOrigin: http://localhost:8080\r\n", 200),
    ] {
        assert_eq!(server.send("GET", "/v1/status", headers, "").await.0, wanted, "{headers}");
    }
}

#[tokio::test]
async fn r34_with_a_token_every_path_but_health_asks_for_it() {
    let server = start(ServerOptions { token: Some("s3cret".into()), ..ServerOptions::default() }).await;
    for (headers, wanted) in [
        ("", 401),
        ("Authorization: Bearer s3cre\r\n", 401),
        ("Authorization: Bearer s3cret2\r\n", 401),
        ("Authorization: Basic s3cret\r\n", 401),
        ("Authorization: Bearer s3cret\r\n", 200),
        ("Host: proxy.example\r\nAuthorization: bearer s3cret\r\n", 200),
    ] {
        assert_eq!(server.send("GET", "/v1/status", headers, "").await.0, wanted, "{headers}");
    }
    assert_eq!(server.get("/live").await.0, 200);
    assert_eq!(server.get("/v1/nothing").await.0, 401, "a stranger does not learn which paths exist");
}

#[tokio::test]
async fn slow_requests_and_surplus_connections_are_closed() {
    let options = ServerOptions {
        connections_max: 1,
        read_timeout: Duration::from_millis(2_000),
        ..ServerOptions::default()
    };
    let server = start(options).await;
    let mut slow = TcpStream::connect(&server.address).await.expect("connected");
    slow.write_all(b"GET /live HTTP/1.1\r\nHo").await.expect("written");
    // The first is accepted before the second: accept order is connect order.
    let mut surplus = TcpStream::connect(&server.address).await.expect("connected");
    let mut end = Vec::new();
    let read = tokio::time::timeout(Duration::from_millis(1_500), surplus.read_to_end(&mut end)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "the second connection is closed at once: {read:?}");
    let read = tokio::time::timeout(DEADLINE, slow.read_to_end(&mut end)).await;
    assert!(read.is_ok(), "the slow one is closed after its time");
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while server.get("/live").await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the place of a closed connection is free again");
    }
}

#[tokio::test]
async fn events_arrive_as_a_stream() {
    let server = start(ServerOptions::default()).await;
    let mut stream = TcpStream::connect(&server.address).await.expect("connected");
    let request = format!("GET /v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut text = read_until(&mut stream, ": connected").await;
    assert!(text.contains("text/event-stream"), "{text}");
    let event = Event {
        at_ms: 1,
        kind: "step".into(),
        topic: Some("orders".into()),
        text: "FENCE".into(),
        fields: serde_json::Map::new(),
    };
    server.backend.events.send(event).expect("a reader");
    text = read_until(&mut stream, "\"topic\":\"orders\"").await;
    assert!(text.contains("event: step\ndata: {"), "{text}");
}

async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut chunk = [0; 1024];
    while !text.contains(wanted) {
        let read =
            tokio::time::timeout(DEADLINE, stream.read(&mut chunk)).await.expect("in time").expect("read");
        assert!(read > 0, "the stream ended before {wanted:?}: {text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..read]));
    }
    text
}

#[tokio::test]
async fn the_openapi_document_holds_exactly_the_routes() {
    let server = start(ServerOptions::default()).await;
    let (status, document) = server.get("/openapi.json").await;
    assert_eq!(status, 200);
    let mut described: Vec<String> = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        described
            .extend(operations.as_object().expect("methods").keys().map(|method| format!("{method} {path}")));
    }
    let mut served: Vec<String> = ROUTES
        .iter()
        .map(|route| format!("{} {}", route.method.as_str().to_lowercase(), route.path))
        .collect();
    described.sort();
    served.sort();
    assert_eq!(described, served);
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap_or_default();
        assert!(schemas.get(name).is_some_and(Value::is_object), "{name} is described");
    }
}

#[tokio::test]
async fn answers_have_every_field_their_schema_requires() {
    let server = start(ServerOptions::default()).await;
    let document = crate::openapi_document();
    for (path, schema) in
        [("/v1/status", "Status"), ("/v1/operations/1", "OperationView"), ("/live", "Health")]
    {
        let (_, body) = server.get(path).await;
        let schema = &document["components"]["schemas"][schema];
        for field in schema["required"].as_array().expect("required") {
            assert!(body.get(field.as_str().expect("name")).is_some(), "{path} has {field}");
        }
        for field in body.as_object().expect("object").keys() {
            assert!(schema["properties"].get(field).is_some(), "{path}: {field} is described");
        }
    }
}
