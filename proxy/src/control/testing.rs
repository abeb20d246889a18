//! What tests of the control tasks begin with: a state of two clusters, without the clusters.

use super::publisher::snapshot as published;
use super::{Control, State};
use crate::runtime::Runtime;
use crate::store::testing::Disk;
use crate::store::{Restored, Store, StoredTopic};
use crossover_config::{Config, SMALLEST};
use crossover_core::ids::{ClusterSide, TopicId};
use crossover_core::node::{PartitionInfo, TopicInfo, Topology};
use crossover_core::route::{LinkMode, Snapshot};
use crossover_core::session::TopicChanges;
use crossover_core::timeline::Timeline;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn config() -> Config {
    // Nobody listens there.
    let text = SMALLEST.replace("127.0.0.1:19092", "127.0.0.1:1").replace("127.0.0.1:29092", "127.0.0.1:2");
    crossover_config::parse(&text, Path::new("crossover.toml")).expect("valid")
}

/// A cluster that answers and has these topics, of one partition each.
fn cluster(side: ClusterSide, topics: &[&str]) -> Arc<Topology> {
    let mut topology = Topology::unknown(side);
    topology.reachable = true;
    topology.cluster_id = side.to_string();
    for name in topics {
        let name: Arc<str> = Arc::from(*name);
        let partitions = vec![PartitionInfo { leader: 1, epoch: 0, replicas: vec![1], isr: vec![1] }];
        let info = TopicInfo { name: Arc::clone(&name), id: TopicId::ZERO, internal: false, partitions };
        topology.topics.insert(name, Arc::new(info));
    }
    Arc::new(topology)
}

/// What is served with these topics in the source and in the target.
pub(crate) fn snapshot(source: &[&str], target: &[&str]) -> Snapshot {
    let mut state = State::from_restored(&Restored::default());
    state.topologies = [cluster(ClusterSide::Source, source), cluster(ClusterSide::Target, target)];
    published(&config(), &state, &TopicChanges::default())
}

/// The control tasks of a process that has restored this disk and seen no cluster yet.
pub(crate) fn restored(disk: &Disk) -> Arc<Control> {
    let store = disk.open();
    let restored = store.restore().expect("restored");
    Control::new(Runtime::new(config(), super::first_snapshot(&config())).0, store, restored)
}

/// Control tasks with a store of their own, which have seen these topics; `None`: nothing of that cluster. The topics
/// in `moved` belong to the target.
pub(crate) fn control(clusters: [Option<&[&str]>; 2], moved: &[&str]) -> Arc<Control> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("crossover-control-{}-{number}", std::process::id()));
    let store = Store::open(&directory).expect("opened");
    // The store keeps its files open; nobody looks for them after the test.
    std::fs::remove_dir_all(&directory).expect("removed");
    let (runtime, _) = Runtime::new(config(), super::first_snapshot(&config()));
    let restored = Restored {
        topics: moved.iter().map(|name| (Arc::from(*name), stored(name))).collect(),
        ..Restored::default()
    };
    let control = Control::new(runtime, store, restored);
    for (side, topics) in ClusterSide::BOTH.into_iter().zip(clusters) {
        if let Some(topics) = topics {
            control.state().topologies[side.index()] = cluster(side, topics);
        }
    }
    control.publish();
    control
}

fn stored(name: &str) -> StoredTopic {
    StoredTopic {
        owner: ClusterSide::Target,
        mode: LinkMode::Continue,
        physical: [Arc::from(name), Arc::from(name)],
        virtual_id: TopicId::ZERO,
        native_ids: [TopicId::ZERO; 2],
        timelines: vec![Arc::new(Timeline::initial(7, ClusterSide::Target))],
    }
}

/// A broker that speaks `keys`, coordinates everything, and answers else with what `fill` puts into an empty response. Its
/// port.
pub(crate) async fn broker(
    keys: &'static [i16],
    fill: impl Fn(i16, &crossover_core::schema::Struct, &mut crossover_core::schema::Struct)
    + Send
    + Sync
    + 'static,
) -> u16 {
    use crossover_core::api::key;
    use crossover_core::schema::{self, Struct};
    use crossover_core::wire::{frame::FrameDecoder, header};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let port = listener.local_addr().expect("bound").port();
    let fill = Arc::new(fill);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let fill = Arc::clone(&fill);
            tokio::spawn(async move {
                let mut decoder = FrameDecoder::requests(1 << 20);
                loop {
                    while let Ok(Some(frame)) = decoder.next_frame() {
                        let asked = header::peek_request(&frame).expect("a request");
                        let request = schema::request(asked.api_key).expect("known");
                        let body = frame.slice(asked.body_offset..);
                        let body = schema::decode(request, asked.api_version, &body).expect("decoded");
                        let message = schema::response(asked.api_key).expect("known");
                        let mut answer = Struct::new(message.fields);
                        if asked.api_key == key::API_VERSIONS {
                            for spoken in keys {
                                let versions = schema::request(*spoken).expect("known").versions;
                                let mut range = answer.new_element("ApiKeys");
                                range.set("ApiKey", *spoken);
                                range.set("MinVersion", versions.min);
                                range.set("MaxVersion", versions.max);
                                answer.push("ApiKeys", range);
                            }
                        } else if asked.api_key == key::FIND_COORDINATOR {
                            answer.set("Host", "127.0.0.1");
                            answer.set("Port", i32::from(port));
                        } else {
                            fill(asked.api_key, &body, &mut answer);
                        }
                        let frame = header::encode_response(
                            message,
                            asked.api_version,
                            asked.correlation_id,
                            &answer,
                        );
                        stream.write_all(&frame.expect("encoded")).await.expect("written");
                    }
                    if stream.read_buf(decoder.spare()).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Puts brokers into what is known of a cluster.
pub(crate) fn with_brokers(control: &Control, side: ClusterSide, brokers: &[(i32, u16)]) {
    {
        let mut state = control.state();
        let topology = Arc::make_mut(&mut state.topologies[side.index()]);
        for (id, port) in brokers {
            let address =
                crossover_core::node::BrokerAddress { host: "127.0.0.1".to_owned(), port: *port, rack: None };
            topology.brokers.insert(*id, address);
        }
    }
    control.publish();
}
