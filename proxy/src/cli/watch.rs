//! `crossover watch`

use crossover_admin_api::model::Event;

use super::Outcome;
use super::client::Client;
use super::table::{clean, instant};

/// Prints events until the server ends or Ctrl-C.
pub(super) async fn watch(client: &Client, json: bool) -> anyhow::Result<Outcome> {
    let mut events = client.events().await?;
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            _ = tokio::signal::ctrl_c() => return Ok(Outcome::Done),
        };
        let Some((kind, data)) = next else {
            eprintln!("The stream of events has ended: Crossover has stopped or the connection was lost.");
            return Ok(Outcome::Failed);
        };
        if json {
            println!("{data}");
        } else if kind == "lagged" {
            println!("(some events were missed; `crossover ledger` has all changes of ownership)");
        } else if let Ok(event) = serde_json::from_str::<Event>(&data) {
            println!("{}", line(&event));
        }
    }
}

fn line(event: &Event) -> String {
    let topic = event.topic.as_deref().map(|topic| format!("{}: ", clean(topic))).unwrap_or_default();
    format!("{}  {:<10} {topic}{}", instant(event.at_ms), clean(&event.kind), clean(&event.text))
}
