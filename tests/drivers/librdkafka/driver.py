"""Load driver on librdkafka (confluent-kafka); command line and history format: loadtest/README.md."""

import logging
import sys
import time
from pathlib import Path

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from history import Args, History, Pace, Stop, encode, now_us, refuse

# Told through the error callback although librdkafka goes on by itself.
TRANSIENT = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


class ResetLog(logging.Handler):
    """A position reset is told by a log line only."""

    def __init__(self, history):
        super().__init__()
        self.history = history

    def emit(self, record):
        text = record.getMessage()
        print(text, file=sys.stderr)
        # "offset reset (…): fetch failed due to requested offset not available" is one; a first start is not.
        if "offset reset" in text.lower() and "no previously committed" not in text.lower():
            self.history.line("C.reset", "-", text)


def common(args, history):
    log = logging.getLogger("librdkafka")
    log.propagate = False
    log.addHandler(ResetLog(history))

    def on_error(error):
        transient = error.code() in TRANSIENT and not error.fatal()
        history.line("E.note" if transient else "E.error", f"{error.name()} {error.str()}")

    config = {"bootstrap.servers": args.need("bootstrap"), "error_cb": on_error, "logger": log}
    if args.get("metadata-max-age-ms") is not None:
        age = args.get("metadata-max-age-ms")
        # As Java means it: refreshed that often, forgotten after three times that.
        config |= {"topic.metadata.refresh.interval.ms": age, "metadata.max.age.ms": int(age) * 3}
    for pair in filter(None, args.get("conf", "").split(",")):
        key, value = pair.split("=", 1)
        config[key] = value
    if "debug" in config:
        log.setLevel(logging.DEBUG)
    return config


def copy(args, config, names):
    for name, key in names.items():
        if args.get(name) is not None:
            config[key] = args.get(name)


class Load:
    """A producer: explicit partitions, round robin."""

    def __init__(self, args, history):
        self.args, self.history = args, history
        self.counts = {"sent": 0, "ok": 0, "failed": 0}
        # Records per transaction; 0: none. What the open transaction has sent is written down when it ends.
        self.per_transaction, self.transactions, self.pending = int(args.get("transaction-records", "0")), 0, []

    def run(self, stop):
        args = self.args
        config = common(args, self.history)
        copy(args, config, {"acks": "acks", "idempotent": "enable.idempotence", "linger-ms": "linger.ms", "compression": "compression.type", "transaction": "transactional.id"})
        self.history.start(writer=args.need("writer"), run=args.get("run", "r"), acks=args.get("acks", "all"), idempotent=args.get("idempotent", "false"))
        producer = Producer(config)
        if self.per_transaction:
            producer.init_transactions()
            producer.begin_transaction()
        pace = Pace(float(args.need("rate")), float(args.get("duration-s", "0")))
        partitions = int(args.need("partitions"))
        next_seq = [0] * partitions
        while not stop and not pace.over():
            wait = pace.wait_s()
            if wait > 0:
                producer.poll(min(wait, 0.05))
                continue
            partition = self.counts["sent"] % partitions
            if self.send(producer, partition, next_seq[partition]):
                next_seq[partition] += 1
                pace.sent()
                if self.per_transaction and self.counts["sent"] % self.per_transaction == 0:
                    self.end_transaction(producer)
                    producer.begin_transaction()
            producer.poll(0)
        if self.per_transaction:
            self.end_transaction(producer)
        while producer.flush(1) > 0:
            pass
        self.history.end(**self.counts)

    def end_transaction(self, producer):
        """Every fifth one is aborted."""
        self.transactions += 1
        aborts = self.transactions % 5 == 0
        while producer.flush(1) > 0:
            pass
        if aborts:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
        for fields in self.pending:
            self.history.line("P.aborted" if aborts else "P.ok", *fields)
        self.pending.clear()

    def send(self, producer, partition, seq):
        args, sent_us = self.args, now_us()
        value = encode(args.get("run", "r"), args.need("writer"), partition, seq, sent_us, int(args.get("size", "100")))
        try:
            producer.produce(
                args.need("topic"), value, args.need("writer"), partition=partition,
                on_delivery=lambda error, message: self.delivered(partition, seq, sent_us, error, message))
        except BufferError:
            # The local queue is full, which an application must wait out.
            producer.poll(0.05)
            return False
        except KafkaException as error:
            self.delivered(partition, seq, sent_us, error.args[0], None)
        self.counts["sent"] += 1
        return True

    def delivered(self, partition, seq, sent_us, error, message):
        if error is None:
            self.counts["ok"] += 1
            offset = message.offset()
            fields = (partition, seq, -1 if offset is None or offset < 0 else offset, sent_us)
            if self.per_transaction:
                self.pending.append(fields)
            else:
                self.history.line("P.ok", *fields)
        else:
            self.counts["failed"] += 1
            self.history.line("P.fail", partition, seq, error.name(), error.str())


class Reader:
    """A group member."""

    def __init__(self, args, history):
        self.args, self.history = args, history
        self.sync = args.get("commit-at") is not None or args.get("commit", "auto") == "sync-each-second"
        self.delivered, self.told, self.polled = {}, {}, 0

    def run(self, stop):
        args, history = self.args, self.history
        config = common(args, history)
        config |= {"group.id": args.need("group"), "on_commit": self.on_commit}
        copy(args, config, {"static-id": "group.instance.id", "member": "client.id", "reset": "auto.offset.reset"})
        if args.get("reset") == "none":
            config["auto.offset.reset"] = "error"
        if args.get("protocol") == "consumer":
            config["group.protocol"] = "consumer"
        elif args.get("strategy"):
            config["partition.assignment.strategy"] = "cooperative-sticky" if args.get("strategy") == "cooperative" else "range"
        if self.sync:
            config["enable.auto.commit"] = False
        history.start(group=args.need("group"), member=args.get("member", "m"), reset=args.get("reset", "latest"), commit=args.get("commit", "auto"))
        consumer = Consumer(config)
        if args.get("commit-at") is not None:
            # A group without members takes commits from anybody.
            pairs = (pair.split("=") for pair in args.get("commit-at").split(","))
            self.delivered = {(args.topics()[0], int(number)): int(offset) for number, offset in pairs}
        else:
            consumer.subscribe(args.topics(), on_assign=self.on_assign, on_revoke=self.on_revoke, on_lost=self.on_lost)
            self.loop(consumer, stop)
        self.commit(consumer, True)
        consumer.close()
        history.end(polled=self.polled)

    def loop(self, consumer, stop):
        pace = Pace(1, float(self.args.get("duration-s", "0")))
        limit = int(self.args.get("stop-at-end-count", "0")) or float("inf")
        committed = time.monotonic()
        while not stop and not pace.over() and self.polled < limit:
            # Not consume(): a batch may still hold records of partitions that its own rebalance callback gave up.
            message = consumer.poll(0.05)
            if message is not None:
                self.take(message, now_us())
            if self.sync and time.monotonic() - committed >= 1:
                self.commit(consumer, False)
                committed = time.monotonic()

    def take(self, message, at):
        if message.error():
            code = message.error().code()
            event = "C.reset" if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) else "C.error"
            self.history.line(event, "-", f"{message.error().name()} {message.error().str()}")
            return
        self.polled += 1
        self.delivered[message.topic(), message.partition()] = message.offset() + 1
        self.history.polled(at, message.topic(), message.partition(), message.offset(), message.value())

    def commit(self, consumer, wait):
        """Only a leaving member waits for the answer: a waiting commit and a cooperative rebalance block each other in
        this library until the session times out."""
        if not self.sync or not self.delivered:
            return
        offsets = [TopicPartition(topic, number, offset) for (topic, number), offset in self.delivered.items()]
        self.delivered.clear()
        try:
            done = consumer.commit(offsets=offsets, asynchronous=not wait)
            if wait:
                self.committed(done)
        except KafkaException as error:
            self.history.line("C.commit", "fail", error)

    def on_commit(self, error, offsets):
        # _NO_OFFSET: nothing new to commit.
        if error is None:
            self.committed(offsets)
        elif error.code() != KafkaError._NO_OFFSET:
            self.history.line("C.commit", "fail", error)

    def committed(self, offsets):
        done = []
        for tp in offsets:
            if tp.error is not None:
                self.history.line("C.commit", "fail", f"{tp.topic}-{tp.partition} {tp.error}")
            # The answer to an earlier commit may be handed over after that to a later one.
            elif tp.offset >= self.told.get((tp.topic, tp.partition), 0):
                self.told[tp.topic, tp.partition] = tp.offset
                done.append(f"{self.history.name(tp.topic, tp.partition)}={tp.offset}")
        if done:
            self.history.line("C.commit", "ok", ",".join(done))

    def on_assign(self, _, partitions):
        self.history.line("C.assign", self.history.names(partitions))

    def on_revoke(self, consumer, partitions):
        self.commit(consumer, True)
        self.history.line("C.revoke", self.history.names(partitions))
        self.forget(partitions)

    def on_lost(self, _, partitions):
        self.history.line("C.lost", self.history.names(partitions))
        self.forget(partitions)

    def forget(self, partitions):
        for tp in partitions:
            self.delivered.pop((tp.topic, tp.partition), None)
            self.told.pop((tp.topic, tp.partition), None)


def main():
    args = Args(sys.argv[1:])
    if args.get("strategy") not in (None, "eager", "cooperative"):
        refuse("unknown --strategy")
    stop = Stop()
    version = f"{confluent_kafka.libversion()[0]}/confluent-kafka-{confluent_kafka.__version__}"
    history = History(args, "librdkafka", version)
    try:
        (Load if args.role == "producer" else Reader)(args, history).run(stop)
    except Exception as error:
        history.line("E.error", repr(error))
        history.out.flush()
        raise


main()
