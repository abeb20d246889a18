//! The OpenAPI 3.1 document, made from the table of routes.

use hyper::Method;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::route::{JSON, ROUTES, Response, Route};
use crate::schema::Schema;

pub(crate) fn document() -> Value {
    let mut components = Map::new();
    let error = ApiError::schema(&mut components);
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &error, &mut components);
        let path = paths.entry(route.path).or_insert_with(|| Value::Object(Map::new()));
        if let Some(path) = path.as_object_mut() {
            path.insert(route.method.as_str().to_ascii_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Crossover admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Times are milliseconds since the Unix epoch. Mutations name the revision they expect and are refused with 409 when it has changed or another operation runs.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, error: &Value, components: &mut Map<String, Value>) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    if let Some((_, rest)) = route.path.split_once('{') {
        let name = rest.trim_end_matches('}');
        parameters
            .push(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    }
    for parameter in route.query {
        parameters.push(json!({
            "name": parameter.name,
            "in": "query",
            "required": parameter.required,
            "description": parameter.doc,
            "schema": { "type": parameter.kind },
        }));
    }
    let (status, media_type, schema) = match &route.response {
        Response::Json(status, schema) => (status.as_u16(), JSON, schema(components)),
        Response::Text(media_type) => (200, *media_type, json!({ "type": "string" })),
    };
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            status.to_string(): { "description": "Success.", "content": { media_type: { "schema": schema } } },
            "default": { "description": "Refused or failed.", "content": { JSON: { "schema": error } } },
        },
        "security": if route.open { json!([]) } else { json!([{}, { "token": [] }]) },
    });
    if let (Some(request), Some(operation)) = (route.request, operation.as_object_mut()) {
        let schema = request(components);
        operation.insert(
            "requestBody".to_owned(),
            json!({ "required": route.method == Method::POST, "content": { JSON: { "schema": schema } } }),
        );
    }
    operation
}
