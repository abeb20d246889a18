use super::super::key;
use super::*;
use crate::ids::ClusterSide::{Source, Target};
use crate::producer::batch;
use crate::producer::crc::checksum;
use crate::producer::transaction::{TransactionRoute, TransactionTable};
use crate::route::GroupTable;
use crate::session::testing::{self, Rig, Sent, TOPIC, answer_produce, produce_reply};
use crate::session::{Errand, lock};
use std::collections::BTreeMap;

const ID: &str = "pay";
/// As its client knows it, and as the target does.
const CLIENT: Identity = Identity { pid: 1000, epoch: 3 };
const NATIVE: Identity = Identity { pid: 7, epoch: 0 };

/// A client of the source's node, with the topic on the target. It has written 40 records before.
fn flipped() -> Rig {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 40);
    let gate = rig.shared.gates.get(&Arc::from(TOPIC), 0);
    let mut carry = crate::producer::carry::Carry::default();
    carry.record_ack(CLIENT.pid, CLIENT.epoch, 0, 39, None, 0);
    lock(&gate).release(0, 1, carry);
    rig
}

fn move_home(rig: &mut Rig) {
    let route = TransactionRoute {
        home: Target,
        aliases: [0, 2],
        client: CLIENT,
        native: NATIVE,
        earlier: Default::default(),
    };
    rig.shared.transactions.moved(ID, Target);
    rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
    rig.snapshot.revision.0 += 1;
}

fn add_partitions(rig: &mut Rig, topic: &str) {
    rig.ask(key::ADD_PARTITIONS_TO_TXN, 3, |body| {
        body.set("V3AndBelowTransactionalId", ID);
        body.set("V3AndBelowProducerId", CLIENT.pid);
        body.set("V3AndBelowProducerEpoch", CLIENT.epoch);
        let mut element = body.new_element("V3AndBelowTopics");
        element.set("Name", topic);
        element.set("Partitions", vec![0]);
        body.push("V3AndBelowTopics", element);
    });
}

fn end(rig: &mut Rig, client: Identity) {
    rig.ask(key::END_TXN, 3, |body| {
        body.set("TransactionalId", ID);
        body.set("ProducerId", client.pid);
        body.set("ProducerEpoch", client.epoch);
        body.set("Committed", true);
    });
}

fn produce(rig: &mut Rig) {
    produce_in(rig, 9, Some(ID), 40);
}

/// One record at this sequence.
fn produce_in(rig: &mut Rig, version: i16, id: Option<&str>, sequence: i32) {
    let mut records = testing::batch(0, 1, -1).to_vec();
    records[22] = 0x10;
    records[43..51].copy_from_slice(&CLIENT.pid.to_be_bytes());
    records[51..53].copy_from_slice(&CLIENT.epoch.to_be_bytes());
    records[53..57].copy_from_slice(&sequence.to_be_bytes());
    let crc = checksum(&records[21..]);
    records[17..21].copy_from_slice(&crc.to_be_bytes());
    rig.ask(key::PRODUCE, version, |body| {
        body.set("TransactionalId", id);
        body.set("Acks", -1_i16);
        body.set("TimeoutMs", 1_000);
        let mut topic = body.new_element("TopicData");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("PartitionData");
        partition.set("Index", 0);
        partition.set("Records", crate::schema::Value::Bytes(Some(records.into())));
        topic.push("PartitionData", partition);
        body.push("TopicData", topic);
    });
}

/// The target's coordinator is found.
fn look_up(rig: &mut Rig) -> Sent {
    let lookup = rig.one();
    assert_eq!((lookup.api_key, lookup.node.side), (key::FIND_COORDINATOR, Target));
    assert_eq!((lookup.body.str("Key"), lookup.body.i8("KeyType")), ("pay.__crossover.2", 1));
    rig.answer(&lookup, |body| body.set("NodeId", 1));
    rig.one()
}

fn refusal(rig: &mut Rig) -> Option<i16> {
    let reply = rig.reply()?;
    let mut partitions =
        reply.structs("ResultsByTopicV3AndBelow").flat_map(|t| t.structs("ResultsByPartition"));
    partitions.next().map(|partition| partition.i16("PartitionErrorCode"))
}

#[test]
fn trap_7_the_first_transaction_on_the_new_owner_takes_its_id_there() {
    let mut rig = flipped();
    add_partitions(&mut rig, TOPIC);
    let (ticket, errand) = rig.errand().expect("the id is to be moved");
    assert_eq!(errand, Errand::MoveTransactionalId { id: Arc::from(ID), to: Target, client: CLIENT });
    assert!(rig.sent().is_empty(), "nothing goes on before that is durable");
    move_home(&mut rig);
    rig.run_errand((ticket, errand), Ok(true));
    let sent = look_up(&mut rig);
    assert_eq!(sent.body.str("V3AndBelowTransactionalId"), "pay.__crossover.2");
    let pid = sent.body.i64("V3AndBelowProducerId");
    assert_eq!((pid, sent.body.i16("V3AndBelowProducerEpoch")), (NATIVE.pid, NATIVE.epoch));

    // Its batches go by a companion, under the identity that the target has given.
    produce(&mut rig);
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side), (key::PRODUCE, Target));
    assert_eq!(sent.body.str("TransactionalId"), "pay.__crossover.2");
    let topic = sent.body.structs("TopicData").next().expect("a topic");
    let data = topic.structs("PartitionData").next().expect("a partition");
    let records = data.opt_bytes("Records").expect("records");
    let header = batch::peek(records).expect("a batch");
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 0, 40));
    assert_eq!(header.crc, checksum(&records[21..]));
}

#[test]
fn trap_7_a_producer_whose_id_is_another_s_is_fenced_and_nothing_stays_open() {
    let mut rig = flipped();
    add_partitions(&mut rig, TOPIC);
    let errand = rig.errand().expect("the id is to be moved");
    rig.run_errand(errand, Ok(false));
    assert_eq!(refusal(&mut rig), Some(code::PRODUCER_FENCED));
    assert!(rig.shared.transactions.all_open().is_empty());
    // One that cannot be moved now asks again.
    add_partitions(&mut rig, TOPIC);
    let errand = rig.errand().expect("the id is to be moved");
    rig.run_errand(errand, Err("busy".to_owned()));
    assert_eq!(refusal(&mut rig), Some(code::CONCURRENT_TRANSACTIONS));
    assert!(rig.shared.transactions.all_open().is_empty());
}

#[test]
fn trap_7_a_transaction_that_is_open_elsewhere_cannot_take_the_topic_in() {
    let mut rig = flipped();
    add_partitions(&mut rig, "another");
    assert_eq!(rig.one().node.side, Source);
    add_partitions(&mut rig, TOPIC);
    assert!(rig.errand().is_none() && rig.sent().is_empty());
    let partition = rig.shared.transactions.all_open();
    assert_eq!(partition.len(), 1, "the transaction goes on, to be aborted");
}

#[test]
fn trap_7_a_request_that_joins_waits_until_the_first_one_has_taken_the_id_to_its_home() {
    let mut rig = flipped();
    add_partitions(&mut rig, TOPIC);
    let (ticket, errand) = rig.errand().expect("the id is to be moved");
    // As franz-go does for each broker it produces to.
    add_partitions(&mut rig, TOPIC);
    assert!(rig.errand().is_none() && rig.sent().is_empty());
    move_home(&mut rig);
    rig.run_errand((ticket, errand), Ok(true));
    assert_eq!(look_up(&mut rig).body.str("V3AndBelowTransactionalId"), "pay.__crossover.2");
    rig.pass(RETRY_MS);
    let joined = rig.one();
    assert_eq!((joined.api_key, joined.node.side), (key::ADD_PARTITIONS_TO_TXN, Target));
    assert_eq!(rig.shared.transactions.all_open().len(), 1);
}

#[test]
fn trap_7_what_a_fenced_producer_asks_for_begins_nothing() {
    let mut rig = flipped();
    let other = Identity { epoch: CLIENT.epoch + 1, ..CLIENT };
    let route = TransactionRoute {
        home: Target,
        aliases: [0, 2],
        client: other,
        native: NATIVE,
        earlier: Default::default(),
    };
    rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
    add_partitions(&mut rig, TOPIC);
    assert_eq!(refusal(&mut rig), Some(code::PRODUCER_FENCED));
    assert!(rig.shared.transactions.all_open().is_empty());
}

#[test]
fn trap_7_while_a_flip_closes_the_topic_a_beginning_waits_and_then_goes_to_the_new_owner() {
    let mut rig = Rig::new(Source, 0);
    let topics = [Arc::from(TOPIC)];
    rig.shared.transactions.close(&topics);
    add_partitions(&mut rig, TOPIC);
    assert!(rig.sent().is_empty() && rig.reply().is_none());
    rig.flip(Target, 100, 40);
    rig.shared.transactions.open(&topics, rig.snapshot.revision);
    rig.handle(crate::session::Event::Wake);
    assert!(matches!(rig.errand(), Some((_, Errand::MoveTransactionalId { to: Target, .. }))));
}

#[test]
fn trap_7_a_beginning_is_not_held_for_longer_than_the_bound() {
    let mut rig = Rig::new(Source, 0);
    rig.shared.transactions.close(&[Arc::from(TOPIC)]);
    add_partitions(&mut rig, TOPIC);
    rig.pass(5_100);
    assert_eq!(refusal(&mut rig), Some(code::CONCURRENT_TRANSACTIONS));
}

/// A transaction at the new home whose end has been sent there.
fn ending() -> (Rig, Sent) {
    let mut rig = flipped();
    move_home(&mut rig);
    add_partitions(&mut rig, TOPIC);
    let added = look_up(&mut rig);
    rig.answer(&added, |_| {});
    end(&mut rig, CLIENT);
    let sent = rig.one();
    (rig, sent)
}

#[test]
fn trap_7_the_end_of_a_transaction_goes_home_and_is_noted() {
    let (mut rig, sent) = ending();
    assert_eq!((sent.node.side, sent.body.i64("ProducerId")), (Target, NATIVE.pid));
    assert_eq!(rig.shared.transactions.all_open().len(), 1);
    rig.answer(&sent, |body| body.set("ErrorCode", code::NONE));
    assert!(rig.shared.transactions.all_open().is_empty());
    // A producer that was fenced at the old home.
    end(&mut rig, Identity { epoch: 2, ..CLIENT });
    assert!(rig.sent().is_empty());
}

#[test]
fn trap_7_a_transaction_is_open_until_its_coordinator_says_that_it_is_not() {
    let over = [
        code::NONE,
        code::INVALID_TXN_STATE,
        code::INVALID_PRODUCER_EPOCH,
        code::INVALID_PRODUCER_ID_MAPPING,
        code::PRODUCER_FENCED,
    ];
    let still_open = [code::CONCURRENT_TRANSACTIONS, code::NOT_COORDINATOR, code::REQUEST_TIMED_OUT];
    let cases = over.map(|error| (error, 0)).into_iter().chain(still_open.map(|error| (error, 1)));
    for (error, open) in cases {
        let mut rig = Rig::new(Source, 0);
        let topics = [Arc::from(TOPIC)].into();
        rig.begin_transaction(ID, &topics);
        end(&mut rig, Identity { pid: 1, epoch: 0 });
        let sent = rig.one();
        rig.answer(&sent, |body| body.set("ErrorCode", error));
        assert_eq!(rig.reply().map(|reply| reply.i16("ErrorCode")), Some(error));
        assert_eq!(rig.shared.transactions.all_open().len(), open, "after {error}");
    }
}

#[test]
fn trap_7_a_producer_that_is_fenced_leaves_what_the_next_one_has_open() {
    let mut rig = Rig::new(Source, 0);
    rig.begin_transaction(ID, &[Arc::from(TOPIC)].into());
    end(&mut rig, CLIENT);
    let sent = rig.one();
    rig.answer(&sent, |body| body.set("ErrorCode", code::PRODUCER_FENCED));
    assert_eq!(rig.shared.transactions.all_open().len(), 1, "a flip still waits for it");
}

fn add_offsets(rig: &mut Rig) {
    rig.ask(key::ADD_OFFSETS_TO_TXN, 3, |body| {
        body.set("TransactionalId", ID);
        body.set("ProducerId", CLIENT.pid);
        body.set("ProducerEpoch", CLIENT.epoch);
        body.set("GroupId", "g");
    });
}

fn move_offsets(rig: &mut Rig, to: ClusterSide) {
    let offset_homes = BTreeMap::from([(Arc::from("g"), to)]);
    rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
}

#[test]
fn trap_7_the_commits_of_a_group_come_to_the_transaction_that_takes_them_in() {
    let mut rig = flipped();
    move_home(&mut rig);
    add_partitions(&mut rig, TOPIC);
    let added = look_up(&mut rig);
    rig.answer(&added, |_| {});
    let _ = rig.reply();
    add_offsets(&mut rig);
    let (ticket, errand) = rig.errand().expect("the commits are to be moved");
    assert_eq!(errand, Errand::MoveOffsets { group: Arc::from("g"), to: Target });
    rig.handle(crate::session::Event::Wake);
    assert!(rig.sent().is_empty() && rig.errand().is_none(), "nothing goes on before that is durable");
    move_offsets(&mut rig, Target);
    rig.run_errand((ticket, errand), Ok(true));
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side), (key::ADD_OFFSETS_TO_TXN, Target));
    assert_eq!(sent.body.i64("ProducerId"), NATIVE.pid);
    assert_eq!(rig.shared.transactions.open_with_offsets("g").len(), 1);
    // They are there by now.
    rig.answer(&sent, |_| {});
    add_offsets(&mut rig);
    assert!(rig.errand().is_none() && rig.sent().len() == 1);
}

#[test]
fn trap_7_commits_that_cannot_be_moved_now_leave_the_transaction_as_it_is() {
    let mut rig = flipped();
    move_home(&mut rig);
    add_partitions(&mut rig, TOPIC);
    let added = look_up(&mut rig);
    rig.answer(&added, |_| {});
    let _ = rig.reply();
    add_offsets(&mut rig);
    let errand = rig.errand().expect("the commits are to be moved");
    rig.run_errand(errand, Err("another transaction has them".to_owned()));
    assert_eq!(rig.reply().map(|reply| reply.i16("ErrorCode")), Some(code::CONCURRENT_TRANSACTIONS));
    assert_eq!(rig.shared.transactions.all_open().len(), 1);
    assert!(rig.shared.transactions.open_with_offsets("g").is_empty());
    // While they are moved for another one, it waits.
    move_offsets(&mut rig, Target);
    rig.shared.transactions.close_group(&Arc::from("g"));
    add_offsets(&mut rig);
    assert!(rig.sent().is_empty() && rig.errand().is_none());
    rig.shared.transactions.open_group("g");
    rig.pass(100);
    assert_eq!(rig.one().api_key, key::ADD_OFFSETS_TO_TXN);
}

#[test]
fn trap_7_a_transaction_that_begins_with_offsets_begins_where_it_wrote_before() {
    let mut rig = flipped();
    add_offsets(&mut rig);
    let told = rig.reply().map(|reply| reply.i16("ErrorCode"));
    assert_eq!(
        (told, rig.errand()),
        (Some(code::CONCURRENT_TRANSACTIONS), None),
        "what it writes to may come yet"
    );
    rig.now_ms += 1_000;
    add_offsets(&mut rig);
    let (_, errand) = rig.errand().expect("the commits have no home yet");
    assert_eq!(errand, Errand::MoveOffsets { group: Arc::from("g"), to: Source }, "nothing is known of it");
    let mut rig = flipped();
    move_offsets(&mut rig, Source);
    let topics = [Arc::from(TOPIC)].into();
    rig.begin_transaction(ID, &topics);
    rig.shared.transactions.end(ID);
    add_offsets(&mut rig);
    assert!(matches!(rig.errand(), Some((_, Errand::MoveTransactionalId { to: Target, .. }))));
}

#[test]
fn trap_7_a_batch_of_a_transaction_of_the_other_side_is_told_to_abort_as_far_as_its_client_knows_how() {
    let told = |rig: &mut Rig| {
        let reply = rig.reply().expect("answered here");
        let topic = reply.structs("Responses").next().expect("a topic").clone();
        topic.structs("PartitionResponses").next().map(|partition| partition.i16("ErrorCode"))
    };
    for (version, error) in [(10, code::INVALID_TXN_STATE), (11, code::TRANSACTION_ABORTABLE)] {
        let mut rig = flipped();
        produce_in(&mut rig, version, Some(ID), 40);
        assert!(rig.sent().is_empty(), "its transaction is at the source");
        assert_eq!(told(&mut rig), Some(error));
    }
    // One that says nothing of its transaction, and one that was fenced.
    let mut rig = flipped();
    produce_in(&mut rig, 11, None, 40);
    assert_eq!(told(&mut rig), Some(code::INVALID_TXN_STATE));
    let mut rig = flipped();
    let route = TransactionRoute {
        home: Target,
        aliases: [0, 2],
        client: Identity { epoch: CLIENT.epoch + 1, ..CLIENT },
        native: NATIVE,
        earlier: Default::default(),
    };
    rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
    produce_in(&mut rig, 11, Some(ID), 40);
    assert_eq!(told(&mut rig), Some(code::INVALID_PRODUCER_EPOCH));
}

/// Its coordinator may have carried it out although the connection was lost, and looks for nobody.
#[test]
fn trap_7_a_beginning_that_was_sent_stays_open_when_its_client_has_gone() {
    let mut rig = Rig::new(Target, 0);
    add_partitions(&mut rig, TOPIC);
    let lookup = rig.one();
    rig.answer(&lookup, |body| body.set("NodeId", 1));
    let sent = rig.one();
    rig.connect(&sent);
    rig.lose(&sent);
    rig.handle(crate::session::Event::ClientGone);
    assert_eq!(rig.shared.transactions.all_open().len(), 1);
    // One that was never sent has begun nothing.
    let mut rig = Rig::new(Target, 0);
    add_partitions(&mut rig, TOPIC);
    rig.handle(crate::session::Event::ClientGone);
    assert!(rig.shared.transactions.all_open().is_empty());
}

/// It wrote to a topic that stays, long ago, and only to the one that has moved since.
#[test]
fn trap_7_an_application_that_begins_with_offsets_begins_where_it_was_refused_before() {
    let mut rig = Rig::new(Source, 0);
    rig.begin_transaction(ID, &[Arc::from(TOPIC), Arc::from("another")].into());
    rig.shared.transactions.end(ID);
    rig.flip(Target, 100, 40);
    move_offsets(&mut rig, Source);
    add_offsets(&mut rig);
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side), (key::ADD_OFFSETS_TO_TXN, Source));
    rig.answer(&sent, |_| {});
    let _ = rig.reply();
    add_partitions(&mut rig, TOPIC);
    assert_eq!(refusal(&mut rig), Some(code::POLICY_VIOLATION));
    end(&mut rig, CLIENT);
    let sent = rig.one();
    rig.answer(&sent, |_| {});
    let _ = rig.reply();
    add_offsets(&mut rig);
    assert!(matches!(rig.errand(), Some((_, Errand::MoveTransactionalId { to: Target, .. }))));
}

/// A new instance of the application, while a transaction of the one before takes their id along.
#[test]
fn trap_7_an_identity_is_asked_for_where_the_id_is_when_it_has_moved() {
    let mut rig = flipped();
    add_partitions(&mut rig, TOPIC);
    let (ticket, errand) = rig.errand().expect("the id is to be moved");
    rig.ask(key::INIT_PRODUCER_ID, 3, |body| body.set("TransactionalId", ID));
    rig.pass(RETRY_MS);
    assert!(rig.sent().is_empty());
    move_home(&mut rig);
    rig.run_errand((ticket, errand), Ok(true));
    assert_eq!(look_up(&mut rig).api_key, key::ADD_PARTITIONS_TO_TXN);
    rig.pass(RETRY_MS);
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side), (key::INIT_PRODUCER_ID, Target));
    assert_eq!(sent.body.str("TransactionalId"), "pay.__crossover.2");
}

/// The other way round: an identity that is asked for where the id is keeps it there.
#[test]
fn trap_7_an_id_does_not_move_while_its_coordinator_is_asked_for_an_identity() {
    let mut rig = flipped();
    rig.ask(key::INIT_PRODUCER_ID, 3, |body| body.set("TransactionalId", ID));
    let asked = rig.one();
    assert_eq!((asked.api_key, asked.node.side), (key::INIT_PRODUCER_ID, Source));
    add_partitions(&mut rig, TOPIC);
    rig.pass(RETRY_MS);
    assert!(rig.errand().is_none(), "the new producer would be fenced, and the old one would not");
    rig.answer(&asked, |body| body.set("ErrorCode", code::NONE));
    rig.pass(RETRY_MS);
    assert!(matches!(rig.errand(), Some((_, Errand::MoveTransactionalId { to: Target, .. }))));
}

#[test]
fn trap_7_a_move_whose_client_has_gone_is_seen_through() {
    let mut rig = flipped();
    add_partitions(&mut rig, TOPIC);
    let errand = rig.errand().expect("the id is to be moved");
    rig.handle(crate::session::Event::ClientGone);
    assert!(rig.shared.transactions.ask_identity(ID, Source).is_none(), "it is being moved");
    move_home(&mut rig);
    rig.run_errand(errand, Ok(true));
    assert!(rig.sent().is_empty() && rig.shared.transactions.all_open().is_empty());
    assert!(rig.shared.transactions.ask_identity(ID, Target).is_some());
}

#[test]
fn trap_7_the_end_of_a_transaction_is_not_sent_again_for_a_client_that_has_gone() {
    let (mut rig, sent) = ending();
    assert_eq!((sent.api_key, sent.node.side), (key::END_TXN, Target));
    rig.handle(crate::session::Event::ClientGone);
    rig.lose(&sent);
    rig.pass(RETRY_MS);
    assert!(rig.sent().is_empty(), "its client has asked elsewhere, and begun another one");
}

/// The id has been at the other side for one transaction and is back in the same era under another alias: the owner's log
/// does not know the producer that it is there now.
#[test]
fn r03_an_identity_that_the_log_has_never_seen_begins_with_one_batch() {
    let mut rig = flipped();
    move_home(&mut rig);
    rig.begin_transaction(ID, &[Arc::from(TOPIC)].into());
    produce_in(&mut rig, 9, Some(ID), 40);
    let first = rig.one();
    answer_produce(&mut rig, &first, code::NONE, 40);
    assert_eq!(produce_reply(&mut rig), Some((0, 100)));
    rig.shared.transactions.end(ID);
    // T2 is on a topic of the source. T3 is back here: alias 3, producer 8.
    let route = TransactionRoute {
        home: Target,
        aliases: [1, 3],
        client: CLIENT,
        native: Identity { pid: 8, epoch: 0 },
        earlier: Default::default(),
    };
    rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
    rig.snapshot.revision.0 += 1;
    rig.begin_transaction(ID, &[Arc::from(TOPIC)].into());
    produce_in(&mut rig, 9, Some(ID), 41);
    produce_in(&mut rig, 9, Some(ID), 42);
    let sent = rig.sent();
    let mut lost = String::new();
    if sent.len() == 2 {
        // The leader had not taken over yet when the first came. A log takes whatever a stranger begins with.
        answer_produce(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
        answer_produce(&mut rig, &sent[1], code::NONE, 41);
        rig.pass(1_000);
        let again: Vec<_> = rig.sent().into_iter().map(|s| s.api_key).collect();
        lost = format!(
            "sent again: {again:?}; the client is told: {:?} {:?}",
            produce_reply(&mut rig),
            produce_reply(&mut rig)
        );
    }
    assert_eq!(sent.len(), 1, "both batches are under way to a log that knows none of them; {lost}");
}
