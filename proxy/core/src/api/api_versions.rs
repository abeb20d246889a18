//! ApiVersions (key 18): answered here, from what the proxy and both clusters share.
//!
//! Source: KIP-35, KIP-511 (an unsupported version is answered in version 0), KIP-584 (features).

use super::key;
use crate::error_code as code;
use crate::schema::{self, Struct};
use crate::session::{Answer, CloseReason, Cx, Operation, Step};
use crate::wire::header;

/// Features that go with APIs the proxy does not offer.
const HIDDEN_FEATURES: [&str; 3] = ["share.version", "streams.version", "kraft.version"];

/// An ApiVersions request; without a body when its version is not one the proxy knows.
pub(super) struct ApiVersions {
    request: Option<Struct>,
}

impl ApiVersions {
    #[must_use]
    pub(super) fn new(request: Struct) -> ApiVersions {
        ApiVersions { request: Some(request) }
    }

    #[must_use]
    pub(super) fn unsupported() -> ApiVersions {
        ApiVersions { request: None }
    }

    fn refuse_version(cx: &Cx<'_>) -> Step {
        let Some(message) = schema::response(key::API_VERSIONS) else {
            return Step::Close(CloseReason::Internal("no schema".to_owned()));
        };
        let mut response = Struct::new(message.fields);
        response.set("ErrorCode", code::UNSUPPORTED_VERSION);
        add_api(&mut response, key::API_VERSIONS, (message.versions.min, message.versions.max));
        match header::encode_response(message, 0, cx.header.correlation_id, &response) {
            Ok(frame) => Step::ReplyFrame(frame),
            Err(error) => Step::Close(CloseReason::Internal(error.to_string())),
        }
    }
}

impl Operation for ApiVersions {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let Some(request) = &self.request else { return ApiVersions::refuse_version(cx) };
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        if cx.header.api_version >= 3 {
            let (name, version) = (request.str("ClientSoftwareName"), request.str("ClientSoftwareVersion"));
            if !is_software_name(name) || !is_software_name(version) {
                response.set("ErrorCode", code::INVALID_REQUEST);
                return Step::Reply(response);
            }
            cx.core.client.software = name.to_owned();
            cx.core.client.software_version = version.to_owned();
        }
        for (api, range) in &cx.snapshot.advertised.0 {
            add_api(&mut response, *api, *range);
        }
        if cx.snapshot.advertised.range(key::API_VERSIONS).is_none()
            && let Some(message) = schema::request(key::API_VERSIONS)
        {
            add_api(&mut response, key::API_VERSIONS, (message.versions.min, message.versions.max));
        }
        add_features(cx, &mut response);
        Step::Reply(response)
    }

    fn on_answer(&mut self, _cx: &mut Cx<'_>, _part: u32, _answer: Answer) -> Step {
        Step::Pending
    }
}

/// As brokers check it: letters, digits, '-' and '.', neither of the last two at an end.
fn is_software_name(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let ends = [text.bytes().next(), text.bytes().next_back()];
    text.bytes().all(inside) && ends.iter().all(|b| b.is_some_and(|b| b.is_ascii_alphanumeric()))
}

fn add_api(response: &mut Struct, api: i16, (min, max): (i16, i16)) {
    let mut row = response.new_element("ApiKeys");
    row.set("ApiKey", api);
    row.set("MinVersion", min);
    row.set("MaxVersion", max);
    response.push("ApiKeys", row);
}

fn add_features(cx: &Cx<'_>, response: &mut Struct) {
    for (name, (min, max)) in cx.snapshot.features.iter() {
        let max = match name.as_str() {
            // Above 1, clients add partitions to transactions by producing to them (KIP-890).
            "transaction.version" => (*max).min(1),
            "group.version" if !cx.snapshot.advertised.contains(key::CONSUMER_GROUP_HEARTBEAT, 0) => 0,
            hidden if HIDDEN_FEATURES.contains(&hidden) => 0,
            _ => *max,
        };
        if max <= 0 || *min > max {
            continue;
        }
        let mut supported = response.new_element("SupportedFeatures");
        supported.set("Name", name);
        supported.set("MinVersion", *min);
        supported.set("MaxVersion", max);
        response.push("SupportedFeatures", supported);
        let mut finalized = response.new_element("FinalizedFeatures");
        finalized.set("Name", name);
        finalized.set("MinVersionLevel", *min);
        finalized.set("MaxVersionLevel", max);
        response.push("FinalizedFeatures", finalized);
    }
    let revision = i64::try_from(cx.snapshot.revision.0).unwrap_or(i64::MAX);
    response.set("FinalizedFeaturesEpoch", revision);
}
