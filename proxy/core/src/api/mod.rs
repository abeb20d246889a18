//! One file per Kafka API: what the proxy does with a request of that key.

pub mod common;
pub mod fetch;


pub mod group;
pub mod key;
pub mod produce;
mod relay;

use crate::route::Snapshot;
use crate::schema;
use crate::session::{CloseReason, Operation};
use crate::wire::header::RequestHeader;
use bytes::Bytes;

/// A request that was accepted.
pub struct Opened {
    pub operation: Box<dyn Operation>,
    /// acks=0: nothing is ever sent back.
    pub silent: bool,
}

impl Opened {
    fn new(operation: impl Operation + 'static) -> Opened {
        Opened { operation: Box::new(operation), silent: false }
    }
}

/// Validates a request and makes its operation.
///
/// # Errors
/// What a broker would close the connection for.
pub fn open(header: &RequestHeader, frame: &Bytes, snapshot: &Snapshot) -> Result<Opened, CloseReason> {
    let (api_key, version) = (header.api_key, header.api_version);
    let message = schema::request(api_key)
        .filter(|_| snapshot.advertised.contains(api_key, version))
        .ok_or_else(|| CloseReason::BadRequest(format!("API key {api_key} version {version} is not offered")))?;
    let body = schema::decode(message, version, &frame.slice(header.body_offset..))
        .map_err(|error| CloseReason::BadRequest(format!("{} v{version}: {error}", message.name)))?;
    Ok(match api_key {
        key::PRODUCE => {
            let produce = produce::Produce::new(body);
            let silent = produce.is_silent();
            Opened { operation: Box::new(produce), silent }
        }

        _ => Opened::new(relay::Relay::new(body)),
    })
}
