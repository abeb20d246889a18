use super::super::key;
use super::*;
use crate::producer::transaction::{Identity, TransactionRoute, TransactionTable};
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target};
use std::collections::BTreeMap;

const ID: &str = "pay";

/// A producer without transactions asks for an id.
fn ask(rig: &mut Rig) -> Sent {
    rig.ask(key::INIT_PRODUCER_ID, 4, |body| {
        body.set("TransactionalId", None::<&str>);
        body.set("ProducerId", 77_i64);
        body.set("ProducerEpoch", 5_i16);
    });
    rig.one()
}

/// One with transactions does; −1: it has none yet.
fn init(rig: &mut Rig, pid: i64, epoch: i16) {
    rig.ask(key::INIT_PRODUCER_ID, 4, |body| {
        body.set("TransactionalId", ID);
        body.set("ProducerId", pid);
        body.set("ProducerEpoch", epoch);
    });
}

fn answer(rig: &mut Rig, to: &Sent, error: i16, pid: i64, epoch: i16) {
    rig.answer(to, |body| {
        body.set("ErrorCode", error);
        body.set("ProducerId", pid);
        body.set("ProducerEpoch", epoch);
    });
}

fn told(rig: &mut Rig) -> Option<(i16, i64, i16)> {
    rig.reply().map(|r| (r.i16("ErrorCode"), r.i64("ProducerId"), r.i16("ProducerEpoch")))
}

/// A transaction of the producer is open, as far as requests tell.
fn begin(rig: &Rig) {
    rig.begin_transaction(ID, &[Arc::from(TOPIC)].into());
}

#[test]
fn r06_the_cluster_consents_and_its_own_id_is_not_used() {
    let mut rig = Rig::new(Target, 1);
    let sent = ask(&mut rig);
    assert_eq!(sent.node, rig.node());
    assert_eq!(
        (sent.body.i64("ProducerId"), sent.body.i16("ProducerEpoch")),
        (-1, -1),
        "it knows no such id"
    );
    answer(&mut rig, &sent, code::NONE, 4_711, 9);
    let (error, pid, epoch) = told(&mut rig).expect("answered");
    assert!(pid::is_issued(pid) && (error, epoch) == (code::NONE, 0));
}

#[test]
fn r06_who_may_not_have_an_id_gets_none() {
    let mut rig = Rig::new(Source, 1);
    let sent = ask(&mut rig);
    answer(&mut rig, &sent, code::COORDINATOR_LOAD_IN_PROGRESS, -1, -1);
    assert_eq!(told(&mut rig), Some((code::COORDINATOR_LOAD_IN_PROGRESS, -1, -1)));
}

#[test]
fn r30_the_other_side_is_asked_once() {
    let mut rig = Rig::new(Source, 1);
    let sent = ask(&mut rig);
    rig.lose(&sent);
    let again = rig.one();
    assert_eq!((again.api_key, again.node.side), (key::INIT_PRODUCER_ID, Target));
    assert!(rig.closed.is_none());
    rig.lose(&again);
    assert!(rig.closed.is_some() && rig.sent().is_empty());
}

#[test]
fn r30_a_client_comes_again_when_neither_side_can_be_asked() {
    let mut rig = Rig::new(Source, 1);
    rig.topology(Target).brokers.clear();
    let sent = ask(&mut rig);
    rig.lose(&sent);
    assert!(rig.closed.is_some() && rig.sent().is_empty());
}

#[test]
fn trap_7_a_new_producer_ends_what_was_open_and_is_shown_its_homes_id() {
    for home in ClusterSide::BOTH {
        let mut rig = Rig::new(home, 0);
        let identity = Identity { pid: 1, epoch: 0 };
        let route = TransactionRoute {
            home,
            aliases: [3, 2],
            client: identity,
            native: identity,
            earlier: Default::default(),
        };
        rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
        for (error, open) in [(code::CONCURRENT_TRANSACTIONS, 1), (code::NONE, 0)] {
            begin(&rig);
            init(&mut rig, -1, -1);
            let sent = rig.one();
            let name = if home == Source { "pay.__crossover.3" } else { "pay.__crossover.2" };
            assert_eq!((sent.node, sent.body.str("TransactionalId")), (rig.node(), name));
            assert_eq!((sent.body.i64("ProducerId"), sent.body.i16("ProducerEpoch")), (-1, -1));
            let pid = if error == code::NONE { 12 } else { -1 };
            answer(&mut rig, &sent, error, pid, 4);
            let shown = if error == code::NONE { transaction::to_client(home, pid) } else { pid };
            assert_eq!(told(&mut rig), Some((error, shown, 4)));
            assert_eq!(rig.shared.transactions.all_open().len(), open);
        }
    }
}

#[test]
fn trap_7_a_producer_that_asks_for_its_next_epoch_goes_by_its_homes_identity() {
    // The first id that a cluster allocates is 0.
    for client in [Identity { pid: 0, epoch: 3 }, Identity { pid: 1000, epoch: 3 }] {
        let mut rig = Rig::new(Target, 0);
        let native = Identity { pid: 7, epoch: 1 };
        let route =
            TransactionRoute { home: Target, aliases: [0, 2], client, native, earlier: Default::default() };
        rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
        init(&mut rig, client.pid, client.epoch);
        let sent = rig.one();
        assert_eq!(sent.body.str("TransactionalId"), "pay.__crossover.2");
        assert_eq!((sent.body.i64("ProducerId"), sent.body.i16("ProducerEpoch")), (native.pid, native.epoch));
        answer(&mut rig, &sent, code::NONE, 7, 2);
        let _ = rig.reply();
        // The one before it is fenced here: the home would take its id for another producer's.
        init(&mut rig, client.pid, client.epoch - 1);
        assert!(rig.sent().is_empty());
        assert_eq!(told(&mut rig).map(|(error, ..)| error), Some(code::PRODUCER_FENCED));
    }
}

#[test]
fn trap_7_before_producers_showed_their_identity_nothing_is_fenced_here() {
    let mut rig = Rig::new(Source, 0);
    rig.ask(key::INIT_PRODUCER_ID, 2, |body| body.set("TransactionalId", ID));
    assert_eq!(rig.one().body.str("TransactionalId"), ID);
}
